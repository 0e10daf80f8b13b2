"""PDF files: page sizes before rendering, then one page.

Runs in an image process only, in its single thread: PDFium is not thread-safe.
"""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Iterator

import numpy as np
import pikepdf
import pypdfium2  # type: ignore[import-untyped] # ships no types
from PIL import Image
from pypdfium2 import raw

from service.errors import PdfEncryptedError, UndecodableError
from service.intake.limits import IntakeLimits
from service.intake.selection import select
from shared.images.errors import ImageError
from shared.images.jpeg import read_markers

POINTS_PER_INCH = 72
_MOST_OF_A_PAGE = 0.5
_OBJECT_STREAM = re.compile(rb"/ObjStm\b[^\0]{0,512}?>>\s*stream\r?\n", re.DOTALL)
_USER_UNIT = re.compile(rb"/UserUnit\s+(\d{1,6}(?:\.\d*)?|\.\d+)")
_MOST_OBJECT_BYTES = 64 * 1024 * 1024
_PAINTING = re.compile(rb"(?:^|(?<=[\s\])>]))(?:Tj|TJ|Do|sh|BI|[fFSsBb]\*?|'|\")(?=[\s/\[(<]|$)")
"""Operators that draw something (ISO 32000-1, table 51)."""
_EMPTY_TEXT = re.compile(rb"\(\s*\)\s*(?:Tj|'|\")|<\s*>\s*(?:Tj|'|\")|\[[\s()]*\]\s*TJ")
_JPEG_END = b"\xff\xd9"


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
    # Nothing is loaded, so that PDFium forgets the error of an earlier file: one that opens and has no page sets none.
    raw.FPDF_LoadMemDocument64(b"", 0, None)
    try:
        return pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if raw.FPDF_GetLastError() == raw.FPDF_ERR_PASSWORD:
            raise PdfEncryptedError from error
        raise UndecodableError("PDFium does not open it") from error


def pdf_pages(
    document: pypdfium2.PdfDocument, selection: tuple[int, ...] | None, limits: IntakeLimits
) -> tuple[int, ...]:
    """Find out which pages to read.

    Args:
        document: An open file.
        selection: Pages to read, from 1; None for all.
        limits: Limits of the document.

    Returns:
        Their numbers.

    Raises:
        UndecodableError: It has none.
    """
    num_pages = len(document)
    if num_pages < 1:
        raise UndecodableError("no pages")
    return select(selection, num_pages, limits.max_pdf_pages)


def has_user_units(data: bytes) -> bool:
    """Whether any page may be in units other than 1/72 inch, which PDFium does not tell.

    Args:
        data: The file.

    Returns:
        Whether its objects name such a unit, in plain sight or in a compressed stream of objects.
    """
    if b"/UserUnit" in data:
        return True
    most_bytes = _MOST_OBJECT_BYTES
    for match in _OBJECT_STREAM.finditer(data):
        try:
            objects = zlib.decompressobj().decompress(memoryview(data)[match.end() :], most_bytes)
        except zlib.error:
            continue
        most_bytes -= len(objects)
        # Past the limit each page is looked at, which costs more and is as right.
        if b"/UserUnit" in objects or most_bytes <= 0:
            return True
    return False


def read_pdf_page(
    document: pypdfium2.PdfDocument, page: int, limits: IntakeLimits, data: bytes, *, has_user_units: bool = False
) -> tuple[Image.Image, bool]:
    """Render one page.

    Args:
        document: An open file.
        page: The page's number, from 1.
        limits: Limits of a page.
        data: The file.
        has_user_units: Whether to look for a unit of this page.

    Returns:
        The page at `limits.pdf_dpi`, or at the highest resolution within the limits if it is larger, RGB, and whether
        an image on it is damaged, so that a part of it is missing.

    Raises:
        UndecodableError: It is damaged, an image that makes up most of it is, or nothing of its content can be drawn.
    """
    try:
        width_pt, height_pt = document.get_page_size(page - 1)
        unit = _user_unit(document, page) if has_user_units else 1.0
        scale = fitting_scale(width_pt, height_pt, unit * limits.pdf_dpi / POINTS_PER_INCH, limits)
        limits.check_size(math.ceil(width_pt * scale), math.ceil(height_pt * scale))
        # Filled-in form fields are part of what a person sees. Only the first call does something.
        document.init_forms()
        return _render(document, page, scale, data)
    except pypdfium2.PdfiumError as error:
        raise UndecodableError("PDFium does not render it") from error


