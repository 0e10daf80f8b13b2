"""Crops and small pages that lie askew, turned level before they are read whole. Knows OpenCV and numpy, no model."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from PIL import Image

from shared.images.ink import Relief
from shared.images.segments import skew_of

_LEAST_SKEW = math.radians(1.5)
"""Upright crops of scans lie up to 0.9 degrees askew, and are read well so."""


def levelled(page: Image.Image, relief: Relief) -> Image.Image:
    """Turn a page level around its middle.

    Args:
        page: Mode RGB or L.
        relief: Of this page.

    Returns:
        A page of the same size; itself where its lines are level, or too few to tell.
    """
    angle = skew_of(np.pad(relief.shapes, ((0, 0), (0, 1))))
    if abs(angle) < _LEAST_SKEW:
        return page
    matrix: Any = cv2.getRotationMatrix2D((page.width / 2, page.height / 2), math.degrees(angle), 1.0)
    pixels: Any = np.asarray(page)
    turned: Any = cv2.warpAffine(pixels, matrix, page.size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return Image.fromarray(turned)
