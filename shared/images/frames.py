"""Frames around a few words, as stamps and labels have them: taken away, so that none is read as a letter.

A frame also tells how its print is tilted, which single words do not; what is in it is levelled where it stands. Knows
OpenCV and numpy, no model. Shape letters: H and W pixels, C channels.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.images.ink import Relief

_MOST_SHAPES = 250
"""A page with more is full of print, or of noise."""
_LEAST_SIDE_PX = 18
_SQUARE = 0.93
"""Share of the least rectangle around a frame that it encloses; of one around a round letter it is three quarters."""
_THIN = 0.72
"""And of what it encloses, the share that is inside: a thicker frame is a letter."""
_LEAST_INSIDE = 0.2
"""Height of print in a frame, of the frame's."""
_EDGE_PX = 2
"""Of its stroke, soft or rough."""
_LEAST_TILT, _MOST_TILT = 1.0, 20.0
"""Degrees."""


def without_frames(page: Image.Image, relief: Relief) -> Image.Image:
    """Take frames away, level or tilted.

    Args:
        page: Mode RGB or L.
        relief: Of this page.

    Returns:
        The page without its frames, and with the print inside them turned level. A page without frames is returned as
        it is, and so is a page full of print, since reading by lines ignores frames anyway.
    """
    if len(relief.shapes) > _MOST_SHAPES:
        return page
    mask_HW: Any = (relief.depth_HW > relief.threshold).astype(np.uint8)
    contours, tree = cv2.findContours(mask_HW, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    frames = []
    for number, outer in enumerate(contours):
        inner = _only_hole(contours, tree[0], number)
        if inner is not None and _is_frame(outer, inner, mask_HW):
            frames.append((outer, inner))
    if not frames:
        return page
    strokes_HW: Any = np.zeros_like(mask_HW)
    for outer, inner in frames:
        cv2.drawContours(strokes_HW, [outer], -1, 1, cv2.FILLED)
        cv2.drawContours(strokes_HW, [inner], -1, 0, cv2.FILLED)
        # The contour of a hole is of the stroke around it.
        cv2.drawContours(strokes_HW, [outer, inner], -1, 1, 1)
    strokes_HW = cv2.dilate(strokes_HW, np.ones((2 * _EDGE_PX + 1,) * 2, np.uint8))
    strokes_HW = cv2.resize(strokes_HW, page.size, interpolation=cv2.INTER_NEAREST)
    pixels_HWC: Any = cv2.inpaint(np.asarray(page.convert("RGB")), strokes_HW, 3, cv2.INPAINT_TELEA)
    for outer, _ in frames:
        _level(pixels_HWC, outer.astype(np.float32) * np.array(relief.scale_xy, np.float32))
    return Image.fromarray(pixels_HWC).convert(page.mode)


def _only_hole(contours: Any, tree: Any, number: int) -> Any:
    """The inner contour of a shape that is large enough; None where it has none, or several as a table has."""
    _, _, child, parent = tree[number]
    if parent >= 0:
        return None
    holes = []
    while child >= 0:
        if cv2.contourArea(contours[child]) > _LEAST_SIDE_PX**2:
            holes.append(contours[child])
        child = tree[child][0]
    return holes[0] if len(holes) == 1 else None


def _is_frame(outer: Any, inner: Any, mask_HW: Any) -> bool:
    (_, sides, _), area = cv2.minAreaRect(outer), cv2.contourArea(outer)
    is_thin = cv2.contourArea(inner) >= _THIN * area
    if min(sides) < _LEAST_SIDE_PX or area < _SQUARE * sides[0] * sides[1] or not is_thin:
        return False
    left, top, width, height = cv2.boundingRect(inner)
    within_HW: Any = np.zeros((height, width), np.uint8)
    cv2.drawContours(within_HW, [inner], -1, 1, cv2.FILLED, offset=(-left, -top))
    kernel = np.ones((2 * _EDGE_PX + 1,) * 2, np.uint8)
    within_HW = cv2.erode(within_HW, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    print_HW = mask_HW[top : top + height, left : left + width] & within_HW
    heights = cv2.connectedComponentsWithStats(print_HW, connectivity=8)[2][1:, cv2.CC_STAT_HEIGHT]
    return bool(heights.size) and float(heights.max()) >= _LEAST_INSIDE * min(sides)


def _level(pixels_HWC: NDArray[np.uint8], outer: Any) -> None:
    """Turn what is in a frame around its middle."""
    middle, _, tilt = cv2.minAreaRect(outer)
    tilt = (tilt + 45) % 90 - 45
    if not _LEAST_TILT < abs(tilt) < _MOST_TILT:
        return
    height, width, _ = pixels_HWC.shape
    _, _, w, h = cv2.boundingRect(outer)
    # Turned, a wide frame is wider than it was.
    reach = math.hypot(w, h) / 2
    x1, y1 = max(0, int(middle[0] - reach)), max(0, int(middle[1] - reach))
    x2, y2 = min(width, math.ceil(middle[0] + reach)), min(height, math.ceil(middle[1] + reach))
    part_HWC = pixels_HWC[y1:y2, x1:x2]
    around = middle[0] - x1, middle[1] - y1
    matrix: Any = cv2.getRotationMatrix2D(around, tilt, 1.0)
    size = x2 - x1, y2 - y1
    turned_HWC: Any = cv2.warpAffine(part_HWC, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    frame_HW: Any = np.zeros(part_HWC.shape[:2], np.uint8)
    cv2.fillPoly(frame_HW, [np.round(outer - (x1, y1)).astype(np.int32)], 1)
    within_HW: Any = cv2.warpAffine(frame_HW, matrix, size, flags=cv2.INTER_NEAREST)
    # Where the tilted frame was and the level one is not, its corners would stay, with parts of letters.
    part_HWC[(frame_HW > 0) & (within_HW == 0)] = np.median(part_HWC[frame_HW > 0], axis=0)
    part_HWC[within_HW > 0] = turned_HWC[within_HW > 0]
