"""Where print is on a page: its lines, and the widths of their words. Knows OpenCV and numpy, no model.

Print is found by the form and the size of its shapes, as in `ink`; rules, frames, pictures and dust are left out. A
line ends at a wide gap, so that columns and the cells of a table are lines of their own.
"""

from __future__ import annotations

from bisect import bisect_left
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


def label_shapes(mask_HW: NDArray[np.uint8]) -> tuple[int, NDArray[np.int32], NDArray[np.int32]]:
    """Label the connected shapes of a mask, corners included.

    Args:
        mask_HW: 0 is background.

    Returns:
        How many labels there are, the label of each pixel, `[H, W]`, and for each label its left, top, width, height
        and area, `[N, 5]`; label 0 is the background.
    """
    # The same labels as by OpenCV's own choice, in a third to nine tenths of the time.
    num_labels, labels_HW, stats, _ = cv2.connectedComponentsWithStatsWithAlgorithm(
        mask_HW, 8, cv2.CV_32S, cv2.CCL_BBDT
    )
    return num_labels, labels_HW, stats  # type: ignore[return-value] # OpenCV says no more than "array"


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
    _, _, stats = label_shapes(mask_HW)
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
    x_M1, y_M1 = box_N4[:, ::2].mean(axis=1)[:, None], box_N4[:, 1::2].mean(axis=1)[:, None]
    around_MN = (
        (box_N4[:, 0] - body_N <= x_M1) & (x_M1 <= box_N4[:, 2] + body_N)
        & (box_N4[:, 1] - 0.3 * body_N <= y_M1) & (y_M1 <= box_N4[:, 3] + 0.3 * body_N)
        & (body_N > 1.5 * body_N[:, None])
    )  # fmt: skip
    return [line for line, is_point in zip(lines, around_MN.any(axis=1).tolist(), strict=True) if not is_point]


def _line(shapes: list[list[int]], scale: float) -> InkLine | None:
    """One line of shapes (left, top, width, height) from left to right; None for dust."""
    # Lists, since lines are short: numpy takes longer to call than to count.
    whole = sorted([shape[3] for shape in shapes if shape[3] >= _MIN_HEIGHT_PX])
    if not whole:
        return None
    whole = whole[bisect_left(whole, _POINT_SHARE * whole[-1]) :]
    body = (whole[(len(whole) - 1) // 2] + whole[len(whole) // 2]) / 2
    space = max(1.0, _WORD_GAP * body)
    # Left, right and highest shape of each word.
    words: list[tuple[int, int, int]] = []
    start, end, highest = shapes[0][0], shapes[0][0], 0
    top, bottom = shapes[0][1], 0
    for left, above, width, height in shapes:
        if left - end > space:
            words.append((start, end, highest))
            start, end, highest = left, left, 0
        end, highest = max(end, left + width), max(highest, height)
        top, bottom = min(top, above), max(bottom, above + height)
    words.append((start, end, highest))
    words = [word for word in words if word[2] >= _POINT_SHARE * body]
    if not words:
        return None
    return InkLine(
        (round(words[0][0] * scale), round(top * scale), round(words[-1][1] * scale), round(bottom * scale)),
        tuple([max(1, round((right - left) * scale)) for left, right, _ in words]),
        round(body * scale, 1),
    )
