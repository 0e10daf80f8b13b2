"""Looks for print on a page before a model reads it, and counts the marks that could be characters.

A page without any is blank, however dirty its paper is. Dust, noise, paper, a scanner's edge, punch holes, folds,
ruled lines and print that shows through from the other side are not marks. Knows OpenCV and numpy, no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.images.histogram import median, percentile
from shared.images.ink_lines import find_lines, find_shapes, label_shapes, mask_above, places_in
from shared.images.page_ink import HIDING_NOISE, MOST_MARKS, PageInk
from shared.images.tints import without_tints

# Callers look at one page for each core already.
cv2.setNumThreads(1)

MAX_SIDE_PX = 1500
"""Larger pages are made smaller first: A4 keeps 128 dots an inch, where the capitals of 6-point print are 8 px tall."""
_LONGEST_SHEET = 3
"""A strip is measured by so many times its width, as a till roll made as short as a sheet would lose its print."""
_PAPER_SCALE = 4
"""The paper is estimated on a page that is this much smaller."""
_PAPER_KERNEL = 13
"""Of the closing on the small page: strokes that are thinner than some 50 px vanish."""
_DARK = 110
"""Brightness below which the middle pixel is not of paper but of a dark ground, 0 to 255."""
_BANDS = 20
_FAINTEST = 14.0
"""Print must be darker than scanned paper by 1.7 times this, of 255: grain, folds and stains are not."""
_FAINTEST_DIGITAL = 6.0
"""On a page that was never paper."""
_COARSE_NOISE = 5.0
_UNEVEN = 0.15
"""A crop of which more differs from its paper, but has no marks, may have blurred ones in a shadow."""
_TALLEST_PX = 250
"""Print of this height is print on images of any size: a line that was cut out at 600 dots an inch."""
_ALONE_PX = 10
"""A smaller mark is dust, unless it is in a line."""
_MOST_INK = 0.4
"""Print never covers more of a line; if more is darker than its paper, that is a shadow."""
_PARTS, _LEAST_PART_PX = (16, 4), 64
"""Marks are first looked for on such shares of a page, no lower than so many pixels."""
_CROP_PIXELS = 250_000
"""Smaller images are crops of a word or a line, where a small letter may be alone, and dust is rare."""


@dataclass(frozen=True)
class Relief:
    """A page's print, apart from its paper.

    Shapes:
        grey_HW: the page, 255 is paper
        depth_HW: how much darker each pixel is than the paper around it
    """

    grey_HW: NDArray[np.uint8]
    depth_HW: NDArray[np.uint8]
    noise: float
    """Standard deviation of what varies from pixel to pixel, of 255."""
    threshold: float
    """Paper and a sensor's noise stay below."""
    scale_xy: tuple[float, float]
    """Pixels of the page for each of the relief, across and down: they differ where a side of the relief is rounded."""

    @property
    def scale(self) -> float:
        """The same, down."""
        return self.scale_xy[1]

    @cached_property
    def darkest(self) -> float:
        """Depth of the page's darkest print."""
        return percentile(self.depth_HW, 99.7)

    @cached_property
    def shapes(self) -> NDArray[np.int32]:
        """Boxes of connected shapes that may be characters, words or points, `[N, 4]`: left, top, width, height."""
        return find_shapes(self.depth_HW, self.threshold)


def find_ink(page: Image.Image) -> PageInk:
    """Look for print on a page.

    Args:
        page: Upright, mode RGB or L, of any size.

    Returns:
        What was found.
    """
    return ink_of(relief_of(page))


def relief_of(page: Image.Image) -> Relief:
    """Tell the print of a page, mode RGB or L, from its paper; a large page is made smaller."""
    grey_HW = _grey(page)
    return _relief(grey_HW, (page.width / grey_HW.shape[1], page.height / grey_HW.shape[0]))


