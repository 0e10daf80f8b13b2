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

from service.errors import DeepSynthError, EmptyFileError, UndecodableError, UnsupportedFormatError
from service.intake.document import Document
from service.intake.formats import FileFormat, detect_format
from service.intake.limits import DecodeTask
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
    """A file that is read page by page; a PDF stays parsed until `close`.

    Args:
        document: Its data, the selection of pages, and the limits.

    Raises:
        DeepSynthError: Why none of it can be read, however a library fails on damaged bytes.
    """

    def __init__(self, document: Document) -> None:
        self._data, self._limits = document.data, document.limits
        self._pdf: pypdfium2.PdfDocument | None = None
        if not document.data:
            raise EmptyFileError
        file_format = detect_format(document.data)
        if file_format is None:
            raise UnsupportedFormatError
        with _damage_is_undecodable():
            if file_format is FileFormat.PDF:
                self._pdf = open_pdf(document.data)
                pages = pdf_pages(self._pdf, document.selection, document.limits)
            else:
                pages = raster_pages(document.data, file_format, document.selection, document.limits)
        self.contents = Contents(file_format, pages)

    def decode(self, task: DecodeTask) -> DecodedPage:
        """Decode one page into the form that the task asks for; raises what `page_image` raises."""
        image, is_damaged = self.page_image(task.page)
        plan = plan_views(image.width, image.height, task.mode, task.geometry)
        prepared: PreparedPage
        if task.wants_image and may_be_image(image.width, image.height):
            prepared = PageImage(plan, np.asarray(image))
        else:
            prepared = PageViews(plan, *prepare_views(image, plan, task.geometry))
        return DecodedPage(
            self.contents.file_format,
            task.page,
            image.width,
            image.height,
            find_ink(image),
            is_damaged,
            prepared,
        )

    def page_image(self, page: int) -> tuple[Image.Image, bool]:
        """Decode one page at full size.

        Args:
            page: Its number, from 1.

        Returns:
            The page, upright and RGB, and whether a part of it is missing.

        Raises:
            DeepSynthError: Why the page cannot be read, however a library fails on damaged bytes.
        """
        with _damage_is_undecodable():
            if self._pdf is not None:
                return read_pdf_page(self._pdf, page, self._limits)
            # Opened for each page: that reads headers only, and a Pillow image keeps state of the last frame.
            return read_raster_page(self._data, page, self._limits), False

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
