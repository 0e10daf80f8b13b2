"""Tells columns, which are read one after the other, from a table's cells, which are read row by row.

Uses geometry alone, no pixels and no text. A gutter is vertical white space; a side is what lies left or right of it.
In a table, lines on both sides align: they share a baseline, a top or a middle. In columns they align only by chance,
unless both are set on one baseline grid; then only running text counts as columns.

Thresholds were measured on drawn pages (benchmarks/LOG.md): at all 3,767 gutters inside tables, at least half of the
lines of the side with fewer lines align.

Shape letters: N segments, R rules.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from shared.images.segments import Segment

_LEAST_SEGMENTS, _LEAST_LINES = 3, 4
"""Minimum for each side of a gutter."""
_GUTTER_EM, _COLUMN_EM = 0.75, 3.0
"""Minimum widths. Anything narrower than a column is line numbers in a margin."""
_SHARED_EM = 3.0
"""Minimum vertical overlap of the two sides."""
_RULE_REACH_EM = 2.0
"""A rule crosses a gutter if it extends this far to both sides."""
_MOST_TRIED = 200
"""Gutters to try per part of a page. Printed pages have fewer, textures more."""

_HEIGHT_EM = 0.15
"""Lines align if their baselines, tops or middles differ by less."""
_LINE_EM = 0.4
"""Segments of one side belong to the same line if their middles differ by less."""
_BESIDE_EM = 0.8
"""A line has no neighbour if every line of the other side is farther away. Such lines are ignored."""
_ODD_SHARE, _ODD_LINES = 0.25, (1.5, 1.0, 0.0)
"""In a table, at most this share of lines plus a constant may be misaligned. The constant depends on how many sides are
running text: none, one or both."""

_PROSE_WORDS = 2.6
"""Running text has at least this many words per line; table cells have fewer."""
_FULL_SHARE = 0.5
"""Mean length of running text's lines, of the longest."""
_INKED_SHARE = 0.75
"""Of running text's lines; cells of a row leave gaps, and typewriters where they justify."""
_CELLS_SHARE = 0.35
"""White space that no more of the lines around it cross parts cells, even below a heading."""
_GRID_LINES, _PLAIN_GRID_LINES = 16, 6
"""Running text with this many aligned lines is columns, not a table with long cells; plain text needs fewer."""
_PLAIN_WORDS, _PLAIN_PIECES = 4.5, 1.3
"""Plain text has more words and fewer segments per line."""
_JUSTIFIED_PIECES, _JUSTIFIED_INKED = 1.6, 0.96
"""Justified plain text may be split into more segments if this share of each line is still covered."""

_BAND_EM, _BAND_SHARE = 0.75, 1.35
"""White space across both sides, in em and of that between most lines, from which it parts two bands."""
_BROAD_EM, _BROAD_SHARE = 1.5, 1.5
"""And from which columns end: in em, and of the widest within a side's bands."""
_FOLLOWS_SHARE = 1.3
"""Of the widest white space within the left column: what comes after no more is still of it."""
_ODD_WORTH, _EVEN_WORTH, _PROSE_WORTH, _ALONE_WORTH = 1.0, -0.25, 0.05, -0.5
"""Evidence for columns from a misaligned line, an aligned one, an aligned one in running text, and one without a
neighbour."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Two sides of a gutter and what is above and below them; indices of segments."""

    above: list[int]
    left: list[int]
    right: list[int]
    below: list[int]


@dataclass(frozen=True, slots=True)
class _Print:
    """Segments of a part of a page.

    Shapes:
        box_N4: x1, y1, x2, y2
        heights_N3: base line, top and middle
        words_N: how many words
    """

    box_N4: np.ndarray
    heights_N3: np.ndarray
    words_N: np.ndarray
    em: float
    """Of most."""

    @property
    def middle(self) -> np.ndarray:
        """Of each one's height."""
        return self.heights_N3[:, 2]


@dataclass(frozen=True, slots=True)
class _Gutter:
    """White space between two sides; both are indices of segments."""

    score: float
    low: float
    """What is higher up is above both, as the first segment that crosses the gutter is."""
    high: float
    left: np.ndarray
    right: np.ndarray


@dataclass(frozen=True, slots=True)
class _Lines:
    """Of each line of a column its length, number of words, inked share and number of segments."""

    length: np.ndarray
    words: np.ndarray
    inked: np.ndarray
    pieces: np.ndarray


