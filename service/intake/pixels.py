"""Converts any pixel type that a file may have into the upright RGB page that a person would see.

Pillow's `convert("RGB")` alone erases the text of 16-bit grey pages, transparent pages and some CMYK files. Unknown
pixel types are refused, since a wrongly blank page would look like an empty answer.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from service.errors import UnsupportedPixelsError

WHITE = (255, 255, 255, 255)
_OPAQUE = {"1", "L", "P", "RGB", "RGBX", "YCbCr"}
_SIXTEEN_BIT = {"I;16", "I;16L", "I;16B", "I;16N"}
_WHITE_IS_ZERO = 0


def as_seen(image: Image.Image) -> Image.Image:
    """Decode a page the way a person sees it.

    Args:
        image: A frame of an opened file, its size already checked.

    Returns:
        An upright RGB image.

    Raises:
        UnsupportedPixelsError: The pixel type is unknown.
    """
    # The flags live on the file object and are gone after load() or conversion.
    inverted = _is_white_is_zero(image)
    bits = _bits_per_sample(image)
    image.load()
    if image.mode in _SIXTEEN_BIT:
        page = _from_sixteen_bit(image, bits, inverted=inverted)
    elif image.has_transparency_data:
        page = _on_white(image)
    elif image.mode == "CMYK":
        page = _from_cmyk(image)
    elif image.mode in _OPAQUE:
        page = image.convert("RGB")
    else:
        raise UnsupportedPixelsError(f"mode {image.mode}")
    return _upright(page, image)


def _is_white_is_zero(image: Image.Image) -> bool:
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO


def _bits_per_sample(image: Image.Image) -> int:
    if not isinstance(image, TiffImageFile):
        return 16
    bits = image.tag_v2.get(BITSPERSAMPLE, (16,))
    return int(bits[0]) if isinstance(bits, tuple) else int(bits)


def _from_sixteen_bit(image: Image.Image, bits: int, *, inverted: bool) -> Image.Image:
    samples_HW = np.asarray(image).astype(np.uint16)
    transparent = image.info.get("transparency")
    scaled_HW = np.clip(samples_HW >> max(bits - 8, 0), 0, 255).astype(np.uint8)
    if inverted:
        # Pillow inverts "white is zero" for 8 bits and fewer, not for 16.
        scaled_HW = 255 - scaled_HW
    if isinstance(transparent, int):
        scaled_HW[samples_HW == transparent] = 255
    return Image.fromarray(scaled_HW).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode not in {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa"}:
        raise UnsupportedPixelsError(f"mode {image.mode} with transparency")
    paper = Image.new("RGBA", image.size, WHITE)
    # Pillow cannot convert premultiplied grey to RGBA directly.
    layer = image.convert("LA") if image.mode == "La" else image
    paper.alpha_composite(layer.convert("RGBA"))
    return paper.convert("RGB")


def _from_cmyk(image: Image.Image) -> Image.Image:
    if image.format == "JPEG" and "adobe" not in image.info:
        # Pillow treats every CMYK JPEG as inverted; only those with Adobe's marker are
        # (libjpeg.txt, "Special color spaces").
        image = ImageChops.invert(image)
    return image.convert("RGB")


def _upright(page: Image.Image, source: Image.Image) -> Image.Image:
    # Pillow already turns TIFF frames upright and then removes the tag.
    try:
        orientation = source.getexif().get(0x0112, 1)
    except (SyntaxError, ValueError, TypeError, OSError, KeyError, IndexError):
        # The image itself may be fine.
        return page
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return page if turn is None else page.transpose(turn)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that undoes each EXIF orientation (the table of Pillow's `ImageOps.exif_transpose`)."""
