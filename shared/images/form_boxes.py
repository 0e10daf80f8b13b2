"""What forms draw around print, apart from boxes: the strokes of combs, frames. Knows numpy.

All functions tell which shapes are such, from their labels and OpenCV's statistics, the first of which is the paper.

Shape letters: H and W pixels of the level page.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.images.rules import RULE_THICK_PX

_LEAST_TICKS = 4


def find_ticks(stats: NDArray[np.int32], is_shape: NDArray[np.bool_], rules_HW: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which shapes part the cells of a comb: upright strokes on a rule, alike and equally far from each other."""
    result = np.zeros(len(stats), np.bool_)
    left, top, w, h, area = stats.T
    thin = np.flatnonzero(is_shape & (w <= np.maximum(3, 0.22 * h)) & (h >= 6) & (area > 0.6 * w * h))
    if thin.size < _LEAST_TICKS:
        return result
    x = left[thin] + w[thin] // 2
    # Next to its foot, since the rule stays below strokes.
    ends, reach = top[thin] + h[thin], RULE_THICK_PX + 2
    on_rule = np.array(
        [
            rules_HW[max(0, end - reach) : end + reach, max(0, at - reach) : at + reach].any()
            for end, at in zip(ends, x, strict=True)
        ]
    )
    thin, x = thin[on_rule], x[on_rule]
    for start in range(thin.size):
        alike = (np.abs(top[thin] - top[thin[start]]) <= 3) & (np.abs(h[thin] - h[thin[start]]) <= 3)
        places = np.sort(x[alike])
        gaps = np.diff(places)
        if gaps.size + 1 < _LEAST_TICKS:
            continue
        usual = float(np.median(gaps))
        even = np.abs(gaps - usual) < 0.12 * usual
        # Letters on a line are as high as each other too, but not evenly spread.
        result[thin[start]] = even.mean() > 0.8 and usual > 0.7 * h[thin[start]]
    return result


def find_frames(stats: NDArray[np.int32], is_shape: NDArray[np.bool_], cap: float) -> NDArray[np.bool_]:
    """Which shapes have others inside, as no letter has."""
    left, top, w, h, _ = stats.T
    x, y = left + w / 2, top + h / 2
    is_whole = is_shape & (h > 0.5 * cap)
    result = np.zeros(len(stats), np.bool_)
    for index in np.flatnonzero(is_shape & (h > 1.6 * cap) & (w > 2.5 * cap)).tolist():
        inside = is_whole & (x > left[index]) & (x < left[index] + w[index])
        inside &= (y > top[index]) & (y < top[index] + h[index])
        result[index] = inside.sum() > 2
    return result
