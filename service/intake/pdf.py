"""PDF files: page sizes before rendering, then one page.

Runs in an image process only, in its single thread: PDFium is not thread-safe.
"""

from __future__ import annotations

import math

import pypdfium2  # type: ignore[import-untyped] # ships no types
from PIL import Image
from pypdfium2 import raw

from service.errors import PdfEncryptedError, UndecodableError
from service.intake.limits import IntakeLimits
from service.intake.raster import check_size
from service.intake.selection import select

POINTS_PER_INCH = 72


def open_pdf(data: bytes) -> pypdfium2.PdfDocument:
    """Parse a file.

    Args:
        data: The file.

    Returns:
        The document, which the caller closes.

    Raises:
        PdfEncryptedError: It asks for a password.
        UndecodableError: It is damaged.
    """
    try:
        return pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if raw.FPDF_GetLastError() == raw.FPDF_ERR_PASSWORD:
            raise PdfEncryptedError from error
        raise UndecodableError("PDFium does not open it") from error


def read_pdf(
    document: pypdfium2.PdfDocument, selection: tuple[int, ...] | None, position: int, limits: IntakeLimits
) -> tuple[tuple[int, ...], Image.Image]:
    """Render one page.

    Args:
        document: An open file.
        selection: Pages to read, from 1; None for all.
        position: Which of them to render, from 0.
        limits: Limits of the document.

    Returns:
        The numbers of all pages to read, and the one at `position` as an RGB image at `limits.pdf_dpi`.

    Raises:
        UndecodableError: It is damaged.
    """
    try:
        num_pages = len(document)
        if num_pages < 1:
            raise UndecodableError("no pages")
        pages = select(selection, num_pages, limits.max_pdf_pages)
        for number in pages if position == 0 else (pages[position],):
            width_pt, height_pt = document.get_page_size(number - 1)
            scale = limits.pdf_dpi / POINTS_PER_INCH
            check_size(math.ceil(width_pt * scale), math.ceil(height_pt * scale), limits)
        # Filled-in form fields are part of what a person sees. Only the first call does something.
        document.init_forms()
        return pages, _render(document, pages[position], limits.pdf_dpi / POINTS_PER_INCH)
    except pypdfium2.PdfiumError as error:
        raise UndecodableError("PDFium does not render it") from error


def _render(document: pypdfium2.PdfDocument, number: int, scale: float) -> Image.Image:
    page = document[number - 1]
    try:
        bitmap = page.render(scale=scale, fill_color=(255, 255, 255, 255), rev_byteorder=True)
        return bitmap.to_pil().convert("RGB")
    finally:
        page.close()