def find_columns(segments: Sequence[Segment], rules: Sequence[tuple[int, int, int, int]] = ()) -> Columns | None:
    """Find the best two columns.

    Args:
        segments: Of a level page or a part of it, in any order.
        rules: Boxes of the page's rules: columns end at a level one that crosses their gutter, and go on along an
            upright one within it.

    Returns:
        The columns, each of which may be several; None if all is to be read row by row.
    """
    if len(segments) < 2 * _LEAST_SEGMENTS:
        return None
    rules_R4 = np.array(rules, np.float64).reshape(-1, 4)
    is_level = rules_R4[:, 2] - rules_R4[:, 0] > rules_R4[:, 3] - rules_R4[:, 1]
    page = _Print(
        np.array([segment.box for segment in segments], np.float64),
        np.array([_heights(segment) for segment in segments], np.float64),
        np.array([len(segment.words) for segment in segments], np.float64),
        float(np.median([segment.em_px for segment in segments])),
    )
    # The best first; cutting bands off, which takes longer, only makes a gutter worse.
    queue = [(-gutter.score, number, False, gutter) for number, gutter in enumerate(_gutters(page, rules_R4))]
    heapq.heapify(queue)
    for _ in range(_MOST_TRIED):
        if not queue:
            break
        _, number, is_trimmed, gutter = heapq.heappop(queue)
        if is_trimmed and _are_columns(page, gutter.left, gutter.right):
            above, below = (np.flatnonzero(each) for each in (page.middle <= gutter.low, page.middle >= gutter.high))
            return Columns(above.tolist(), gutter.left.tolist(), gutter.right.tolist(), below.tolist())
        trimmed = None if is_trimmed else _trimmed(page, rules_R4[~is_level], gutter)
        if trimmed is not None:
            heapq.heappush(queue, (-trimmed.score, number, True, trimmed))
    return None


def _heights(segment: Segment) -> tuple[float, float, float]:
    """Base line and top of most of its letters, and its middle."""
    parts, half = segment.parts or (segment.box,), len(segment.parts) // 2
    return sorted(part[3] for part in parts)[half], sorted(part[1] for part in parts)[half], segment.middle


def _gutters(page: _Print, rules_R4: np.ndarray) -> Iterator[_Gutter]:
    """White space with enough lines on both sides, down to the next segment or rule that crosses it."""
    reach, rule_middle = _RULE_REACH_EM * page.em, rules_R4[:, [1, 3]].mean(axis=1)
    middle = page.middle
    x1, _, x2, _ = page.box_N4.T
    seen: set[tuple[float, int, int]] = set()
    for x in np.unique(np.round((x2 + 0.4 * page.em) / 4) * 4).tolist():
        is_left, is_right = x2 <= x, x1 >= x
        is_across = (rules_R4[:, 0] < x - reach) & (rules_R4[:, 2] > x1[is_right].min(initial=math.inf) + reach)
        bounds = np.sort(np.concatenate((middle[~is_left & ~is_right], rule_middle[is_across])))
        # The zone of each segment: how many cross the gutter above it; none for one on the height of what does.
        zone = np.searchsorted(bounds, middle)
        is_inside = zone == np.searchsorted(bounds, middle, "right")
        is_left, is_right = is_left & is_inside, is_right & is_inside
        num_left, num_right = (np.bincount(zone[side], minlength=bounds.size + 1) for side in (is_left, is_right))
        for number in np.flatnonzero((num_left >= _LEAST_SEGMENTS) & (num_right >= _LEAST_SEGMENTS)).tolist():
            low = float(bounds[number - 1]) if number else -math.inf
            high = float(bounds[number]) if number < bounds.size else math.inf
            # A little further right there are the same segments on both sides.
            key = low, int(num_left[number]), int(num_right[number])
            if key in seen:
                continue
            seen.add(key)
            left, right = (np.flatnonzero(side & (zone == number)) for side in (is_left, is_right))
            score = _score(page, left, right)
            if score > 0:
                yield _Gutter(score, low, high, left, right)


def _score(page: _Print, left: np.ndarray, right: np.ndarray) -> float:
    """How much two sides are worth if they are columns; 0 if they cannot be any."""
    if min(left.size, right.size) < _LEAST_SEGMENTS:
        return 0.0
    x1, y1, x2, y2 = page.box_N4.T
    # A column next to nothing is none.
    height = min(y2[left].max(), y2[right].max()) - max(y1[left].min(), y1[right].min())
    if height < _SHARED_EM * page.em or x1[right].min() - x2[left].max() < _GUTTER_EM * page.em:
        return 0.0
    return float(height * min(page.words_N[left].sum(), page.words_N[right].sum()) ** 0.5)


