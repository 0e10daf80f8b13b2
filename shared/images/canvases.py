"""Strips of print packed onto small images, for a reader that writes a line for each strip.

`strip_cutting` makes strips of a page. Knows numpy alone, so that the service's own process can pack them.

Shape letters: H and W pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDE_PX = 640
BAND_PX = 160
"""A window of nano's attention: views without their padding are multiples of it."""
KEPT_ROWS = 2
"""Rows of tokens of padding that a prompt keeps above and below a band, as a view without a page has them. Without them
nano mistakes where print begins and ends: on six drawn pages 1.9 % of the characters were others than in whole views,
with one row 0.7 %, with two 0.13 %, with all 0.06 % (`benchmarks/LOG.md`)."""
LOW_PX = 2 * BAND_PX
"""Height of low canvases, eight or nine lines of print. Half of it was as fast and read more words of scans wrongly, as
fewer lines are seen together (`benchmarks/LOG.md`)."""
EM_PX = 22.0
"""Size of print on a canvas."""
LARGE_EM_PX = 34.0
"""And of print that was not read surely, when it is read once more."""
MARGIN_PX = 10
EDGE_EM = 0.1
"""Room left and right of a piece."""
_LEADING_EM = 0.34
MOST_LINES = 18
CANVAS_COST_PX = 600
"""What another canvas costs, as width of print: encoding it and reading its prompt take as long as some 25 steps, which
write so much."""
_LINE_BREAK_PX = 40
_TRIED_LENGTHS = 24
MOST_STRIPS = 1200
"""A page with more strips, or parts of them, has no lines that could be told apart."""
MOST_STRIP_PARTS = 12_000

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 on the page as it came, upright."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Words of one segment, and where they are on their strip."""

    segment: int
    """Index in the level page's segments."""
    first_word: int
    last_word: int
    """One past it."""
    x1: float
    x2: float
    """On the level page."""
    at_px: float
    """Its left on the strip."""


@dataclass(frozen=True, slots=True)
class Strip:
    """What one line of a reader's text is to be."""

    block: int
    row: int
    """Which row of all; strips of one row are one line of the text."""
    box_px: Box
    parts_px: tuple[Box, ...]
    """Boxes of what gaps part in its print, words and letters, from left to right."""
    pixels_HW: NDArray[np.uint8]
    """Dark print on white paper."""
    pieces: tuple[Piece, ...] = ()
    """What it was cut from; none where that is not known any more."""
    top: float = 0.0
    scale: float = 1.0
    """Its top on the level page, and its pixels for each of that page's."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """Strips below each other.

    Shapes:
        pixels_HW: at most `SIDE_PX` a side, 255 is paper
    """

    strips: tuple[Strip, ...]
    tops_px: tuple[int, ...]
    pixels_HW: NDArray[np.uint8]


def pack(
    strips: Sequence[Strip], em_px: float = EM_PX, most_lines: int = MOST_LINES, most_px: int = SIDE_PX
) -> list[Canvas]:
    """Put strips on canvases, in their order.

    Args:
        strips: In reading order.
        em_px: Size of their print.
        most_lines: Strips of a canvas at most.
        most_px: Height of a canvas at most; a higher strip has one of its own.

    Returns:
        At least one for any strips.
    """
    leading = _leading_px(em_px)
    heights = [strip.pixels_HW.shape[0] for strip in strips]
    return _canvases(strips, _fill(heights, [0] * len(strips), leading, most_lines, most_px), leading)


def pack_evenly(strips: Sequence[Strip], most_px: int, em_px: float = EM_PX) -> list[Canvas]:
    """Put strips on canvases with about as much text each, in their order.

    Answers are written side by side, so the longest decides how many steps a page takes.

    Args:
        strips: In reading order; at least one.
        most_px: As for `pack`.
        em_px: As for `pack`.

    Returns:
        As many as `pack` gives, or some more where that makes the longest answer much shorter.
    """
    leading = _leading_px(em_px)
    heights = [strip.pixels_HW.shape[0] for strip in strips]
    lengths = [strip.pixels_HW.shape[1] + _LINE_BREAK_PX for strip in strips]

    def longest_of(counts: Sequence[int]) -> int:
        ends = itertools.accumulate(counts)
        return max(sum(lengths[end - count : end]) for count, end in zip(counts, ends, strict=True))

    fewest = _fill(heights, lengths, leading, MOST_LINES, most_px)
    # A few canvases more at most, since nano reads few lines less well than many.
    most_canvases = len(fewest) * 5 // 4 + 1
    most, least = longest_of(fewest), max(sum(lengths) // most_canvases, *lengths)
    limits = [most - (most - least) * part // _TRIED_LENGTHS for part in range(_TRIED_LENGTHS + 1)]
    tried = [_fill(heights, lengths, leading, MOST_LINES, most_px, limit) for limit in limits]
    choices = [counts for counts in tried if len(counts) <= most_canvases]
    return _canvases(strips, min(choices, key=lambda each: len(each) * CANVAS_COST_PX + longest_of(each)), leading)


def _leading_px(em_px: float) -> int:
    return max(3, round(_LEADING_EM * em_px))


def _fill(
    heights: Sequence[int],
    lengths: Sequence[int],
    leading: int,
    most_lines: int,
    most_px: int,
    most_length: float = math.inf,
) -> list[int]:
    """How many strips each canvas has, if it takes the next as long as there is room."""
    counts: list[int] = []
    height = length = 0
    for more_px, more in zip(heights, lengths, strict=True):
        has_room = height + leading + more_px <= most_px and length + more <= most_length
        if counts and has_room and counts[-1] < most_lines:
            counts[-1] += 1
            height, length = height + leading + more_px, length + more
        else:
            counts.append(1)
            height, length = 2 * MARGIN_PX + more_px, more
    return counts


def _canvases(strips: Sequence[Strip], counts: Sequence[int], leading: int) -> list[Canvas]:
    ends = itertools.accumulate(counts)
    return [_canvas(strips[end - count : end], leading) for count, end in zip(counts, ends, strict=True)]


def _canvas(strips: Sequence[Strip], leading: int) -> Canvas:
    width = min(SIDE_PX, max(strip.pixels_HW.shape[1] for strip in strips) + 2 * MARGIN_PX)
    height = sum(strip.pixels_HW.shape[0] for strip in strips) + leading * (len(strips) - 1) + 2 * MARGIN_PX
    pixels_HW = np.full((min(height, SIDE_PX), width), 255, np.uint8)
    tops = []
    y = MARGIN_PX
    for strip in strips:
        part = strip.pixels_HW[: pixels_HW.shape[0] - y, : width - MARGIN_PX]
        pixels_HW[y : y + part.shape[0], MARGIN_PX : MARGIN_PX + part.shape[1]] = part
        tops.append(y)
        y += strip.pixels_HW.shape[0] + leading
    return Canvas(tuple(strips), tuple(tops), pixels_HW)
