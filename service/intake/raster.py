"""PNG, JPEG, WebP and TIFF files: limits from the header, frames, then one page.

Runs in an image process only.
"""

from __future__ import annotations

import io

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


def read_raster(
    data: bytes, file_format: FileFormat, selection: tuple[int, ...] | None, position: int, limits: IntakeLimits
) -> tuple[tuple[int, ...], Image.Image]:
    """Read one frame.

    Args:
        data: The file.
        file_format: What its first bytes say.
        selection: Frames to read, from 1; None for all of a TIFF and the only one of others.
        position: Which of them to decode, from 0.
        limits: Limits of the document.

    Returns:
        The numbers of all frames to read, and the image at `position`, upright and RGB.

    Raises:
        UndecodableError: The file is damaged.
    """
    Image.MAX_IMAGE_PIXELS = limits.max_pixels
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(*image.size, limits)
            pages = _pages(image, file_format, selection, limits)
            if pages[position] > 1:
                image.seek(pages[position] - 1)
                check_size(*image.size, limits)
            return pages, as_seen(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(limits) from error
    except UnidentifiedImageError as error:
        raise UndecodableError("the header names a supported format, but the rest does not match") from error


def _pages(
    image: Image.Image, file_format: FileFormat, selection: tuple[int, ...] | None, limits: IntakeLimits
) -> tuple[int, ...]:
    if image.format == "MPO":
        # A phone's JPEG with a gain map or depth image after the photograph; viewers show only the first.
        if selection not in (None, (1,)):
            raise PageOutOfRangeError(public={"pages": 1})
        return (1,)
    if selection is not None:
        if not _has_frame(image, selection[-1]):
            raise PageOutOfRangeError
        image.seek(0)
        return selection
    if file_format is not FileFormat.TIFF:
        if _has_frame(image, 2):
            raise MultiFrameError
        return (1,)
    count = 1
    # Not n_frames: it reads files of thousands of frames to the end.
    while count <= limits.max_frames and _has_frame(image, count + 1):
        count += 1
        check_size(*image.size, limits)
    if count > limits.max_frames:
        raise TooManyPagesError(public={"limit": limits.max_frames})
    image.seek(0)
    return tuple(range(1, count + 1))


def _has_frame(image: Image.Image, number: int) -> bool:
    try:
        image.seek(number - 1)
    except EOFError:
        return False
    return True