def _trimmed(page: _Print, rules_R4: np.ndarray, gutter: _Gutter) -> _Gutter | None:
    """The bands of a gutter, parted by white space across both sides, that are most likely columns; None without any.

    So the letterhead or the table below columns is left out, although nothing crosses the gutter between them.
    """
    both = np.concatenate((gutter.left, gutter.right))
    order = both[np.argsort(page.box_N4[both, 1], kind="stable")]
    gaps = _whites(page, order)
    usual = min(_usual_white(page, side) for side in (gutter.left, gutter.right))
    band_gap = max(_BAND_EM * page.em, _BAND_SHARE * usual)
    cuts = np.flatnonzero(gaps > band_gap) + 1
    if not cuts.size:
        return gutter
    is_left = np.zeros(len(page.box_N4), np.bool_)
    is_left[gutter.left] = True
    bands = np.split(order, cuts)
    sides = [(band[is_left[band]], band[~is_left[band]]) for band in bands]
    widest = max(float(_whites(page, side).max(initial=0.0)) for pair in sides for side in pair)
    is_broad = gaps[cuts - 1] > max(_BROAD_SHARE * widest, _BROAD_EM * page.em)
    is_broad &= ~_are_ruled(page, rules_R4, gutter, order, cuts)
    are_prose = _is_prose(page, gutter.left) and _is_prose(page, gutter.right)
    first, last = _best_run([_worth(page, left, right, are_prose) for left, right in sides], is_broad.tolist())
    if first == last:
        return None
    # A longer left column goes on below the right one; that of plain text to its notes, but not to a page's number.
    left = np.concatenate([left for left, _ in sides[first:last]])
    has_notes = are_prose and _is_plain(page, left)
    follows = _FOLLOWS_SHARE * max(band_gap, float(_whites(page, left).max(initial=0.0)))
    for number in range(last, len(bands)):
        is_near = not is_broad[number - 1] and gaps[cuts[number - 1] - 1] <= follows
        if sides[number][1].size or not (is_near or (has_notes and bands[number].size > 1)):
            break
        last = number + 1
    left, right = (np.sort(np.concatenate(each)) for each in zip(*sides[first:last], strict=True))
    score = _score(page, left, right)
    low = float(page.middle[np.concatenate(bands[:first])].max()) if first else gutter.low
    high = float(page.middle[np.concatenate(bands[last:])].min()) if last < len(bands) else gutter.high
    return _Gutter(score, low, high, left, right) if score > 0 else None


