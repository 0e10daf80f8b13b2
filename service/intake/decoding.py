"""One decode order from bytes to pixels: the work of a decoding process, free of processes and pipes."""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from service.errors import DeepSynthError, EmptyFileError, UndecodableError, UnsupportedFormatError
from service.intake.formats import FileFormat, detect_format
from service.intake.limits import DecodeOrder
from service.intake.pdf import read_pdf
from service.intake.raster import read_raster
from shared.deepseek_ocr.forms import PageImage, PageViews, PreparedPage, may_be_image
from shared.deepseek_ocr.geometry import plan_views
from shared.deepseek_ocr.images import prepare_views


@dataclass(frozen=True, slots=True)
class DecodedPage:
    """A page ready for the engine."""

    file_format: FileFormat
    pages: tuple[int, ...]
    """Numbers of all pages to read of this document, from 1."""
    page: int
    """Number of this one."""
    width_px: int
    height_px: int
    is_blank: bool
    prepared: PreparedPage


def open_page(data: bytes, order: DecodeOrder) -> tuple[FileFormat, tuple[int, ...], Image.Image]:
    """Decode one page of a document.

    Args:
        data: The file.
        order: Which page, and the bounds.

    Returns:
        The file's format, the numbers of all its pages to read, and the page, upright and RGB.

    Raises:
        DeepSynthError: Why it cannot be read; any way a codec may fail on damaged bytes is among them.
    """
    if not data:
        raise EmptyFileError
    file_format = detect_format(data)
    if file_format is None:
        raise UnsupportedFormatError
    try:
        with warnings.catch_warnings():
            # Pillow warns about damage that it can ignore.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if file_format is FileFormat.PDF:
                return (file_format, *read_pdf(data, order.selection, order.position, order.limits))
            return (file_format, *read_raster(data, file_format, order.selection, order.position, order.limits))
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
        # What Pillow's codecs raise on damaged files; running out of memory is told apart by the caller.
        raise UndecodableError(type(error).__name__) from error


def decode(data: bytes, order: DecodeOrder) -> DecodedPage:
    """Carry out an order.

    Args:
        data: The file.
        order: Which page, how, and the bounds.

    Returns:
        The page, in the form that was asked for.
    """
    file_format, pages, image = open_page(data, order)
    plan = plan_views(image.width, image.height, order.mode, order.geometry)
    prepared: PreparedPage
    if order.wants_image and may_be_image(image.width, image.height):
        prepared = PageImage(plan, np.asarray(image))
    else:
        prepared = PageViews(plan, *prepare_views(image, plan, order.geometry))
    return DecodedPage(
        file_format=file_format,
        pages=pages,
        page=pages[order.position],
        width_px=image.width,
        height_px=image.height,
        is_blank=len(image.getcolors(1) or ()) == 1,
        prepared=prepared,
    )
