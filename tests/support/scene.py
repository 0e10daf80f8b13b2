"""A small page whose parts and orientation can be told apart, and files of it."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.images.limits import ImageLimits
from shared.images.raster import open_raster

BLACK_BOX = (4, 4, 28, 12)
GREY_BOX = (40, 30, 60, 44)

HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ACJpbG9jAAAAAERAAAEAAQAAAAABoQABAAAAAAAAAI4AAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRt"
    "AAAAAAABAAAA/WlwcnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMA"
    "AAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5j"
    "bHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBp"
    "eGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAAJZtZGF0AAAAiigBrwng432oeawb4ALxVOGdqcl71w+oKwWJP9AI"
    # pragma: allowlist nextline secret
    "WivI3Mqee1w1xuUugi2cYqvwi2y2ElzaX8ksYw2jNTsE7fmYmTtz0MLiJuj/SQbLp3AHDb2/4k40TnPGhrsuTO6XihkUifGAKDkS"
    # pragma: allowlist nextline secret
    "Q4v1Z2fukPSkPqH7/vxFANXrYCTLLNmfthuW3v171cLTdg=="
)
"""The scene as HEVC at quality 60, made with pillow-heif 1.8, since what reads HEIC does not write it."""


def scene() -> Image.Image:
    """White paper, black ink top left, mid grey bottom right: no two orientations of it are alike."""
    image = Image.new("L", (64, 48), 255)
    image.paste(0, BLACK_BOX)
    image.paste(128, GREY_BOX)
    return image


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    """Bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def seen(data: bytes) -> NDArray[np.uint8]:
    """The only page of a file, H x W x 3; the same whether it may come without colours or not."""
    file = open_raster(data, ImageLimits())
    assert file.pages() == (1,)
    page = file.read(1).image
    assert page.mode == "RGB"
    assert file.read(1, may_be_grey=True).image.convert("RGB").tobytes() == page.tobytes()
    return np.asarray(page)


def assert_looks_like(data: bytes, expected: Image.Image, tolerance: int = 0) -> None:
    """The only page of a file differs nowhere by more than `tolerance` levels."""
    wanted = np.asarray(expected.convert("RGB")).astype(int)
    shown = seen(data).astype(int)
    assert shown.shape == wanted.shape
    assert np.abs(shown - wanted).max() <= tolerance
