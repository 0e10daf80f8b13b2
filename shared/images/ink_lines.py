"""Where print is on a page: its lines, and the widths of their words. Knows OpenCV and numpy, no model.

Print is found by the form and the size of its shapes, as in `ink`; rules, frames, pictures and dust are left out. A
line ends at a wide gap, so that columns and the cells of a table are lines of their own.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.images.boxes import find_boxes
from shared.images.histogram import percentile
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
_FIELD_SHAPE = 3
"""Boxes to write in are wider than so many times their height; low ones have too much ink to be told as frames."""
_TALLEST_SHARE = 0.12
"""Of the page's longer side: higher shapes are pictures or frames."""


def find_lines(
    boxes: NDArray[np.int32], size_HW: tuple[int, ...], scale_xy: tuple[float, float]
) -> tuple[InkLine, ...]:
    """Find the lines of print on a page.

    Args:
        boxes: Its shapes, as `find_shapes` gives them.
        size_HW: Height and width of what they were found on.
        scale_xy: Pixels of the page for each of its pixels, across and down.

    Returns:
        Lines from top to bottom, boxes and widths in pixels of the page.
    """
    if not boxes.size:
        return ()
    height = boxes[:, 3]
    whole = height[height >= _MIN_HEIGHT_PX]
    if not whole.size:
        return ()
    typical = usual_size(whole)
    is_point = height < _POINT_SHARE * typical
    # The middle of each shape, so that a descender does not join its line to the next.
    left, top, width, height = boxes[~is_point].T
    first, end = top + height // 4, top + height - height // 4
    # Of rows that are the same, one is enough: most begin or end no shape.
    is_other = np.zeros(size_HW[0] + 1, np.bool_)
    is_other[first] = is_other[end] = True
    row_of = np.cumsum(is_other, dtype=np.int64)
    strip_RW = np.zeros((row_of[-1] + 1, size_HW[1]), np.uint8)
    for x1, y1, x2, y2 in np.stack((left, row_of[first], left + width, row_of[end]), axis=1).tolist():
        strip_RW[y1:y2, x1:x2] = 1
    reach = max(3, round(_LINE_GAP * typical)) | 1
    joined_RW: Any = cv2.morphologyEx(strip_RW, cv2.MORPH_CLOSE, np.ones((1, reach), np.uint8))
    _, labels_RW = cv2.connectedComponentsWithAlgorithm(joined_RW, 4, cv2.CV_32S, cv2.CCL_WU)
    line_of = _labels_of(labels_RW, row_of, boxes, np.where(is_point, round(_POINT_SHARE * typical), 0))
    lines = _without_points(_lines(boxes[line_of > 0], line_of[line_of > 0], scale_xy))
    if len(lines) > MOST_LINES or sum(len(line.words_px) for line in lines) > MOST_WORDS:
        return ()
    return tuple(sorted(lines, key=lambda line: (line.box_px[1], line.box_px[0])))


