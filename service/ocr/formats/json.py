"""JSON: the whole answer, with tokens and times."""

from __future__ import annotations

from service.ocr.formats.document import ReadDocument
from service.ocr.formats.output_format import OutputFormat, PdfMaker


async def render(document: ReadDocument, _: PdfMaker) -> bytes:
    """The answer as one JSON object; a thread would take longer than this."""
    return document.answer.model_dump_json().encode()


FORMAT = OutputFormat("json", "application/json", ".json", render, takes_joined=True, takes_figures=True)
