"""Takes strong colours from the grounds that print is on, such as a highlighter's stroke or a button.

Print is looked for where a page is darker than its paper in any channel, so that coloured ink is found. On yellow,
whose blue is as dark as that of black print, nothing would be darker. Knows OpenCV and numpy, no model.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

_LONGEST_PX = 800
"""Grounds are looked for on a page that is made as small as this."""
_AROUND_PX = 11
"""A ground's colour is the median of so many pixels a side, of which print covers less than half."""
_STRONG = 90
"""Between the lightest and the darkest channel; a paler ground hides no print."""
_ALIKE = 48
"""In each channel, a ground differs from its median by less."""
_EVEN, _LEAST_FILL = 0.6, 0.4
"""Share of a ground that is of its colour, and of its box that it fills: skies, leaves and clothes have less."""
_STROKE_PX = 15
"""Strokes of print on a ground are thinner."""
_EDGE_PX = 2
"""Around a ground pixels are mixed with those of the paper."""
_LEAST_PX, _MOST_GROUNDS = 60, 64
"""Smaller grounds have no room for print; pages with more of them are photographs, of which the largest are enough."""
_ROWS = 512
"""Made white at once."""


def without_tints(page: Image.Image) -> Image.Image:
    """Make grounds of strong colours white, and the print on them dark.

    Args:
        page: Mode RGB or L.

    Returns:
        The page itself if it has no such grounds.
    """
    if page.mode == "L":
        return page
    pixels_HWC = np.asarray(page)
    step = max(1, max(page.size) // _LONGEST_PX)
    small_hwc = np.ascontiguousarray(pixels_HWC[::step, ::step])
    if not _is_strong(small_hwc).any():
        return page
    strong_hw = _is_strong(cv2.medianBlur(small_hwc, _AROUND_PX)).view(np.uint8)
    _, labels_hw, stats, _ = cv2.connectedComponentsWithStats(strong_hw, connectivity=4)
    largest = sorted(range(1, len(stats)), key=lambda number: -int(stats[number][4]))[:_MOST_GROUNDS]
    result_HWC: NDArray[np.uint8] | None = None
    for number in largest:
        x, y, w, h, area = stats[number].tolist()
        if area < _LEAST_PX:
            break
        own_N3 = small_hwc[y : y + h, x : x + w][labels_hw[y : y + h, x : x + w] == number]
        ground_C = np.median(own_N3, axis=0)
        is_even = (np.abs(own_N3 - ground_C).max(axis=1) < _ALIKE / 2).mean() >= _EVEN
        if not is_even or area < _LEAST_FILL * w * h:
            continue
        # The median of pixels at its edge is the paper's.
        left, top, right, bottom = x - _AROUND_PX, y - _AROUND_PX, x + w + _AROUND_PX, y + h + _AROUND_PX
        place = slice(max(top, 0), bottom), slice(max(left, 0), right)
        mask_hw, is_light = _ground(small_hwc[place], ground_C)
        result_HWC = pixels_HWC.copy() if result_HWC is None else result_HWC
        large = tuple(
            slice(part.start * step, min(part.stop * step, side))
            for part, side in zip(place, page.size[::-1], strict=True)
        )
        _bleach(result_HWC[large], mask_hw, ground_C, is_light)
    return page if result_HWC is None else Image.fromarray(result_HWC)


def _is_strong(pixels_HWC: Any) -> NDArray[np.bool_]:
    red, green, blue = cv2.split(pixels_HWC)
    lightest, darkest = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    result: NDArray[np.bool_] = cv2.subtract(lightest, darkest) >= _STRONG
    return result


def _ground(part_hwc: NDArray[np.uint8], ground_C: NDArray[Any]) -> tuple[NDArray[np.uint8], bool]:
    """Where a ground of this colour is, with the print on it, and whether that is lighter."""
    differences_hwc = part_hwc.astype(np.int16) - ground_C.astype(np.int16)
    is_like_hw = (np.abs(differences_hwc).max(axis=2) < _ALIKE).view(np.uint8)
    kernel = np.ones((_STROKE_PX, _STROKE_PX), np.uint8)
    mask_hw: Any = cv2.morphologyEx(is_like_hw, cv2.MORPH_CLOSE, kernel)
    print_hwc = differences_hwc[(mask_hw > 0) & (is_like_hw == 0)]
    is_light = int(np.maximum(print_hwc, 0).max(axis=1, initial=0).sum()) > int(
        np.maximum(-print_hwc, 0).max(axis=1, initial=0).sum()
    )
    return mask_hw, is_light


def _bleach(part_HWC: NDArray[np.uint8], mask_hw: NDArray[np.uint8], ground_C: NDArray[Any], is_light: bool) -> None:
    size = part_HWC.shape[1], part_HWC.shape[0]
    mask_HW: Any = cv2.resize(mask_hw, size, interpolation=cv2.INTER_NEAREST)
    step = max(1, round(size[0] / mask_hw.shape[1]))
    wide_HW: Any = cv2.dilate(mask_HW, np.ones((2 * _EDGE_PX * step + 1,) * 2, np.uint8))
    # As tables and by rows, so that large pages need little memory.
    above = np.arange(256)[:, None] - ground_C
    paper_C = 255 - np.clip(above if is_light else -above, 0, 255).astype(np.uint8)
    tables = [np.ascontiguousarray(table) for table in paper_C.T]
    for top in range(0, size[1], _ROWS):
        rows = slice(top, top + _ROWS)
        bands = zip(cv2.split(part_HWC[rows]), tables, strict=True)
        grey_HW: Any = reduce(cv2.min, [cv2.LUT(band, table) for band, table in bands])
        if is_light:
            # Paper around it is lighter as well.
            grey_HW[mask_HW[rows] == 0] = 255
        part_HWC[rows] = cv2.copyTo(cv2.merge([grey_HW] * 3), wide_HW[rows], part_HWC[rows].copy())
