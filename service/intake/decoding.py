"""From a file's bytes to the pixels of one page, and with its text to a searchable PDF.

The work of an image process, without processes and sockets.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import pypdfium2  # type: ignore[import-untyped] # ships no types
from PIL import Image

from service.errors import (
    AspectRatioError,
    DeepSynthError,
    InternalError,
    PageOutOfRangeError,
    TooManyPagesError,
    TooManyPixelsError,
    UndecodableError,
    UnsupportedFormatError,
    UnsupportedPixelsError,
)
from service.intake.document import Document
from service.intake.formats import FileFormat, read_format
from service.intake.limits import Box, DecodeTask
from service.intake.page_copy import CopyTask, PageCopy, copy_page
from service.intake.pages import Contents, DecodedPage
from service.intake.pdf import has_user_units, open_pdf, pdf_pages, read_pdf_page
from service.intake.preview import Preview, PreviewTask, to_jpeg
from service.intake.searchable import add_text, make_pdf
from service.intake.selection import MAX_PAGE_NUMBER
from service.intake.text_layer import TextTask
from shared.deepseek_ocr.forms import (
    MAX_IMAGE_PIXELS,
    MAX_IMAGE_SIDE_PX,
    PageImage,
    PageViews,
    PreparedPage,
    in_colours,
    may_be_image,
)
from shared.deepseek_ocr.geometry import plan_views
from shared.deepseek_ocr.images import prepare_views, rescaled
from shared.deepseek_ocr.line_views import is_crop, view_of
from shared.images.canvases import pack
from shared.images.errors import ImageError, ImageReason, decoding
from shared.images.frames import without_frames
from shared.images.ink import Relief, ink_of, relief_of
from shared.images.levelling import levelled
from shared.images.orientation import find_orientation
from shared.images.page_ink import Turn
from shared.images.page_lines import lines_of_page
from shared.images.pixels import without_colours
from shared.images.raster import RasterFile

_ERRORS: dict[ImageReason, type[DeepSynthError]] = {
    ImageReason.UNSUPPORTED_FORMAT: UnsupportedFormatError,
    ImageReason.UNSUPPORTED_PIXELS: UnsupportedPixelsError,
    ImageReason.DAMAGED: UndecodableError,
    ImageReason.TOO_MANY_PIXELS: TooManyPixelsError,
    ImageReason.ASPECT_RATIO: AspectRatioError,
    ImageReason.TOO_MANY_PAGES: TooManyPagesError,
    ImageReason.NO_SUCH_PAGE: PageOutOfRangeError,
}


def _cut(image: Image.Image, box_px: Box) -> Image.Image:
    """A part of a page, made smaller if it could not be sent as an image."""
    part = image.crop(box_px)
    if not may_be_image(*part.size):
        scale = min(math.sqrt(MAX_IMAGE_PIXELS / (part.width * part.height)), MAX_IMAGE_SIDE_PX / max(part.size))
        part = part.resize((max(1, int(part.width * scale)), max(1, int(part.height * scale))))
    return part


_TRANSPOSES = {
    90: Image.Transpose.ROTATE_270,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_90,
}
"""Pillow turns counter-clockwise."""


def _upright(
    image: Image.Image, turn_degrees: Turn | None, *, keeps_frames: bool = True
) -> tuple[Image.Image, Relief, Turn]:
    """The page turned clockwise, with its relief and the turn; None finds the turn by the page's print."""
    relief = relief_of(image)
    # A frame looks the same upside down, and hides what its print looks like.
    bare = without_frames(image, relief)
    bare_relief = relief if bare is image else relief_of(bare)
    if turn_degrees is None:
        turn_degrees = find_orientation(bare_relief).turn_degrees
    if not keeps_frames:
        image, relief = bare, bare_relief
    if turn_degrees:
        image = image.transpose(_TRANSPOSES[turn_degrees])
        relief = relief_of(image)
    return image, relief, turn_degrees


