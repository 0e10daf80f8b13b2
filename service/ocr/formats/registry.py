"""Every output format. To add one, write its file and name it here."""

from __future__ import annotations

from service.ocr.formats import alto, hocr, html, json, markdown, searchable_pdf, text
from service.ocr.formats.output_format import OutputFormat

DEFAULT = json.FORMAT

FORMATS: dict[str, OutputFormat] = {
    each.name: each
    for each in (
        # Of several that a client accepts equally, the first one is chosen.
        json.FORMAT,
        markdown.FORMAT,
        text.FORMAT,
        html.FORMAT,
        hocr.FORMAT,
        alto.FORMAT,
        searchable_pdf.FORMAT,
    )
}
