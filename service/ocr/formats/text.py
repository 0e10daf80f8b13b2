"""Plain text: pages separated by a form feed, as pdftotext and Tesseract write them."""

from __future__ import annotations

from service.ocr.formats.document import ReadDocument
from service.ocr.formats.markup import plain_text
from service.ocr.formats.output_format import OutputFormat, in_thread

PAGE_BREAK = "\f"


def render(document: ReadDocument) -> bytes:
    """All pages, each with its last line ended, without Markdown's marks and control characters; or joined, as one."""
    if document.is_joined:
        return f"{plain_text(document.answer.text, is_markdown=document.is_markdown)}\n".encode()
    pages = [plain_text(page.text, is_markdown=document.is_markdown) + "\n" for page in document.answer.pages]
    return PAGE_BREAK.join(pages).encode()


FORMAT = OutputFormat("text", "text/plain; charset=utf-8", ".txt", in_thread(render), takes_joined=True)
