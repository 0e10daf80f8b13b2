"""Markdown: the model's text, pages separated by a blank line, figures within it as data URLs."""

from __future__ import annotations

from service.ocr.arrangement import embed_figures
from service.ocr.formats.document import ReadDocument
from service.ocr.formats.output_format import OutputFormat, in_thread


def render(document: ReadDocument) -> bytes:
    """All pages."""
    urls = {figure.name: figure.image for figure in document.answer.figures or []}
    return f"{embed_figures(document.answer.text, urls)}\n".encode()


FORMAT = OutputFormat(
    "markdown", "text/markdown; charset=utf-8", ".md", in_thread(render), takes_joined=True, takes_figures=True
)