def relief_of_grey(grey_HW: NDArray[np.uint8], scale: float) -> Relief:
    """Tell print from paper on a page that is grey already, 255 is paper; `scale` is pixels of the page for each."""
    return _relief(grey_HW, (scale, scale))


def ink_of(relief: Relief) -> PageInk:
    """Look for print in a page's relief."""
    ink = _look(relief)
    if ink.marks < MOST_MARKS and ink.noise > _COARSE_NOISE:
        # A dithered or grainy page: half its size has half the noise, and its print is still there.
        grey_HW = relief.grey_HW
        size = max(1, grey_HW.shape[1] // 2), max(1, grey_HW.shape[0] // 2)
        half_HW: Any = cv2.resize(grey_HW, size, interpolation=cv2.INTER_AREA)
        height, width = grey_HW.shape
        scale_xy = relief.scale_xy[0] * width / size[0], relief.scale_xy[1] * height / size[1]
        half = _look(_relief(half_HW, scale_xy))
        is_in_shadow = half.is_in_shadow if half.marks >= ink.marks else ink.is_in_shadow
        ink = PageInk(max(ink.marks, half.marks), ink.ink_ratio, half.noise, half.lines, is_in_shadow)
    return ink


def _relief(grey_HW: NDArray[np.uint8], scale_xy: tuple[float, float]) -> Relief:
    depth_HW = _depth(grey_HW)
    noise = _noise(depth_HW)
    return Relief(grey_HW, depth_HW, noise, max(_FAINTEST if noise else _FAINTEST_DIGITAL, 4.5 * noise), scale_xy)


def _look(relief: Relief) -> PageInk:
    depth_HW, threshold, noise = relief.depth_HW, relief.threshold, relief.noise
    mask_HW = mask_above(depth_HW, threshold)
    ink_ratio = cv2.countNonZero(mask_HW) / mask_HW.size
    # Print does not reach over a third of a page, but over all of a strip with one line.
    tallest = max(0.35 * mask_HW.shape[0], _TALLEST_PX)
    count = partial(_count_marks, threshold=threshold, noise=noise, tallest=tallest)
    is_in_shadow = False
    marks = 0
    # A part of a page of print tells enough, at a fraction of the time: what is a mark there is one on the page.
    for part in _densest_parts(mask_HW):
        marks = count(depth_HW[part], mask_HW[part], alone_px=_ALONE_PX, is_cut_close=False)
        if marks >= MOST_MARKS:
            break
    else:
        is_crop = mask_HW.size < _CROP_PIXELS
        is_cut_close = is_crop or mask_HW.shape[0] <= _TALLEST_PX
        marks = count(depth_HW, mask_HW, alone_px=0 if is_crop else _ALONE_PX, is_cut_close=is_cut_close)
        if not marks:
            # Dot matrix print has no letters until its dots are joined. Dirt is joined too, so only lines count.
            joined_HW: Any = cv2.morphologyEx(mask_HW, cv2.MORPH_CLOSE, np.ones((5, 3), np.uint8))
            marks = count(depth_HW, joined_HW, alone_px=math.inf, is_cut_close=is_cut_close)
        if is_cut_close and ink_ratio > _MOST_INK:
            # A steep shadow joins the letters of a line to one shape. They are the darker part of it.
            level, _ = cv2.threshold(depth_HW, 0, 255, cv2.THRESH_OTSU)
            relief = replace(relief, threshold=level)
            if not marks:
                marks = count(depth_HW, mask_above(depth_HW, level), alone_px=0, is_cut_close=True)
                is_in_shadow = marks > 0
        if is_crop and not marks and noise < HIDING_NOISE and ink_ratio > _UNEVEN:
            # Blurred print in a shadow is told by reading alone, which takes little of a crop.
            is_in_shadow = True
    lines = find_lines(relief.shapes, depth_HW.shape, relief.scale_xy) if marks else ()
    return PageInk(min(marks, MOST_MARKS), ink_ratio, noise, lines, is_in_shadow)


def _densest_parts(mask_HW: NDArray[np.uint8]) -> Iterator[slice]:
    """Rows of the parts of a page with most ink, smaller ones first."""
    rows = mask_HW.shape[0]
    inked_H: Any = cv2.reduce(mask_HW, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    sums = np.concatenate([[0], np.cumsum(inked_H, dtype=np.int64)])
    for height in sorted({max(rows // parts, min(rows, _LEAST_PART_PX)) for parts in _PARTS}):
        start = int(np.argmax(sums[height:] - sums[:-height]))
        yield slice(start, start + height)


def _grey(page: Image.Image) -> NDArray[np.uint8]:
    """Bright paper with dark ink, whatever the colours: coloured ink is as dark as its darkest channel."""
    # As bands, which Pillow gives in half the time of pixels.
    bands: list[Any] = [np.asarray(band) for band in without_tints(page).split()]
    longest_px = min(max(page.size), _LONGEST_SHEET * min(page.size))
    # By whole numbers OpenCV takes the mean of squares, which is fast and keeps thin strokes.
    whole = longest_px // MAX_SIDE_PX
    if whole > 1:
        size = max(1, page.width // whole), max(1, page.height // whole)
        bands = [cv2.resize(band, size, interpolation=cv2.INTER_AREA) for band in bands]
        longest_px //= whole
    every_fourth: Any = [np.ascontiguousarray(band[::4, ::4]) for band in bands]
    luminance: Any = every_fourth[0]
    if len(bands) > 1:
        luminance = cv2.cvtColor(cv2.merge(every_fourth), cv2.COLOR_RGB2GRAY)
    # More than half of it is dark: white print on black.
    if median(luminance) < _DARK:
        grey_HW: Any = cv2.bitwise_not(reduce(cv2.max, bands))
    else:
        grey_HW = reduce(cv2.min, bands)
    scale = MAX_SIDE_PX / longest_px
    if scale < 1:
        size = max(1, round(grey_HW.shape[1] * scale)), max(1, round(grey_HW.shape[0] * scale))
        grey_HW = cv2.resize(grey_HW, size, interpolation=cv2.INTER_LINEAR)
    result: NDArray[np.uint8] = grey_HW
    return result


def _depth(grey_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """How much darker each pixel is than the paper around it."""
    height, width = grey_HW.shape
    # One line of print may be the whole image: its edge continues outwards as paper.
    small: Any = cv2.resize(
        grey_HW, (max(1, width // _PAPER_SCALE), max(1, height // _PAPER_SCALE)), interpolation=cv2.INTER_AREA
    )
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (_PAPER_KERNEL, _PAPER_KERNEL))
    paper: Any = cv2.morphologyEx(small, cv2.MORPH_CLOSE, kernel, borderType=cv2.BORDER_REPLICATE)
    paper = cv2.resize(cv2.blur(paper, (5, 5)), (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.subtract(paper, grey_HW)  # type: ignore[return-value]


def _noise(depth_HW: NDArray[np.uint8]) -> float:
    """Standard deviation of what varies from pixel to pixel, from the median, which print does not move (Immerkaer)."""
    if min(depth_HW.shape) < 3:
        return 0.0
    # Bands of rows: a fifth of a page tells as much as all of it.
    height = depth_HW.shape[0]
    step = max(1, height // _BANDS)
    rows = np.arange(0, height - 2, step)[:, None] + np.arange(step // 5 + 3)
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    bands_HW = depth_HW[np.minimum(rows, height - 1).ravel()]
    residual_HW: Any = cv2.convertScaleAbs(cv2.filter2D(bands_HW, cv2.CV_16S, kernel))
    # All bands at once, without the rows and columns where a pixel's neighbours are others.
    is_inside = (rows < height - 1) & (np.arange(rows.shape[1]) % (rows.shape[1] - 1) > 0)
    return median(residual_HW[is_inside.ravel(), 1:-1]) / 0.6745 / 6


def _count_marks(
    depth_HW: NDArray[np.uint8],
    mask_HW: NDArray[np.uint8],
    *,
    threshold: float,
    noise: float,
    tallest: float,
    alone_px: float,
    is_cut_close: bool,
) -> int:
    """Shapes of print among all that is darker than paper; smaller ones than `alone_px`, and hairs, only in lines."""
    num_labels, labels_HW, stats = label_shapes(mask_HW)
    height, width = mask_HW.shape
    left, top, w, h, area = stats.T
    long, short = np.maximum(w, h), np.minimum(w, h)
    # The paper itself is label 0.
    sized = (h >= 5) & (long >= 6) & (area >= 8) & (h <= tallest) & (np.arange(num_labels) > 0)
    if is_cut_close:
        # A line that was cut out close to its letters touches the edges, but no letter reaches from side to side.
        inside = (left > 1) | (left + w < width - 1)
    else:
        inside = (left > 1) & (top > 1) & (left + w < width - 1) & (top + h < height - 1)
    candidates = np.flatnonzero(sized & inside & (area > 0.04 * w * h))
    if not candidates.size:
        return 0
    number_of = np.full(num_labels, -1, np.int32)
    number_of[candidates] = np.arange(candidates.size)
    inked = places_in(mask_HW)
    numbers = number_of[labels_HW.ravel()[inked]]
    inked, numbers = inked[numbers >= 0], numbers[numbers >= 0]
    order = np.argsort(numbers.astype(np.uint16) if candidates.size <= 65536 else numbers, kind="stable")
    inked, numbers = inked[order], numbers[order]
    starts = np.searchsorted(numbers, np.arange(candidates.size))
    depths = depth_HW.ravel()[inked].astype(np.int32)
    edge_HW: Any = cv2.morphologyEx(depth_HW, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    peak = np.maximum.reduceat(depths, starts)
    edge = np.maximum.reduceat(edge_HW.ravel()[inked].astype(np.int32), starts)
    # The threshold is low, so soft edges close letters' holes; their inner half shows the form.
    core = np.add.reduceat((2 * depths > peak[numbers]).astype(np.int32), starts)
    w, h, area = w[candidates], h[candidates], area[candidates]
    long, short = long[candidates], short[candidates]
    fill = core / (w * h)
    is_sharp = (edge - 4 * noise > 0.65 * peak) & (peak > 1.7 * threshold)
    is_rule = (long > 8 * short) & (fill > 0.4)
    is_blob = (fill > 0.62) & (short > 0.5 * long)
    # A punch hole or a bullet.
    is_disc = (long > 9) & (long - short <= 0.04 * long + 1) & (area > 0.68 * w * h) & (fill > 0.52)
    # A hair or a scratch: the strokes of a letter of this size would be thicker.
    is_thin = (fill < 0.14) & (long > 30)
    marks = np.flatnonzero(is_sharp & ~is_rule & ~is_blob & ~is_disc)
    is_weak = (is_thin | (long < alone_px))[marks]
    x, y = (left + stats[:, 2] / 2)[candidates[marks]], (top + stats[:, 3] / 2)[candidates[marks]]
    strong = int((~is_weak).sum())
    if not alone_px:
        return int(marks.size)
    return strong + _in_lines(x[is_weak], y[is_weak], long[marks][is_weak])


def _in_lines(x: NDArray[Any], y: NDArray[Any], size: NDArray[Any]) -> int:
    """How many shapes have two others of their size close by in the same line, as dust does not."""
    if x.size < 3:
        return 0
    if x.size > 2000:
        return int(x.size)
    across, down = np.abs(x[:, None] - x), np.abs(y[:, None] - y)
    near = (across < 3 * size[:, None]) & (down < 0.5 * size[:, None]) & (size < 2 * size[:, None])
    return int((near.sum(1) > 2).sum())