def _are_ruled(page: _Print, rules_R4: np.ndarray, gutter: _Gutter, order: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Along which cuts between a gutter's segments, from top to bottom, an upright rule within it goes on."""
    x1, y1, x2, y2 = rules_R4.T
    is_inside = (x1 > page.box_N4[gutter.left, 2].max()) & (x2 < page.box_N4[gutter.right, 0].min())
    bottom, top = np.maximum.accumulate(page.box_N4[order, 3])[cuts - 1], page.box_N4[order[cuts], 1]
    result: np.ndarray = (is_inside & (y1 < bottom[:, None]) & (y2 > top[:, None])).any(axis=1)
    return result


def _whites(page: _Print, side: np.ndarray) -> np.ndarray:
    """White space above each segment but the first, from top to bottom, in pixels; negative where they overlap."""
    order = side[np.argsort(page.box_N4[side, 1], kind="stable")]
    gaps: np.ndarray = page.box_N4[order[1:], 1] - np.maximum.accumulate(page.box_N4[order, 3])[:-1]
    return gaps


def _usual_white(page: _Print, side: np.ndarray) -> float:
    """Between two lines of a side, in pixels."""
    gaps = _whites(page, side)
    gaps = gaps[gaps > 0]
    return float(np.median(gaps)) if gaps.size else 0.0


def _worth(page: _Print, left: np.ndarray, right: np.ndarray, are_prose: bool) -> float:
    """Evidence for columns in a band."""
    if not left.size or not right.size:
        return _ALONE_WORTH * len(_lines(page, np.concatenate((left, right))).length)
    is_even = _aligned(page, left, right)
    even = int(is_even.sum())
    return _ODD_WORTH * (is_even.size - even) + (_PROSE_WORTH if are_prose else _EVEN_WORTH) * even


def _best_run(worths: Sequence[float], is_end: Sequence[bool]) -> tuple[int, int]:
    """First and last, exclusive, of the neighbours that are worth most together; equal if none are worth anything."""
    best, run = 0.0, (0, 0)
    total, start = 0.0, 0
    for number, (worth, is_after_end) in enumerate(zip(worths, [True, *is_end], strict=False)):
        if total <= 0 or is_after_end:
            total, start = 0.0, number
        total += worth
        if total > best:
            best, run = total, (start, number + 1)
    return run


def _are_columns(page: _Print, left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two sides are read one after the other, rather than row by row."""
    sides = left, right
    if any(np.ptp(page.box_N4[side][:, [0, 2]]) < _COLUMN_EM * page.em for side in sides):
        return False
    is_even = _aligned(page, left, right)
    if is_even.size < _LEAST_LINES:
        return False
    num_prose = sum(_is_prose(page, side) for side in sides)
    if num_prose == len(sides):
        is_plain = all(_is_plain(page, side) for side in sides)
        if is_even.size >= (_PLAIN_GRID_LINES if is_plain else _GRID_LINES):
            return True
    return int((~is_even).sum()) > _ODD_SHARE * is_even.size + _ODD_LINES[num_prose]


def _aligned(page: _Print, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Whether each line of the side with fewer lines aligns; those without a neighbour are skipped."""
    sides = [_in_lines(page, side) for side in (left, right)]
    (fewer, starts), (more, _) = sorted(sides, key=lambda each: each[1].size)
    distance = np.full(fewer.size, math.inf)
    for heights_N in page.heights_N3.T:
        own, others = heights_N[fewer], np.concatenate(([-math.inf], np.sort(heights_N[more]), [math.inf]))
        place = np.searchsorted(others, own)
        distance = np.minimum(distance, np.minimum(own - others[place - 1], others[place] - own))
    distance = np.minimum.reduceat(distance, starts) / page.em
    result: np.ndarray = distance[distance < _BESIDE_EM] < _HEIGHT_EM
    return result


def _in_lines(page: _Print, side: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A side's segments from top to bottom, and where among them each line begins."""
    order = side[np.argsort(page.middle[side])]
    return order, np.flatnonzero(np.diff(page.middle[order], prepend=-math.inf) > _LINE_EM * page.em)


def _lines(page: _Print, side: np.ndarray) -> _Lines:
    """Lines of a column."""
    order, starts = _in_lines(page, side)
    x1, _, x2, _ = page.box_N4[order].T
    length = np.maximum.reduceat(x2, starts) - np.minimum.reduceat(x1, starts)
    return _Lines(
        length,
        np.add.reduceat(page.words_N[order], starts),
        np.add.reduceat(x2 - x1, starts) / length,
        np.diff(starts, append=order.size),
    )


def _is_prose(page: _Print, side: np.ndarray) -> bool:
    """Whether a side is running text, in one column or in several."""
    columns = [part for part in _parted(page, side) if len(part) >= _LEAST_SEGMENTS] or [side]
    for column in columns:
        lines = _lines(page, column)
        is_full = (lines.length / lines.length.max()).mean() >= _FULL_SHARE
        if lines.words.mean() < _PROSE_WORDS or not is_full or lines.inked.mean() < _INKED_SHARE:
            return False
        if _has_cells(page, column):
            return False
    return True


def _is_plain(page: _Print, side: np.ndarray) -> bool:
    """Whether a side is of long lines, few of which have wide gaps, in one column or in several."""
    columns = [_lines(page, part) for part in _parted(page, side) if len(part) >= _LEAST_SEGMENTS]
    return bool(columns) and all(_is_plain_column(lines) for lines in columns)


def _is_plain_column(lines: _Lines) -> bool:
    pieces = lines.pieces.mean()
    is_whole = pieces <= _PLAIN_PIECES or (pieces <= _JUSTIFIED_PIECES and lines.inked.mean() >= _JUSTIFIED_INKED)
    return bool(lines.words.mean() >= _PLAIN_WORDS and is_whole)


def _parted(page: _Print, side: np.ndarray) -> list[np.ndarray]:
    """A side cut at each gutter that nothing crosses."""
    order = side[np.argsort(page.box_N4[side, 0])]
    right = np.maximum.accumulate(page.box_N4[order, 2])
    cuts = np.flatnonzero(page.box_N4[order[1:], 0] - right[:-1] >= _GUTTER_EM * page.em) + 1
    return [order[a:b] for a, b in pairwise([0, *cuts.tolist(), order.size])]


def _has_cells(page: _Print, side: np.ndarray) -> bool:
    """Whether most lines of a column have gaps below each other; those of justified text are anywhere."""
    order, starts = _in_lines(page, side)
    if starts.size == order.size:
        return False
    x1, _, x2, _ = page.box_N4[order].T
    first, last = np.minimum.reduceat(x1, starts), np.maximum.reduceat(x2, starts)
    x = np.arange(first.min(), last.max(), 0.4 * page.em)[:, None]
    num_around = ((first < x) & (x < last)).sum(axis=1)
    num_across = ((x1 <= x) & (x <= x2)).sum(axis=1)
    is_inner = num_around >= max(_LEAST_SEGMENTS, 0.4 * starts.size)
    return bool((num_across[is_inner] < _CELLS_SHARE * num_around[is_inner]).any())
