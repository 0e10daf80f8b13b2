"""Where print is on a page: its lines, and the widths of their words. Knows OpenCV and numpy, no model.

Print is found by the form and the size of its shapes, as in `ink`; rules, frames, pictures and dust are left out. A
line ends at a wide gap, so that columns and the cells of a table are lines of their own.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.images.page_ink import MOST_LINES, MOST_WORDS, InkLine

_MIN_HEIGHT_PX = 4
_MIN_POINT_PX = 2
"""Points and dashes belong to the words that they touch."""
_POINT_SHARE = 0.4
"""Words that are lower than this share of a character are dots and dashes."""
_CAP_SHARE = 0.35
_LINE_GAP = 1.3
"""A gap wider than this many heights of a character ends a line."""
_WORD_GAP = 0.36
"""A gap wider than this share of the height of a character is a space."""
_TALLEST_SHARE = 0.12
"""Of the page's longer side: higher shapes are pictures or frames."""


def find_lines(boxes: NDArray[np.int32], size_HW: tuple[int, ...], scale: float) -> tuple[InkLine, ...]:
    """Find the lines of print on a page.

    Args:
        boxes: Its shapes, as `find_shapes` gives them.
        size_HW: Height and width of what they were found on.
        scale: Pixels of the page for each of its pixels.

    Returns:
        Lines from top to bottom, boxes and widths in pixels of the page.
    """
    if not boxes.size:
        return ()
    height = boxes[:, 3]
    whole = height[height >= _MIN_HEIGHT_PX]
    if not whole.size:
        return ()
    typical = float(np.median(whole[whole >= np.percentile(whole, 25)]))
    strip_HW = np.zeros(size_HW, np.uint8)
    is_point = height < _POINT_SHARE * typical
    # The middle of each shape, so that a descender does not join its line to the next.
    for x, y, w, h in boxes[~is_point].tolist():
        strip_HW[y + h // 4 : y + h - h // 4, x : x + w] = 1
    reach = max(3, round(_LINE_GAP * typical)) | 1
    joined_HW: Any = cv2.morphologyEx(strip_HW, cv2.MORPH_CLOSE, np.ones((1, reach), np.uint8))
    _, labels_HW = cv2.connectedComponents(joined_HW, connectivity=4)
    line_of = _labels_of(labels_HW, boxes, np.where(is_point, round(_POINT_SHARE * typical), 0))
    boxes, line_of = boxes[line_of > 0], line_of[line_of > 0]
    order = np.lexsort((boxes[:, 0], line_of))
    shapes_of: dict[int, list[list[int]]] = {}
    for label, shape in zip(line_of[order].tolist(), boxes[order].tolist(), strict=True):
        shapes_of.setdefault(label, []).append(shape)
    found = [_line(shapes, scale) for shapes in shapes_of.values()]
    lines = _without_points([line for line in found if line is not None])
    if len(lines) > MOST_LINES or sum(len(line.words_px) for line in lines) > MOST_WORDS:
        return ()
    return tuple(sorted(lines, key=lambda line: (line.box_px[1], line.box_px[0])))


def _labels_of(labels_HW: NDArray[np.int32], boxes: NDArray[np.int32], reach_N: NDArray[np.int64]) -> NDArray[np.int32]:
    """Label of each shape's middle; of a point, which is below or above it, the nearest within reach, or 0."""
    left, top, width, height = boxes.T
    middle = top + height // 2
    last = labels_HW.shape[0] - 1
    found = labels_HW[middle, left + width // 2]
    for offset in (-reach_N, reach_N):
        near = labels_HW[np.clip(middle + offset, 0, last), left + width // 2]
        found = np.where(found == 0, near, found)
    return found


def find_shapes(depth_HW: NDArray[np.uint8], threshold: float) -> NDArray[np.int32]:
    """Find connected shapes that may be characters, words or points.

    Args:
        depth_HW: How much darker each pixel is than the paper around it.
        threshold: What paper and noise stay below.

    Returns:
        Boxes, `[N, 4]`: left, top, width, height.
    """
    # Soft edges join characters, so only the darker half of print counts.
    inked = depth_HW[depth_HW > threshold]
    if not inked.size:
        return np.zeros((0, 4), np.int32)
    darkest = float(np.percentile(inked, 90))
    mask_HW = (depth_HW > max(threshold, _CAP_SHARE * darkest)).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask_HW, connectivity=8)
    left, top, width, height, area = stats[1:].T
    page_height, page_width = depth_HW.shape
    tallest = max(_TALLEST_SHARE * max(depth_HW.shape), 60)
    long, short = np.maximum(width, height), np.minimum(width, height)
    fill = area / (width * height)
    is_rule = (long > 10 * short) & (fill > 0.5)
    is_frame = (fill < 0.1) & (short > 30)
    is_cut = (left <= 0) | (top <= 0) | (left + width >= page_width) | (top + height >= page_height)
    is_print = (
        (height >= _MIN_POINT_PX) & (height <= tallest) & (area >= 1.5 * _MIN_POINT_PX) & ~is_rule & ~is_frame & ~is_cut
    )
    result: NDArray[np.int32] = stats[1:][is_print][:, :4]
    return result


def _without_points(lines: list[InkLine]) -> list[InkLine]:
    """Lines without those that are a comma, an accent or a dot of another line."""
    if not lines:
        return lines
    box_N4 = np.array([line.box_px for line in lines])
    body_N = np.array([line.body_px for line in lines])
    x_N, y_N = box_N4[:, ::2].mean(axis=1), box_N4[:, 1::2].mean(axis=1)
    kept = []
    for number, line in enumerate(lines):
        around_N = (
            (box_N4[:, 0] - body_N <= x_N[number]) & (x_N[number] <= box_N4[:, 2] + body_N)
            & (box_N4[:, 1] - 0.3 * body_N <= y_N[number]) & (y_N[number] <= box_N4[:, 3] + 0.3 * body_N)
            & (body_N > 1.5 * line.body_px)
        )  # fmt: skip
        if not around_N.any():
            kept.append(line)
    return kept


def _line(shapes: list[list[int]], scale: float) -> InkLine | None:
    """One line of shapes (left, top, width, height) from left to right; None for dust."""
    # Lists, since lines are short: numpy takes longer to call than to count.
    whole = [height for _, _, _, height in shapes if height >= _MIN_HEIGHT_PX]
    if not whole:
        return None
    body = float(median(height for height in whole if height >= _POINT_SHARE * max(whole)))
    space = max(1.0, _WORD_GAP * body)
    # Left, right and highest shape of each word.
    words: list[list[int]] = []
    for left, _, width, height in shapes:
        if words and left - words[-1][1] <= space:
            words[-1][1:] = max(words[-1][1], left + width), max(words[-1][2], height)
        else:
            words.append([left, left + width, height])
    words = [word for word in words if word[2] >= _POINT_SHARE * body]
    if not words:
        return None
    top, bottom = min(shape[1] for shape in shapes), max(shape[1] + shape[3] for shape in shapes)
    x1, y1, x2, y2 = (round(float(value) * scale) for value in (words[0][0], top, words[-1][1], bottom))
    return InkLine(
        (x1, y1, x2, y2),
        tuple(max(1, round(float(right - left) * scale)) for left, right, _ in words),
        round(body * scale, 1),
    )
