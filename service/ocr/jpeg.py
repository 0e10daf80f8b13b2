"""JPEG files of figures."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

QUALITY = 90


def encode_jpeg(image_HWC: NDArray[np.uint8]) -> bytes:
    """Encode an RGB image as a JPEG file.

    Shapes:
        image_HWC: uint8, RGB
    """
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
