"""A searchable PDF: the uploaded pages, unchanged to the eye, with their text behind them; made in an image process."""

from __future__ import annotations

import asyncio

from service.intake.document import Document
from service.intake.text_layer import TextLine, TextPage, TextTask
from service.ocr.formats.document import ReadDocument
from service.ocr.formats.layout import blocks_of
from service.ocr.formats.output_format import OutputFormat, PdfMaker


async def render(document: ReadDocument, maker: PdfMaker) -> bytes | memoryview:
    """The document; errors are those of `maker`."""
    task = await asyncio.to_thread(text_task, document)
    read = tuple(page.page for page in task.pages)
    source = Document(document.data, document.limits, read or None)
    try:
        return await maker.add_text(source, task)
    finally:
        maker.close(source)


def text_task(document: ReadDocument) -> TextTask:
    """Every page's lines at their estimated places."""
    pages = [
        TextPage(
            page.page,
            page.width_px or 0,
            page.height_px or 0,
            tuple(
                TextLine(line.text, line.box_px, line.is_rtl)
                for block in blocks_of(page, is_markdown=document.is_markdown)
                for line in block.lines
            ),
            page.turned_degrees,
        )
        for page in document.answer.pages
        # A page that could not be decoded has no size.
        if page.width_px and page.height_px
    ]
    return TextTask(tuple(pages))


FORMAT = OutputFormat("searchable-pdf", "application/pdf", ".searchable.pdf", render)
