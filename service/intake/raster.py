"""PNG, JPEG, WebP and TIFF files: limits from the header, frames, then one page.

Runs in an image process only.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

from service.errors import (
    AspectRatioError,
    MultiFrameError,
    PageOutOfRangeError,
    TooManyPagesError,
    TooManyPixelsError,
    UndecodableError,
)
from service.intake.formats import FileFormat
from service.intake.limits import IntakeLimits
from service.intake.pixels import as_seen

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")


def check_size(width_px: int, height_px: int, limits: IntakeLimits) -> None:
    """Check a page's size before its pixels are decoded.

    Args:
        width_px: From the file's header.
        height_px: From the file's header.
        limits: Limits of the document.

    Raises:
        UndecodableError: A side is zero.
        TooManyPixelsError: Too large.
        AspectRatioError: Too narrow.
    """
    if width_px < 1 or height_px < 1:
        raise UndecodableError("a side is zero")
    if max(width_px, height_px) > limits.max_side_px or width_px * height_px > limits.max_pixels:
        raise _too_many_pixels(limits)
    if max(width_px, height_px) > limits.max_aspect_ratio * min(width_px, height_px):
        raise AspectRatioError(public={"max_aspect_ratio": limits.max_aspect_ratio})


def _too_many_pixels(limits: IntakeLimits) -> TooManyPixelsError:
    return TooManyPixelsError(public={"max_pixels": limits.max_pixels, "max_side_px": limits.max_side_px})


def raster_pages(
    data: bytes, file_format: FileFormat, selection: tuple[int, ...] | None, limits: IntakeLimits
) -> tuple[int, ...]:
    """Find out which frames to read.

    Args:
        data: The file.
        file_format: What its first bytes say.
        selection: Frames to read, from 1; None for all of a TIFF and the only one of others.
        limits: Limits of the document.

    Returns:
        Their numbers.

    Raises:
        MultiFrameError: An animation without a selection.
        PageOutOfRangeError: It has fewer frames.
        TooManyPagesError: It has too many.
    """
    with _opened(data, limits) as image:
        if image.format == "MPO":
            # A phone's JPEG with a gain map or depth image after the photograph; viewers show only the first.
            if selection not in (None, (1,)):
                raise PageOutOfRangeError(public={"pages": 1})
            return (1,)
        if selection is not None:
            if not _has_frame(image, selection[-1]):
                raise PageOutOfRangeError
            return selection
        if file_format is not FileFormat.TIFF:
            if _has_frame(image, 2):
                raise MultiFrameError
            return (1,)
        count = 1
        # Not n_frames: it reads files of thousands of frames to the end.
        while count <= limits.max_frames and _has_frame(image, count + 1):
            count += 1
        if count > limits.max_frames:
            raise TooManyPagesError(public={"limit": limits.max_frames})
        return tuple(range(1, count + 1))


def read_raster_page(data: bytes, page: int, limits: IntakeLimits) -> Image.Image:
    """Decode one frame.

    Args:
        data: The file.
        page: The frame's number, from 1.
        limits: Limits of a page.

    Returns:
        The frame, upright and RGB.
    """
    with _opened(data, limits) as image:
        if page > 1:
            image.seek(page - 1)
        check_size(*image.size, limits)
        return as_seen(image)


@contextlib.contextmanager
def _opened(data: bytes, limits: IntakeLimits) -> Iterator[Image.Image]:
    Image.MAX_IMAGE_PIXELS = limits.max_pixels
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(limits) from error
    except UnidentifiedImageError as error:
        raise UndecodableError("the header names a supported format, but the rest does not match") from error


def _has_frame(image: Image.Image, number: int) -> bool:
    try:
        image.seek(number - 1)
    except EOFError:
        return False
    return True
