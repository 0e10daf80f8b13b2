"""Converts any pixel type that a file may have into the upright RGB page that a person would see.

Pillow's `convert("RGB")` alone erases the text of 16-bit grey pages, transparent pages and some CMYK files. Unknown
pixel types are refused, since a wrongly blank page would look like an empty answer.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from shared.images.errors import ImageError, ImageReason

SIXTEEN_BIT = {"I;16", "I;16L", "I;16B", "I;16N"}
_OPAQUE = {"1", "L", "P", "RGB", "RGBX", "YCbCr"}
_COLOURLESS = {"1", "L", *SIXTEEN_BIT}
_TRANSPARENT = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa"}
SIDEWAYS = {5, 6, 7, 8}
"""EXIF orientations that swap width and height."""
_WHITE_IS_ZERO = 0
_GLANCE = 8
_FAINT = 48
"""Contrast, of 255, below which ink on white counts as erased."""


def as_seen(image: Image.Image, *, may_be_grey: bool = False) -> Image.Image:
    """Decode a page the way a person sees it.

    Args:
        image: A frame of an opened file, its size already checked.
        may_be_grey: Return a page whose pixel type has no colours in mode L.

    Returns:
        An upright image, mode RGB.

    Raises:
        ImageError: The pixel type is unknown.
    """
    # The flags live on the file object and are gone after load() or conversion.
    inverted = is_white_is_zero(image)
    bits = bits_per_sample(image)
    grey_levels = _png_grey_levels(image)
    image.load()
    mode = "L" if may_be_grey and image.mode in _COLOURLESS else "RGB"
    if image.mode in SIXTEEN_BIT:
        page = _from_sixteen_bit(image, bits, inverted=inverted)
    elif image.has_transparency_data:
        page = _on_ground(_transparent_layer(image, grey_levels))
    elif image.mode == "CMYK":
        page = _from_cmyk(image)
    elif image.mode in _OPAQUE:
        page = image
    else:
        raise ImageError(ImageReason.UNSUPPORTED_PIXELS, f"mode {image.mode}")
    # Of the same mode it would be copied.
    page = page if page.mode == mode else page.convert(mode)
    turn = _TURNS.get(orientation_of(image))
    return page if turn is None else page.transpose(turn)


def without_colours(page: Image.Image) -> Image.Image:
    """A page, mode RGB or L, as mode L if all its pixels are grey; otherwise as it is."""
    if page.mode == "L":
        return page
    # Of most pages with colours a few pixels tell.
    size = max(1, page.width // _GLANCE), max(1, page.height // _GLANCE)
    if not _are_alike(*page.resize(size, Image.Resampling.NEAREST).split()):
        return page
    bands = page.split()
    return bands[0] if _are_alike(*bands) else page


def _are_alike(first: Image.Image, *others: Image.Image) -> bool:
    return not any(ImageChops.difference(first, other).getbbox() for other in others)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation that is still to be undone, 1 to 8; 1 where there is none or it is damaged.

    Args:
        image: A loaded image: Pillow turns TIFF frames upright when it loads them, and then removes the tag.

    Returns:
        1: upright.
    """
    try:
        orientation = image.getexif().get(0x0112, 1)
    except (SyntaxError, ValueError, TypeError, OSError, LookupError, AttributeError):
        # The image itself may be fine.
        return 1
    return orientation if isinstance(orientation, int) and orientation in _TURNS else 1


def is_white_is_zero(image: Image.Image) -> bool:
    """Whether a TIFF frame's samples count ink instead of light; ask before `load`."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO


def bits_per_sample(image: Image.Image) -> int:
    """Significant bits of a 16-bit frame's samples; ask before `load`."""
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
    page = Image.fromarray(scaled_HW)
    if not isinstance(transparent, int):
        return page
    alpha = Image.fromarray(np.where(samples_HW == transparent, 0, 255).astype(np.uint8))
    return _on_ground(Image.merge("LA", (page, alpha)).convert("RGBA"))


def _png_grey_levels(image: Image.Image) -> int:
    """Levels of a PNG's grey or colour samples as stored: Pillow gives 8 bits, but the transparent value as stored."""
    if not isinstance(image, PngImageFile) or not image.tile:
        return 255
    bits = {"L;2": 2, "L;4": 4, "RGB;16B": 16}.get(str(image.tile[0].args), 8)
    return (1 << bits) - 1


def _transparent_layer(image: Image.Image, grey_levels: int) -> Image.Image:
    if image.mode not in _TRANSPARENT:
        raise ImageError(ImageReason.UNSUPPORTED_PIXELS, f"mode {image.mode} with transparency")
    transparent = image.info.get("transparency")
    if grey_levels != 255 and image.mode in ("L", "RGB") and transparent is not None:
        values = transparent if isinstance(transparent, tuple) else (transparent,)
        # 16-bit samples lose their lower half in Pillow, fewer bits are spread over the range.
        scaled = tuple(value >> 8 if grey_levels > 255 else value * 255 // grey_levels for value in values)
        image = image.copy()
        image.info["transparency"] = scaled if image.mode == "RGB" else scaled[0]
    # Pillow cannot convert premultiplied grey to RGBA directly.
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def _on_ground(layer: Image.Image) -> Image.Image:
    """Put a transparent page (RGBA) on white, or on black if white would erase all of it."""
    lowest, highest = layer.getchannel("A").getextrema()
    if highest == 0 and lowest == 0:
        # Some writers leave the channel empty and mean an opaque page.
        beneath = layer.convert("RGB")
        return beneath if _contrast(beneath) else Image.new("RGB", layer.size, "white")
    page = _composed(layer, "white")
    if lowest == 255 or _contrast(page) >= _FAINT:
        return page
    on_black = _composed(layer, "black")
    return on_black if _contrast(on_black) > _contrast(page) else page


def _composed(layer: Image.Image, ground: str) -> Image.Image:
    page = Image.new("RGBA", layer.size, ground)
    page.alpha_composite(layer)
    return page.convert("RGB")


def _contrast(page: Image.Image) -> int:
    extrema = cast("tuple[tuple[int, int], ...]", page.getextrema())
    return max(high - low for low, high in extrema)


def _from_cmyk(image: Image.Image) -> Image.Image:
    if image.format == "JPEG" and "adobe" not in image.info:
        # Pillow treats every CMYK JPEG as inverted; only those with Adobe's marker are
        # (libjpeg.txt, "Special color spaces").
        image = ImageChops.invert(image)
    return image.convert("RGB")


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