def fitting_scale(width_pt: float, height_pt: float, scale: float, limits: IntakeLimits) -> float:
    """The scale at which a page is drawn.

    Args:
        width_pt: Width in PDF units.
        height_pt: Height in PDF units.
        scale: Pixels per unit that are wanted.
        limits: Limits of a page.

    Returns:
        Pixels per unit, at most what is wanted, so that the drawn page is within the limits.
    """
    if width_pt <= 0 or height_pt <= 0:
        return scale
    # Sides are rounded up to whole pixels.
    by_side = (limits.max_side_px - 1) / max(width_pt, height_pt)
    by_area = math.sqrt(limits.max_pixels / (width_pt * height_pt))
    scale = min(scale, by_side)
    if math.ceil(width_pt * scale) * math.ceil(height_pt * scale) > limits.max_pixels:
        scale = min(scale, by_area)
        while math.ceil(width_pt * scale) * math.ceil(height_pt * scale) > limits.max_pixels:
            scale *= 0.999
    return scale


def _user_unit(document: pypdfium2.PdfDocument, page: int) -> float:
    """A page's unit in 1/72 inch. PDFium has no function for it, but writes it into a copy of the page."""
    copy = pypdfium2.PdfDocument.new()
    try:
        copy.import_pages(document, [page - 1])
        stream = io.BytesIO()
        copy.save(stream)
    finally:
        copy.close()
    found = _USER_UNIT.search(stream.getbuffer())
    unit = float(found[1]) if found else 1.0
    return unit if unit > 0 else 1.0


def _render(document: pypdfium2.PdfDocument, number: int, scale: float, data: bytes) -> tuple[Image.Image, bool]:
    page = document[number - 1]
    try:
        bitmap = page.render(scale=scale, fill_color=(255, 255, 255, 255), rev_byteorder=True)
        image = bitmap.to_pil().convert("RGB")
        damaged = list(_damaged_shares(page, image))
        has_objects = raw.FPDFPage_CountObjects(page) > 0
    finally:
        page.close()
    if sum(damaged) >= _MOST_OF_A_PAGE:
        raise UndecodableError("the image that makes up the page is damaged")
    if not has_objects and _paints(data, number):
        raise UndecodableError("none of the page's content can be drawn")
    return image, bool(damaged)


def _paints(data: bytes, number: int) -> bool:
    """Whether a page's content is more than nothing, though PDFium finds nothing to draw in it."""
    try:
        with pikepdf.open(io.BytesIO(data)) as pdf:
            contents = pdf.pages[number - 1].obj.get("/Contents")
            streams = contents if isinstance(contents, pikepdf.Array) else [contents]
            parts = [stream for stream in streams if isinstance(stream, pikepdf.Stream)]
            try:
                content = b"\n".join(part.read_bytes() for part in parts)
                return _PAINTING.search(_EMPTY_TEXT.sub(b"", content)) is not None
            except pikepdf.PdfError:
                # It cannot be decompressed.
                return True
    except (pikepdf.PikepdfError, RuntimeError, ValueError, LookupError):
        # qpdf does not read what PDFium does.
        return False


def _damaged_shares(page: pypdfium2.PdfPage, image: Image.Image) -> Iterator[float]:
    """Of each image that PDFium could not draw, or drew in part, what is missing as a share of the page."""
    width_pt, height_pt = page.get_size()
    for each in page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE]):
        left, bottom, right, top = each.get_bounds()
        across, down = image.width / width_pt, image.height / height_pt
        box = (left * across, (height_pt - top) * down, right * across, (height_pt - bottom) * down)
        missing = _missing_share(each)
        if not missing and _is_flat(image, box) and not _decodes(each):
            missing = 1.0
        if missing:
            yield missing * (right - left) * (top - bottom) / (width_pt * height_pt)


def _is_flat(image: Image.Image, box: tuple[float, float, float, float]) -> bool:
    """Whether nothing is drawn there, so that only images worth the time are decoded a second time."""
    left, top, right, bottom = (round(side) for side in box)
    part = np.asarray(image)[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    return bool(part.size) and int(part.max()) - int(part.min()) < 8


def _decodes(picture: pypdfium2.PdfImage) -> bool:
    try:
        picture.get_bitmap(render=False)
    except pypdfium2.PdfiumError:
        return False
    return True


def _missing_share(picture: pypdfium2.PdfImage) -> float:
    """How much of a JPEG is missing at its end; PDFium fills it with grey."""
    if picture.get_filters()[-1:] != ["DCTDecode"]:
        return 0.0
    data = bytes(picture.get_data())
    if _JPEG_END in data[-64:]:
        return 0.0
    try:
        file = read_markers(data)
        with Image.open(io.BytesIO(file.data), formats=("JPEG",)) as jpeg:
            jpeg.load()
            return file.missing_share(jpeg)
    except (ImageError, OSError, SyntaxError, ValueError):
        return 1.0
