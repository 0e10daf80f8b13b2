"""What stands on a page before anything is read: how many marks could be print.

A page without any is blank, however dirty its paper is. Dust, noise, paper, a scanner's edge, punch holes, folds,
ruled lines and print that shows through from the other side are not marks. Knows OpenCV and numpy, no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
_CROP_PIXELS = 250_000
"""Smaller images are crops of a word or a line, where a small letter may be alone, and dust is rare."""


@dataclass(frozen=True, slots=True)
class PageInk:
    """What an image shows apart from its paper."""

    marks: int
    """Shapes of the size, sharpness and form of characters, or of whole words where characters touch."""
    ink_ratio: float
    """Share of the page's area that differs from its paper, 0 to 1."""

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing that could be print."""
        return self.marks == 0


def find_ink(page: Image.Image) -> PageInk:
    """Look for print on a page.

    Args:
        page: Upright, mode RGB, of any size.

    Returns:
        What was found.
    """
    depth_HW = _depth(_grey(page))
    noise = _noise(depth_HW)
    # Paper and a sensor's noise stay below; print that is fainter than this could not be read by a person either.
    threshold = max(14.0, 4.5 * noise)
    mask_HW = (depth_HW > threshold).astype(np.uint8)
    ink_ratio = float(mask_HW.mean()) if mask_HW.size else 0.0
    return PageInk(_count_marks(depth_HW, mask_HW, threshold, noise), ink_ratio)


def _grey(page: Image.Image) -> NDArray[np.uint8]:
    """Bright paper with dark ink, whatever the colours: coloured ink is as dark as its darkest channel."""
    side_px = min(max(page.size), _LONGEST_SHEET * min(page.size))
    if side_px > MAX_SIDE_PX:
        scale = MAX_SIDE_PX / side_px
        size = max(1, round(page.width * scale)), max(1, round(page.height * scale))
        page = Image.fromarray(cv2.resize(np.asarray(page), size, interpolation=cv2.INTER_AREA))
    pixels_HWC = np.asarray(page)
    red, green, blue = cv2.split(pixels_HWC)
    dark_HW = cv2.min(cv2.min(red, green), blue)
    bright_HW = cv2.max(cv2.max(red, green), blue)
    # More than half of it is dark: white print on black.
    if float(np.median(bright_HW[::4, ::4])) < 110:
        return cv2.bitwise_not(bright_HW)  # type: ignore[return-value]
    return dark_HW  # type: ignore[return-value]


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
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    residual: Any = np.abs(cv2.filter2D(depth_HW, cv2.CV_16S, kernel)[1:-1, 1:-1])
    return float(np.median(residual[::2, ::2])) / 0.6745 / 6


def _count_marks(depth_HW: NDArray[np.uint8], mask_HW: NDArray[np.uint8], threshold: float, noise: float) -> int:
    """Shapes of print among all that is darker than paper."""
    num_labels, labels_HW, stats, _ = cv2.connectedComponentsWithStats(mask_HW, connectivity=8)
    height, width = mask_HW.shape
    left, top, w, h, area = stats.T
    long, short = np.maximum(w, h), np.minimum(w, h)
    # The paper itself is label 0; print reaches neither beyond the page nor over a third of it.
    sized = (h >= 5) & (long >= 6) & (area >= 8) & (h <= 0.35 * max(height, 60)) & (np.arange(num_labels) > 0)
    inside = (left > 1) & (top > 1) & (left + w < width - 1) & (top + h < height - 1)
    candidates = np.flatnonzero(sized & inside & (area > 0.04 * w * h))
    if not candidates.size:
        return 0
    number_of = np.full(num_labels, -1, np.int32)
    number_of[candidates] = np.arange(candidates.size)
    inked = np.flatnonzero(mask_HW)
    numbers = number_of[labels_HW.ravel()[inked]]
    inked, numbers = inked[numbers >= 0], numbers[numbers >= 0]
    order = np.argsort(numbers, kind="stable")
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
    is_disc = (long > 9) & (long - short <= 0.1 * long + 1) & (area > 0.66 * w * h) & (fill > 0.45)
    # A hair or a scratch: the strokes of a letter of this size would be thicker.
    is_thin = (fill < 0.14) & (long > 30)
    marks = np.flatnonzero(is_sharp & ~is_rule & ~is_blob & ~is_disc)
    is_weak = (is_thin | (long < 10))[marks]
    x, y = (left + stats[:, 2] / 2)[candidates[marks]], (top + stats[:, 3] / 2)[candidates[marks]]
    strong = int((~is_weak).sum())
    if mask_HW.size < _CROP_PIXELS:
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
