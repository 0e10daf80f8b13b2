"""Markdown: the model's text as it is, pages separated by a blank line."""

from __future__ import annotations

from service.ocr.formats.document import ReadDocument
from service.ocr.formats.output_format import OutputFormat, in_thread


def render(document: ReadDocument) -> bytes:
    """All pages."""
    return f"{document.answer.text}\n".encode()


FORMAT = OutputFormat("markdown", "text/markdown; charset=utf-8", ".md", in_thread(render))
