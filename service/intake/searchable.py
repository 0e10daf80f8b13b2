"""Searchable PDFs: a document's own pages with their text as an invisible layer, drawn before what the page shows.

Nothing visible is touched. A PDF keeps its pages, objects and compressed streams. A page that has text already gets no
layer, so that no word is found twice. An image becomes a page of its size in print.

Runs in an image process only.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence

import pikepdf
import pypdfium2  # type: ignore[import-untyped] # ships no types
from pikepdf import Dictionary, Name

from service.errors import PdfEncryptedError, UndecodableError
from service.intake.embedding import embed_frames
from service.intake.glyphless import ASCENT, DESCENT, UNITS_PER_EM, GlyphlessFont, advance
from service.intake.text_layer import TextLine, TextPage
from shared.images.raster import RasterFile

_FONT = Name("/DeepSynthText")
_INVISIBLE = 3
"""Text rendering mode: neither fill nor stroke."""
_MIN_PX = 0.1

Matrix = tuple[float, float, float, float, float, float]


def add_text(data: bytes, document: pypdfium2.PdfDocument, pages: Sequence[TextPage]) -> bytes:
    """Add text to a PDF.

    Args:
        data: The file.
        document: The same file, opened by PDFium, which finds text that is there already.
        pages: What was read.

    Returns:
        The whole document, its other pages included.

    Raises:
        PdfEncryptedError: It asks for a password.
        UndecodableError: qpdf cannot repair it, though PDFium can show it.
    """
    try:
        with pikepdf.open(io.BytesIO(data)) as pdf:
            if max((page.page for page in pages), default=0) > len(pdf.pages):
                raise UndecodableError("qpdf finds fewer pages than PDFium")
            blank = [page for page in pages if page.lines and not _has_text(document, page.page)]
            font = GlyphlessFont(_characters(blank))
            resource = font.add_to(pdf) if blank else None
            for page in blank:
                target = pdf.pages[page.page - 1]
                _draw(pdf, target, page, font, resource, _from_upright(target, page))
            return _save(pdf)
    except pikepdf.PasswordError as error:
        raise PdfEncryptedError from error
    except (pikepdf.PikepdfError, RuntimeError, NotImplementedError) as error:
        raise UndecodableError("qpdf does not read it") from error


def make_pdf(file: RasterFile, pages: Sequence[TextPage]) -> bytes:
    """Make a PDF of an image file.

    Args:
        file: An open image file.
        pages: What was read; other pages of the file are left out.

    Returns:
        A document with one page for each of `pages`.
    """
    with pikepdf.new() as pdf:
        font = GlyphlessFont(_characters(pages))
        resource = font.add_to(pdf)
        frames = embed_frames(pdf, file, [page.page for page in pages])
        for page, frame in zip(pages, frames, strict=True):
            target = pdf.add_blank_page(page_size=(frame.width_pt, frame.height_pt))
            target.obj.Resources = Dictionary(XObject=Dictionary(Image=frame.image))
            cm = " ".join(_number(value) for value in frame.matrix)
            target.obj.Contents = pdf.make_stream(f"q {cm} cm /Image Do Q\n".encode())
            width_px, height_px = _uploaded_size(page)
            scale = (frame.width_pt / width_px, 0.0, 0.0, frame.height_pt / height_px, 0.0, 0.0)
            _draw(pdf, target, page, font, resource, _after(_turned_back(page), scale))
        return _save(pdf)


def _characters(pages: Sequence[TextPage]) -> set[str]:
    return {character for page in pages for line in page.lines for character in line.text}


def _save(pdf: pikepdf.Pdf) -> bytes:
    output = io.BytesIO()
    if pdf.is_encrypted:
        # What an owner forbids stays forbidden. qpdf takes no options for streams here, and keeps deflated ones.
        pdf.save(output, encryption=True)
    else:
        # Streams stay as they were compressed; the layer's own are compressed already.
        undecoded = pikepdf.StreamDecodeLevel.none
        pdf.save(output, compress_streams=False, stream_decode_level=undecoded, deterministic_id=True)
    return output.getvalue()


def _has_text(document: pypdfium2.PdfDocument, number: int) -> bool:
    page = document[number - 1]
    try:
        text = page.get_textpage()
        try:
            return bool(str(text.get_text_range()).strip())
        finally:
            text.close()
    finally:
        page.close()


def _from_upright(target: pikepdf.Page, page: TextPage) -> Matrix:
    """From pixels of the upright page, y upwards, to the page's own space, which /Rotate turns."""
    return _after(_turned_back(page), _from_shown(target, _uploaded_size(page)))


