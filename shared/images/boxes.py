"""Boxes of forms, to write in or to tick. Knows numpy.

Shape letters: H and W pixels of the level page.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BOX_CAPS = 0.6
_BOX_FILL = 0.55
_BOX_SIDE = 0.85
"""Share of each side of a box that has ink; no letter has as much on all four."""
_SMALL_BOX_PX = 24
"""Below, the sides of a box are a pixel's: two of them make the round side of a small D straight."""


def find_boxes(
    labels_HW: NDArray[np.int32], stats: NDArray[np.int32], is_whole: NDArray[np.bool_], cap: float
) -> NDArray[np.bool_]:
    """Which shapes are boxes to write in or to tick, one or a row of them: all four sides are straight.

    Args:
        labels_HW: The label of each pixel.
        stats: OpenCV's statistics of each label, the first of which is the paper.
        is_whole: Labels that are looked at.
        cap: Height of a capital in pixels.

    Returns:
        One for each label.
    """
    result = np.zeros(len(stats), np.bool_)
    _, _, w, h, area = stats.T
    hollow = is_whole & (h > _BOX_CAPS * cap) & (w > _BOX_CAPS * cap) & (area < _BOX_FILL * w * h)
    # Most letters have no straight left side, and are done with.
    small = np.flatnonzero(hollow & (np.minimum(w, h) < _SMALL_BOX_PX))
    hollow[small] = _left_inked(labels_HW, stats, small) > _BOX_SIDE * h[small]
    for index, (x, y, width, height, _) in zip(np.flatnonzero(hollow).tolist(), stats[hollow].tolist(), strict=True):
        own = labels_HW[y : y + height, x : x + width]
        edge = 1 if min(width, height) < _SMALL_BOX_PX else max(2, round(0.06 * min(width, height)))
        sides = (own[:, :edge], 1), (own[:, -edge:], 1), (own[:edge], 0), (own[-edge:], 0)
        result[index] = all(
            np.count_nonzero((side == index).any(axis=axis)) > _BOX_SIDE * side.shape[1 - axis] for side, axis in sides
        )
    return result


def _left_inked(
    labels_HW: NDArray[np.int32], stats: NDArray[np.int32], shapes_M: NDArray[np.int64]
) -> NDArray[np.int64]:
    """How many pixels of each shape are in its leftmost column."""
    left, top, _, h, _ = stats[shapes_M].T
    ends = np.cumsum(h, dtype=np.int64)
    # Row by row of one shape after another.
    place = np.repeat(np.arange(shapes_M.size), h)
    rows = np.arange(place.size) - (ends - h - top)[place]
    is_own = labels_HW[rows, left[place]] == shapes_M[place]
    return np.bincount(place[is_own], minlength=shapes_M.size)
