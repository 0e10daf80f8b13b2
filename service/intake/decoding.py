"""From a file's bytes to the pixels of one page: the work of an image process, without processes and sockets."""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass

import numpy as np
import pypdfium2  # type: ignore[import-untyped] # ships no types
from PIL import Image

from service.errors import DeepSynthError, EmptyFileError, UndecodableError, UnsupportedFormatError
from service.intake.formats import FileFormat, detect_format
from service.intake.limits import DecodeTask
from service.intake.pdf import open_pdf, read_pdf
from service.intake.raster import read_raster
from shared.deepseek_ocr.forms import PageImage, PageViews, PreparedPage, may_be_image
from shared.deepseek_ocr.geometry import plan_views
from shared.deepseek_ocr.images import prepare_views


@dataclass(frozen=True, slots=True)
class DecodedPage:
    """A decoded page, ready for the engine."""

    file_format: FileFormat
    pages: tuple[int, ...]
    """Numbers of all pages to read of this document, from 1."""
    page: int
    """Number of this one."""
    width_px: int
    height_px: int
    is_blank: bool
    prepared: PreparedPage


class OpenDocument:
    """A file that is read page by page; a PDF is parsed at its first page and stays open until `close`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._pdf: pypdfium2.PdfDocument | None = None

    def decode(self, task: DecodeTask) -> DecodedPage:
        """Decode one page into the form that the task asks for; raises what `open_page` raises."""
        file_format, pages, image = self.open_page(task)
        plan = plan_views(image.width, image.height, task.mode, task.geometry)
        prepared: PreparedPage
        if task.wants_image and may_be_image(image.width, image.height):
            prepared = PageImage(plan, np.asarray(image))
        else:
            prepared = PageViews(plan, *prepare_views(image, plan, task.geometry))
        return DecodedPage(
            file_format=file_format,
            pages=pages,
            page=pages[task.position],
            width_px=image.width,
            height_px=image.height,
            is_blank=len(image.getcolors(1) or ()) == 1,
            prepared=prepared,
        )

    def open_page(self, task: DecodeTask) -> tuple[FileFormat, tuple[int, ...], Image.Image]:
        """Decode one page at full size.

        Args:
            task: Which page, and the bounds.

        Returns:
            The file's format, the numbers of all its pages to read, and the page, upright and RGB.

        Raises:
            DeepSynthError: Why it cannot be read, however a codec fails on damaged bytes.
        """
        if not self._data:
            raise EmptyFileError
        file_format = detect_format(self._data)
        if file_format is None:
            raise UnsupportedFormatError
        try:
            with warnings.catch_warnings():
                # Pillow warns about damage that it can ignore; no one would see the warnings.
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                return (file_format, *self._read(file_format, task))
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

    def _read(self, file_format: FileFormat, task: DecodeTask) -> tuple[tuple[int, ...], Image.Image]:
        if file_format is not FileFormat.PDF:
            # Opened for each page: that reads headers only, and a Pillow image keeps state of the last frame.
            return read_raster(self._data, file_format, task.selection, task.position, task.limits)
        if self._pdf is None:
            self._pdf = open_pdf(self._data)
        return read_pdf(self._pdf, task.selection, task.position, task.limits)

    def close(self) -> None:
        """Free what PDFium holds."""
        if self._pdf is not None:
            self._pdf.close()
            self._pdf = None