def _uploaded_size(page: TextPage) -> tuple[int, int]:
    """Width and height of the page before the service turned it, px."""
    is_across = page.turned_degrees in (90, 270)
    return (page.height_px, page.width_px) if is_across else (page.width_px, page.height_px)


def _turned_back(page: TextPage) -> Matrix:
    """From pixels of the upright page to those of the page as it was uploaded, both y upwards."""
    width, height = float(page.width_px), float(page.height_px)
    matrices: dict[int, Matrix] = {
        0: (1.0, 0.0, 0.0, 1.0, 0.0, 0.0),
        90: (0.0, 1.0, -1.0, 0.0, height, 0.0),
        180: (-1.0, 0.0, 0.0, -1.0, width, height),
        270: (0.0, -1.0, 1.0, 0.0, 0.0, width),
    }
    return matrices[page.turned_degrees]


def _after(first: Matrix, then: Matrix) -> Matrix:
    """One matrix for two, as PDF multiplies them."""
    a, b, c, d, e, f = first
    p, q, r, s, t, u = then
    return a * p + b * r, a * q + b * s, c * p + d * r, c * q + d * s, e * p + f * r + t, e * q + f * s + u


def _from_shown(target: pikepdf.Page, size_px: tuple[int, int]) -> Matrix:
    """From pixels of the page as it is shown, y upwards, to its own space."""
    width_px, height_px = size_px
    left, bottom, right, top = _visible_box(target)
    width, height = right - left, top - bottom
    # Not through the page's attributes: /Rotate may be inherited.
    turn = int(target.rotation) % 360
    if turn == 90:
        return (0.0, height / width_px, -width / height_px, 0.0, right, bottom)
    if turn == 180:
        return (-width / width_px, 0.0, 0.0, -height / height_px, right, top)
    if turn == 270:
        return (0.0, -height / width_px, width / height_px, 0.0, left, top)
    return (width / width_px, 0.0, 0.0, height / height_px, left, bottom)


def _visible_box(target: pikepdf.Page) -> tuple[float, float, float, float]:
    """What PDFium renders: the crop box within the media box, as left, bottom, right, top."""
    media, crop = _ordered(target.mediabox), _ordered(target.cropbox)
    left, bottom = max(media[0], crop[0]), max(media[1], crop[1])
    right, top = min(media[2], crop[2]), min(media[3], crop[3])
    return (left, bottom, right, top) if left < right and bottom < top else media


def _ordered(box: pikepdf.Object) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(number) for number in box)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _draw(
    pdf: pikepdf.Pdf,
    target: pikepdf.Page,
    page: TextPage,
    font: GlyphlessFont,
    resource: pikepdf.Object | None,
    matrix: Matrix,
) -> None:
    """Put the text before the page's content, which then begins in the state that it expects."""
    # Copies: pages may share their resources, and inherit them.
    resources = Dictionary(dict(target.resources.items()))
    fonts = Dictionary(dict(resources.get("/Font", Dictionary()).items()))
    name = _FONT
    while name in fonts:
        name = Name(f"{name}X")
    fonts[name] = resource
    resources[Name.Font] = fonts
    target.obj.Resources = resources
    content = _content(page, font, str(name), matrix)
    stream = pikepdf.Stream(pdf, zlib.compress(content), Filter=Name.FlateDecode)
    target.contents_add(pdf.make_indirect(stream), prepend=True)


def _content(page: TextPage, font: GlyphlessFont, font_name: str, matrix: Matrix) -> bytes:
    cm = " ".join(_number(value) for value in matrix)
    operations = [f"q {cm} cm BT {_INVISIBLE} Tr".encode()]
    operations += [_show(line, page.height_px, font, font_name) for line in page.lines if line.text]
    return b"\n".join([*operations, b"ET Q\n"])


def _show(line: TextLine, page_height_px: int, font: GlyphlessFont, font_name: str) -> bytes:
    """One line, as high as its box and stretched to its width."""
    left, top, right, bottom = line.box_px
    size = max(bottom - top, _MIN_PX)
    natural = size * sum(advance(character) for character in line.text) / UNITS_PER_EM
    stretch = 100 * max(right - left, _MIN_PX) / natural
    baseline = page_height_px - bottom - size * DESCENT / (ASCENT - DESCENT)
    # Mirrored text runs to the left: its characters are in reading order, and their places are right as well.
    direction, start = (-1, right) if line.is_rtl else (1, left)
    head = (
        f"{font_name} {_number(size)} Tf {_number(stretch)} Tz "
        f"{direction} 0 0 1 {_number(start)} {_number(baseline)} Tm "
    )
    return head.encode() + font.encode(line.text) + b" Tj"


def _number(value: float) -> str:
    """As PDF writes numbers: without an exponent."""
    return f"{value:.6f}".rstrip("0").rstrip(".")
