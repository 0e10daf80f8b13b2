"""Checks an image's bytes once, so that everything downstream can open it.

Owns limits, formats and the digest of pixels; knows nothing of rows.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import Final

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from trainer.data.errors import RowCode, RowError

MAX_PIXELS: Final = 40_000_000
"""The service's limit; a page of A3 at 400 dpi has 31 million."""
MIN_SIDE_PX: Final = 8
FORMATS: Final = ("PNG", "JPEG", "WEBP", "TIFF")
KEPT_FORMATS: Final = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
_KEPT_MODES: Final = ("RGB", "L", "1")


@dataclass(frozen=True, slots=True)
class PageImage:
    """An image that has been decoded once.

    Attributes:
        data: the file's bytes; unchanged if a plain decoder shows them correctly, else PNG.
        suffix: of a file with these bytes: png, jpg or webp.
        width_px: as a person sees it.
        height_px: as a person sees it.
        pixels_sha256: of the upright RGB pixels, so the same page in two formats without loss has one digest.
    """

    data: bytes
    suffix: str
    width_px: int
    height_px: int
    pixels_sha256: str


def check_image(data: bytes) -> PageImage:
    """Decode a PNG, JPEG, WebP or TIFF file completely; the image is upright and without transparency.

    Raises `RowError` if it is broken, too large, of another format or has several frames.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns about sizes before our own limit is checked.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            with image:
                return _checked(image, data)
    except UnidentifiedImageError as error:
        reason = "the file is empty" if not data else f"it is not one of {', '.join(FORMATS)}, or broken from its start"
        raise RowError(RowCode.IMAGE_FORMAT, reason) from error
    except Image.DecompressionBombError as error:
        raise RowError(RowCode.IMAGE_TOO_LARGE, f"it has more than {MAX_PIXELS:,} pixels") from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        if isinstance(error, RowError):
            raise
        raise RowError(RowCode.IMAGE_UNREADABLE, "the file is damaged or cut off") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image as a person sees it: upright, RGB, 16-bit grey scaled, transparency on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def encode_png(image: Image.Image) -> bytes:
    """Bytes of a PNG file, the same for the same pixels."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _checked(image: Image.Image, data: bytes) -> PageImage:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise RowError(RowCode.IMAGE_TOO_LARGE, f"it has {width} x {height} pixels, more than {MAX_PIXELS:,}")
    if min(width, height) < MIN_SIDE_PX:
        raise RowError(RowCode.IMAGE_UNREADABLE, f"it is only {width} x {height} pixels")
    if _has_second_frame(image):
        raise RowError(RowCode.IMAGE_SEVERAL_FRAMES, "it has several frames: give each page a file of its own")
    image.load()
    is_kept = (
        image.format in KEPT_FORMATS
        and image.mode in _KEPT_MODES
        and not image.has_transparency_data
        and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    )
    suffix = KEPT_FORMATS.get(image.format or "", "png")
    upright = upright_rgb(image)
    digest = hashlib.sha256(f"{upright.width}x{upright.height}\0".encode() + upright.tobytes()).hexdigest()
    if not is_kept:
        data, suffix = encode_png(upright), "png"
    return PageImage(data, suffix, upright.width, upright.height, digest)


def _has_second_frame(image: Image.Image) -> bool:
    # Seeking is cheap, counting all frames of a long file is not.
    try:
        image.seek(1)
    except EOFError:
        return False
    image.seek(0)
    return True
