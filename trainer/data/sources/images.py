"""Checks an image's bytes once, so that everything downstream can open it.

Owns the digest of pixels and what is kept; `shared.images` opens files, as it does for the service. Knows nothing of
rows.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

from PIL import Image

from shared.images.digest import pixels_sha256
from shared.images.errors import ImageError, ImageReason
from shared.images.formats import FileFormat
from shared.images.ink import find_ink
from shared.images.limits import ImageLimits
from shared.images.other_formats import HEIC
from shared.images.raster import SeenPage, open_raster
from trainer.data.errors import RowCode, RowError
from trainer.data.likeness import look_of

LIMITS: Final = ImageLimits()
"""The service's."""
MIN_SIDE_PX: Final = 8
_SMALL_PX: Final = 600
FORMATS: Final = "PNG, JPEG, WebP, TIFF, GIF, BMP, JPEG 2000, AVIF and HEIC"
KEPT_SUFFIXES: Final = {FileFormat.PNG: "png", FileFormat.JPEG: "jpg", FileFormat.WEBP: "webp"}
_CODES: Final = {
    ImageReason.UNSUPPORTED_FORMAT: RowCode.IMAGE_FORMAT,
    ImageReason.UNSUPPORTED_PIXELS: RowCode.IMAGE_PIXELS,
    ImageReason.DAMAGED: RowCode.IMAGE_UNREADABLE,
    ImageReason.TOO_MANY_PIXELS: RowCode.IMAGE_TOO_LARGE,
    ImageReason.ASPECT_RATIO: RowCode.IMAGE_TOO_LARGE,
    ImageReason.TOO_MANY_PAGES: RowCode.IMAGE_SEVERAL_FRAMES,
    ImageReason.NO_SUCH_PAGE: RowCode.IMAGE_UNREADABLE,
}
_REASONS: Final = {
    ImageReason.UNSUPPORTED_PIXELS: "this kind of image is not read: save it as 8 or 16 bit grey, RGB or CMYK",
    ImageReason.DAMAGED: "the file is damaged or cut off",
    ImageReason.TOO_MANY_PIXELS: (
        f"it has more than {LIMITS.max_pixels:,} pixels, or a side of more than {LIMITS.max_side_px:,}"
    ),
    ImageReason.ASPECT_RATIO: f"one side is more than {LIMITS.max_aspect_ratio} times as long as the other",
}


@dataclass(frozen=True, slots=True)
class PageImage:
    """An image that has been decoded once.

    Attributes:
        data: the file's bytes; unchanged if a plain decoder shows them correctly, else PNG.
        suffix: of a file with these bytes: png, jpg or webp.
        width_px: as a person sees it.
        height_px: as a person sees it.
        pixels_sha256: of the upright RGB pixels, so the same page in two formats without loss has one digest.
        look: by which a copy of the page is known again; see `likeness.look_of`.
        is_blank: there is nothing on it that could be print; None where it was not looked for.
    """

    data: bytes
    suffix: str
    width_px: int
    height_px: int
    pixels_sha256: str
    look: bytes = b""
    is_blank: bool | None = None


def check_image(data: bytes, *, looks_for_print: bool = False) -> PageImage:
    """Decode an image file completely; the image is upright and without transparency.

    Args:
        data: the file.
        looks_for_print: say whether the page is blank, which takes longer than to decode it.

    Returns:
        The image.

    Raises:
        RowError: it is broken, too large, of another format or has several pages.
    """
    file_format, seen = _read(data)
    upright = seen.image
    if min(upright.size) < MIN_SIDE_PX:
        raise RowError(RowCode.IMAGE_UNREADABLE, f"it is only {upright.width} x {upright.height} pixels")
    if seen.is_damaged:
        # Its text would teach a model to write what it cannot see.
        raise RowError(RowCode.IMAGE_UNREADABLE, "a part of the image is missing")
    digest = pixels_sha256(upright)
    suffix = "png"
    if seen.is_plain:
        suffix = KEPT_SUFFIXES[file_format]
    else:
        data = encode_png(upright)
    is_blank = _is_blank(upright) if looks_for_print else None
    return PageImage(data, suffix, upright.width, upright.height, digest, look_of(upright), is_blank)


def encode_png(image: Image.Image) -> bytes:
    """Bytes of a PNG file, the same for the same pixels."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _is_blank(upright: Image.Image) -> bool:
    """Whether a page has no print, looked for on a small copy first: most pages have some."""
    factor = max(upright.size) // _SMALL_PX
    return (factor < 2 or find_ink(upright.reduce(factor)).is_blank) and find_ink(upright).is_blank


def _read(data: bytes) -> tuple[FileFormat, SeenPage]:
    if not data:
        raise RowError(RowCode.IMAGE_FORMAT, "the file is empty")
    try:
        file = open_raster(data, LIMITS)
        if len(file.pages()) > 1:
            raise RowError(RowCode.IMAGE_SEVERAL_FRAMES, "it has several pages: give each page a file of its own")
        return file.file_format, file.read(1)
    except ImageError as error:
        raise RowError(_CODES[error.reason], _reason(error)) from error
    except MemoryError as error:
        raise RowError(RowCode.IMAGE_UNREADABLE, "decoding it needs more memory than there is") from error


def _reason(error: ImageError) -> str:
    if error.reason is not ImageReason.UNSUPPORTED_FORMAT:
        return _REASONS.get(error.reason, str(error))
    found = error.facts.get("found")
    if found == HEIC.name:
        return f"it is {found}. {HEIC.advice}"
    what = f"it is {found}" if found else "it is in no known format, or broken from its start"
    return f"{what}; supported are {FORMATS}"
