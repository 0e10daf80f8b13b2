"""From a file's bytes to the pixels of one page: the work of an image process, without processes and sockets."""

from __future__ import annotations

import contextlib
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pypdfium2  # type: ignore[import-untyped] # ships no types
from PIL import Image

from service.errors import DeepSynthError, EmptyFileError, InternalError, UndecodableError, UnsupportedFormatError
from service.intake.formats import FileFormat, detect_format
from service.intake.limits import DecodeTask, IntakeLimits
from service.intake.pdf import open_pdf, pdf_pages, read_pdf_page
from service.intake.raster import raster_pages, read_raster_page
from shared.deepseek_ocr.forms import PageImage, PageViews, PreparedPage, may_be_image
from shared.deepseek_ocr.geometry import plan_views
from shared.deepseek_ocr.images import prepare_views
from shared.images.ink import PageInk, find_ink


@dataclass(frozen=True, slots=True)
class Contents:
    """What an opened file has to read."""

    file_format: FileFormat
    pages: tuple[int, ...]
    """Numbers of the pages to read, from 1, rising."""


@dataclass(frozen=True, slots=True)
class DecodedPage:
    """A decoded page, ready for the engine."""

    file_format: FileFormat
    page: int
    """Its number in the document, from 1."""
    width_px: int
    height_px: int
    ink: PageInk
    is_damaged: bool
    """Whether a part of it is missing, since an image on it cannot be decoded."""
    prepared: PreparedPage


class OpenDocument:
    """A file that is read page by page; a PDF stays parsed until `close`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._format: FileFormat | None = None
        self._pdf: pypdfium2.PdfDocument | None = None

    def open(self, selection: tuple[int, ...] | None, limits: IntakeLimits) -> Contents:
        """Find out what there is to read.

        Args:
            selection: Page numbers from 1; None for all.
            limits: Bounds on the document.

        Returns:
            Its pages.

        Raises:
            DeepSynthError: Why none of it can be read, however a library fails on damaged bytes.
        """
        if not self._data:
            raise EmptyFileError
        self._format = detect_format(self._data)
        if self._format is None:
            raise UnsupportedFormatError
        with _damage_is_undecodable():
            if self._format is not FileFormat.PDF:
                return Contents(self._format, raster_pages(self._data, self._format, selection, limits))
            self._pdf = open_pdf(self._data)
            return Contents(self._format, pdf_pages(self._pdf, selection, limits))

    def decode(self, task: DecodeTask) -> DecodedPage:
        """Decode one page into the form that the task asks for; raises what `page_image` raises."""
        file_format, image, is_damaged = self.page_image(task)
        plan = plan_views(image.width, image.height, task.mode, task.geometry)
        prepared: PreparedPage
        if task.wants_image and may_be_image(image.width, image.height):
            prepared = PageImage(plan, np.asarray(image))
        else:
            prepared = PageViews(plan, *prepare_views(image, plan, task.geometry))
        return DecodedPage(
            file_format, task.page, image.width, image.height, find_ink(image), is_damaged, prepared
        )

    def page_image(self, task: DecodeTask) -> tuple[FileFormat, Image.Image, bool]:
        """Decode one page at full size.

        Args:
            task: Which page, and the bounds.

        Returns:
            The file's format, the page, upright and RGB, and whether a part of it is missing.

        Raises:
            DeepSynthError: Why the page cannot be read, however a library fails on damaged bytes.
        """
        if self._format is None:
            raise InternalError("the document has not been opened")
        with _damage_is_undecodable():
            if self._pdf is not None:
                return self._format, *read_pdf_page(self._pdf, task.page, task.limits)
            # Opened for each page: that reads headers only, and a Pillow image keeps state of the last frame.
            return self._format, read_raster_page(self._data, task.page, task.limits), False

    def close(self) -> None:
        """Free what PDFium holds."""
        if self._pdf is not None:
            self._pdf.close()
            self._pdf = None


@contextlib.contextmanager
def _damage_is_undecodable() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # Pillow warns about damage that it can ignore; no one would see the warnings.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except DeepSynthError:
        raise
    except (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        LookupError,
        EOFError,
        ArithmeticError,
        struct.error,
        AttributeError,
    ) as error:
        # What Pillow's codecs raise on damaged files; the caller handles running out of memory.
        raise UndecodableError(type(error).__name__) from error