def usual_size(sizes: NDArray[np.int32]) -> float:
    """Median of shapes' sizes, at least one, without the quarter of them that is smallest, which may be points."""
    ranked = np.sort(sizes)
    whole = ranked[np.searchsorted(ranked, ranked[ceil(0.25 * (ranked.size - 1))]) :]
    return float(whole[(whole.size - 1) // 2] + whole[whole.size // 2]) / 2


def _labels_of(
    labels_RW: NDArray[np.int32], row_of: NDArray[np.int64], boxes: NDArray[np.int32], reach_N: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Label of each shape's middle; of a point, which is below or above it, the nearest within reach, or 0.

    `row_of` has the row of the labels for each of the page's, and one more.
    """
    left, top, width, height = boxes.T
    middle = top + height // 2
    last = len(row_of) - 2
    found = labels_RW[row_of[middle], left + width // 2]
    for offset in (-reach_N, reach_N):
        near = labels_RW[row_of[np.clip(middle + offset, 0, last)], left + width // 2]
        found = np.where(found == 0, near, found)
    return found


def mask_above(depth_HW: NDArray[np.uint8], threshold: float) -> NDArray[np.uint8]:
    """1 where a pixel is above the threshold, else 0."""
    _, mask_HW = cv2.threshold(depth_HW, int(threshold), 1, cv2.THRESH_BINARY)
    return mask_HW  # type: ignore[return-value] # OpenCV says no more than "array"


def places_in(mask_HW: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Flat indices of a contiguous mask's ones; as truth values numpy finds them in a fifth of the time."""
    result: NDArray[np.int64] = np.flatnonzero(mask_HW.view(np.bool_))
    return result


def label_shapes(mask_HW: NDArray[np.uint8]) -> tuple[int, NDArray[np.int32], NDArray[np.int32]]:
    """Label the connected shapes of a mask, corners included.

    Args:
        mask_HW: 0 is background, 1 is not.

    Returns:
        How many labels there are, the label of each pixel, `[H, W]`, and for each label its left, top, width, height
        and area, `[N, 5]`; label 0 is the background, of which nothing is measured.
    """
    # The same labels as by OpenCV's own choice, in a third to nine tenths of the time.
    labels_HW: Any
    num_labels, labels_HW = cv2.connectedComponentsWithAlgorithm(mask_HW, 8, cv2.CV_32S, cv2.CCL_BBDT)
    return num_labels, labels_HW, _measured(mask_HW, labels_HW, num_labels)


def _measured(mask_HW: NDArray[np.uint8], labels_HW: NDArray[np.int32], num_labels: int) -> NDArray[np.int32]:
    """Left, top, width, height and area of each label, from where its rows of pixels begin and end.

    OpenCV measures the background pixel by pixel, too, and takes longer.
    """
    width = mask_HW.shape[1]
    is_end_HW = np.empty(mask_HW.shape, np.bool_)
    is_end_HW[:, 0] = mask_HW[:, 0]
    np.greater(mask_HW[:, 1:], mask_HW[:, :-1], out=is_end_HW[:, 1:])
    first = np.flatnonzero(is_end_HW)
    is_end_HW[:, -1] = mask_HW[:, -1]
    np.greater(mask_HW[:, :-1], mask_HW[:, 1:], out=is_end_HW[:, :-1])
    lengths = np.flatnonzero(is_end_HW) + 1 - first
    numbers = labels_HW.ravel()[first].astype(np.int64)
    y, x = np.divmod(first, width)
    left, right = np.full(num_labels, width), np.zeros(num_labels, np.int64)
    np.minimum.at(left, numbers, x)
    np.maximum.at(right, numbers, x + lengths)
    top, bottom = np.zeros((2, num_labels), np.int64)
    # Rows rise, and of several values the last one stays.
    top[numbers[::-1]] = y[::-1]
    bottom[numbers] = y + 1
    stats = np.stack((left, top, right - left, bottom - top, np.bincount(numbers, lengths, num_labels)), axis=1)
    stats[0] = 0
    result: NDArray[np.int32] = stats.astype(np.int32)
    return result


def find_shapes(depth_HW: NDArray[np.uint8], threshold: float) -> NDArray[np.int32]:
    """Find connected shapes that may be characters, words or points.

    Args:
        depth_HW: How much darker each pixel is than the paper around it.
        threshold: What paper and noise stay below.

    Returns:
        Boxes, `[N, 4]`: left, top, width, height.
    """
    # Soft edges join characters, so only the darker half of print counts.
    inked = depth_HW[mask_above(depth_HW, threshold).view(np.bool_)]
    if not inked.size:
        return np.zeros((0, 4), np.int32)
    darkest = percentile(inked, 90)
    _, labels_HW, stats = label_shapes(mask_above(depth_HW, max(threshold, _CAP_SHARE * darkest)))
    is_wide = stats[:, 2] > _FIELD_SHAPE * stats[:, 3]
    is_wide[0] = False
    is_field = find_boxes(labels_HW, stats, is_wide, _MIN_HEIGHT_PX)[1:]
    left, top, width, height, area = stats[1:].T
    page_height, page_width = depth_HW.shape
    tallest = max(_TALLEST_SHARE * max(depth_HW.shape), 60)
    long, short = np.maximum(width, height), np.minimum(width, height)
    fill = area / (width * height)
    is_rule = (long > 10 * short) & (fill > 0.5)
    is_frame = (fill < 0.1) & (short > 30)
    is_cut = (left <= 0) | (top <= 0) | (left + width >= page_width) | (top + height >= page_height)
    is_print = (
        (height >= _MIN_POINT_PX)
        & (height <= tallest)
        & (area >= 1.5 * _MIN_POINT_PX)
        & ~is_rule
        & ~is_frame
        & ~is_field
        & ~is_cut
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


def _lines(boxes: NDArray[np.int32], line_of: NDArray[np.int32], scale_xy: tuple[float, float]) -> list[InkLine]:
    """Measure the lines of shapes.

    Args:
        boxes: Shapes, as `find_shapes` gives them.
        line_of: Label of each shape's line, 1 and more.
        scale_xy: Pixels of the page for each of the boxes', across and down.

    Returns:
        Lines in the order of their labels, without those that are dust.
    """
    if not boxes.size:
        return []
    order = np.lexsort((boxes[:, 0], line_of))
    left, top, width, height = boxes[order].astype(np.int64).T
    starts_line = np.diff(line_of[order], prepend=0) != 0
    # Of each shape: the number of its line.
    line = np.cumsum(starts_line) - 1
    firsts = np.flatnonzero(starts_line)
    body = _bodies(height, line, firsts)
    # How far the shapes before it reach; those of other lines are far to the left.
    apart = line * int((left + width).max() + 1)
    reach = np.maximum.accumulate(left + width + apart) - apart
    space = np.maximum(1.0, _WORD_GAP * body)
    starts_word = starts_line.copy()
    starts_word[1:] |= left[1:] - reach[:-1] > space[line[1:]]
    starts = np.flatnonzero(starts_word)
    ends = np.append(starts[1:], left.size) - 1
    kept = (np.maximum.reduceat(height, starts) >= _POINT_SHARE * body[line[starts]]) & (body[line[starts]] > 0)
    starts, ends = starts[kept], ends[kept]
    if not starts.size:
        return []
    words = np.maximum(1, np.rint((reach[ends] - left[starts]) * scale_xy[0])).astype(np.int64).tolist()
    cuts = np.flatnonzero(np.diff(line[starts], prepend=-1))
    numbers = line[starts[cuts]]
    ends_of_words = np.append(cuts[1:], starts.size)
    corners = (
        left[starts[cuts]],
        np.minimum.reduceat(top, firsts)[numbers],
        reach[ends[ends_of_words - 1]],
        np.maximum.reduceat(top + height, firsts)[numbers],
    )
    boxes_px = np.rint(np.stack(corners, axis=1) * np.array(scale_xy * 2)).astype(np.int64).tolist()
    return [
        InkLine((x1, y1, x2, y2), tuple(words[start:end]), round(high * scale_xy[1], 1))
        for (x1, y1, x2, y2), start, end, high in zip(
            boxes_px, cuts.tolist(), ends_of_words.tolist(), body[numbers].tolist(), strict=True
        )
    ]


def _bodies(height: NDArray[np.int64], line: NDArray[np.int64], firsts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Measure how high the characters of lines are.

    Args:
        height: Of each shape, line after line.
        line: Number of its line.
        firsts: First shape of each line.

    Returns:
        Median of each line; 0 for a line of dust.
    """
    height = height[np.lexsort((height, line))]
    ends = np.append(firsts[1:], height.size)
    is_whole = height >= np.maximum(_MIN_HEIGHT_PX, _POINT_SHARE * height[ends - 1])[line]
    count = np.add.reduceat(is_whole.astype(np.int64), firsts)
    lower, upper = ends - count + (count - 1) // 2, np.minimum(ends - count + count // 2, height.size - 1)
    return np.where(count, (height[lower] + height[upper]) / 2, 0.0)