class OpenDocument:
    """A file that is read page by page; a PDF stays parsed until `close`.

    Args:
        document: Its data, the selection of pages, and the limits.

    Raises:
        DeepSynthError: Why none of it can be read, however a library fails on damaged bytes.
    """

    def __init__(self, document: Document) -> None:
        self._data = document.data
        self._limits = document.limits
        self._pdf: pypdfium2.PdfDocument | None = None
        self._raster: RasterFile | None = None
        self._has_user_units = False
        with _service_errors():
            file_format = read_format(document.data)
            if file_format is FileFormat.PDF:
                self._pdf = open_pdf(document.data)
                self._has_user_units = has_user_units(document.data)
                pages = pdf_pages(self._pdf, document.selection, document.limits)
            else:
                self._raster = RasterFile(document.data, file_format, document.limits)
                pages = self._raster.pages(document.selection)
        self.contents = Contents(file_format, pages)

    def decode(self, task: DecodeTask) -> DecodedPage:
        """Decode one page into the form that the task asks for; raises what `page_image` raises."""
        image, is_damaged = self.page_image(task.page, may_be_grey=True)
        image, relief, turned_degrees = _upright(image, task.turn_degrees, keeps_frames=not task.lines_from_views)
        if task.cut_px is not None:
            image = _cut(image, task.cut_px)
            relief = relief_of(image)
        plan = plan_views(image.width, image.height, task.mode, task.geometry)
        ink = ink_of(relief)
        # Lines can be found on every texture; without marks of print none is one.
        has_lines = 0 < task.lines_from_views <= plan.num_views and ink.marks > 0
        strips = lines_of_page(image, task.em_px) if has_lines else ()
        if task.lines_from_views > 1 and is_crop(plan, strips):
            strips = ()
        if not strips and task.lines_from_views:
            # What its ink tells stays where it is on the page.
            image = levelled(image, relief)
        prepared: PreparedPage
        if strips:
            prepared = view_of(pack(strips)[0], task.geometry)
        elif task.scale != 1.0:
            prepared = PageViews(plan, *prepare_views(rescaled(image, task.scale), plan, task.geometry))
        elif task.wants_image and may_be_image(image.width, image.height):
            prepared = PageImage(plan, in_colours(np.asarray(image).reshape(image.height, image.width, -1)))
        else:
            prepared = PageViews(plan, *prepare_views(image, plan, task.geometry))
        return DecodedPage(
            self.contents.file_format,
            task.page,
            image.width,
            image.height,
            ink,
            is_damaged,
            prepared,
            turned_degrees,
            strips,
        )

    def page_image(self, page: int, *, may_be_grey: bool = False) -> tuple[Image.Image, bool]:
        """Decode one page at full size.

        Args:
            page: Its number, from 1.
            may_be_grey: Return a page without colours in mode L.

        Returns:
            The page, upright and RGB, and whether a part of it is missing.

        Raises:
            DeepSynthError: Why the page cannot be read, however a library fails on damaged bytes.
        """
        with _service_errors():
            if self._pdf is not None:
                image, is_damaged = read_pdf_page(
                    self._pdf, page, self._limits, self._data, has_user_units=self._has_user_units
                )
            elif self._raster is not None:
                seen = self._raster.read(page, may_be_grey=may_be_grey)
                image, is_damaged = seen.image, seen.is_damaged
            else:
                raise InternalError("the document is closed")
            return without_colours(image) if may_be_grey else image, is_damaged

    def preview(self, task: PreviewTask) -> Preview:
        """Make a picture of one page to look at; raises what `page_image` raises."""
        image, _ = self.page_image(task.page)
        image, _, turned_degrees = _upright(image, task.turn_degrees)
        width_px, height_px = image.size
        return Preview(task.page, self._num_pages(), width_px, height_px, turned_degrees, to_jpeg(image))

    def copy(self, task: CopyTask) -> PageCopy:
        """Copy one page at full size or as a thumbnail; raises what `page_image` raises."""
        image, _ = self.page_image(task.page)
        return copy_page(image, task)

    def _num_pages(self) -> int:
        """Pages that the file has, whatever was selected and whatever the limits; 1 for an animation."""
        with _service_errors():
            if self._pdf is not None:
                return len(self._pdf)
            if self._raster is None:
                raise InternalError("the document is closed")
            return self._raster.count_pages(MAX_PAGE_NUMBER)

    def searchable_pdf(self, task: TextTask) -> bytes:
        """Add text to the document.

        Args:
            task: The text.

        Returns:
            A PDF.

        Raises:
            DeepSynthError: Why it cannot be made, however a library fails on damaged bytes.
        """
        with _service_errors():
            if self._pdf is not None:
                return add_text(self._data, self._pdf, task.pages)
            if self._raster is None:
                raise InternalError("the document is closed")
            return make_pdf(self._raster, task.pages)

    def close(self) -> None:
        """Free the file and what PDFium holds."""
        self._raster = None
        if self._pdf is not None:
            self._pdf.close()
            self._pdf = None


@contextlib.contextmanager
def _service_errors() -> Iterator[None]:
    try:
        # Around PDFium too: what it draws goes through Pillow.
        with decoding():
            yield
    except ImageError as error:
        raise _ERRORS[error.reason](str(error), public=error.facts) from error
