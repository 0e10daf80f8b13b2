"""Puts segments of lines in the order in which a person reads them: columns one after another, tables row by row.

Geometry alone decides. Knows no pixels and no text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shared.images.segments import Segment

Row = tuple[Segment, ...]
"""Segments side by side, from left to right: a line, or the cells of a table's row."""

_LEAST_LINES = 3
"""A column has as many lines."""
_GUTTER_EM = 0.75
_PROSE_WORDS = 2.6
"""Mean words of a line from which it is taken for running text, not for a cell."""
_FULL_SHARE = 0.5
"""Mean length of running text's lines, of the longest."""
_INKED_SHARE = 0.85
"""Of running text's lines; cells of a row leave gaps."""
_ALIGNED_SHARE = 0.6
"""From as many lines that have one on their height on the other side, the two sides may be a table."""
_MOST_GUTTERS = 200
"""Tried for each part of a page, which is more than prints have and fewer than textures."""
_FEW_LINES, _SAME_HEIGHTS = 5, 0.7
_BLANK_EM = 0.75
"""White space between two rows, in em, from which they are two blocks."""


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
    """Of each line of a column its middle, length, number of words and inked share."""

    middle: np.ndarray
    length: np.ndarray
    words: np.ndarray
    inked: np.ndarray


def reading_order(segments: Sequence[Segment]) -> list[list[Row]]:
    """Order segments.

    Args:
        segments: Of a level page, in any order.

    Returns:
        Blocks of rows.
    """
    blocks: list[list[Row]] = []
    for part in _parts(list(segments)):
        blocks += _blocks(_rows(part))
    return blocks


def _parts(segments: list[Segment]) -> list[list[Segment]]:
    """Parts of a page each of which is read row by row."""
    zone = _columns(segments)
    if zone is None:
        return [segments] if segments else []
    above, left, right, below = zone
    return [each for part in (above, left, right, below) for each in _parts(part)]


def _columns(
    segments: list[Segment],
) -> tuple[list[Segment], list[Segment], list[Segment], list[Segment]] | None:
    """The best gutter: what is above its zone, left of it, right of it and below; None without one."""
    if len(segments) < 2 * _LEAST_LINES:
        return None
    box = np.array([segment.box for segment in segments], np.float64)
    em = np.array([segment.em_px for segment in segments])
    words = np.array([len(segment.words) for segment in segments], np.float64)
    typical = float(np.median(em))
    middle = box[:, [1, 3]].mean(axis=1)
    gutters = sorted(_gutters(box, words, middle, typical), key=lambda each: -each.score)[:_MOST_GUTTERS]
    best = next((each for each in gutters if _are_columns(box, words, each.left, each.right, typical)), None)
    if best is None:
        return None
    above = [segment for segment, y in zip(segments, middle, strict=True) if y <= best.low]
    below = [segment for segment, y in zip(segments, middle, strict=True) if y >= best.high]
    return above, [segments[i] for i in best.left], [segments[i] for i in best.right], below


def _gutters(box: np.ndarray, words: np.ndarray, middle: np.ndarray, em: float) -> Iterator[_Gutter]:
    """White space with enough lines on both sides, down to the next segment that crosses it."""
    x1, y1, x2, y2 = box.T
    for x in np.unique(np.round((x2 + 0.4 * em) / 4) * 4).tolist():
        is_left, is_right = x2 <= x, x1 >= x
        bounds = np.sort(middle[~is_left & ~is_right])
        # The zone of each segment: how many cross the gutter above it; none for one on the height of such a segment.
        zone = np.searchsorted(bounds, middle)
        is_inside = zone == np.searchsorted(bounds, middle, "right")
        is_left, is_right = is_left & is_inside, is_right & is_inside
        num_left, num_right = (np.bincount(zone[side], minlength=bounds.size + 1) for side in (is_left, is_right))
        for number in np.flatnonzero((num_left >= _LEAST_LINES) & (num_right >= _LEAST_LINES)).tolist():
            left, right = (np.flatnonzero(side & (zone == number)) for side in (is_left, is_right))
            # Heights that both sides share: a column next to nothing is none.
            height = min(y2[left].max(), y2[right].max()) - max(y1[left].min(), y1[right].min())
            if height < 3.0 * em or x1[right].min() - x2[left].max() < _GUTTER_EM * em:
                continue
            low = bounds[number - 1] if number else -math.inf
            high = bounds[number] if number < bounds.size else math.inf
            score = height * min(words[left].sum(), words[right].sum()) ** 0.5
            yield _Gutter(float(score), float(low), float(high), left, right)


def _are_columns(box: np.ndarray, words: np.ndarray, left: np.ndarray, right: np.ndarray, em: float) -> bool:
    """Whether two sides are read one after the other, rather than row by row."""
    prose = [_is_prose(box, words, side, em) for side in (left, right)]
    if not any(prose):
        return False
    y_left, y_right = (_lines(box, words, side, em).middle for side in (left, right))
    fewer, more = (y_left, y_right) if len(y_left) <= len(y_right) else (y_right, y_left)
    aligned = float((np.abs(fewer[:, None] - more[None, :]).min(axis=1) < 0.3 * em).mean())
    if all(prose):
        # A few lines that stand side by side exactly are a dense table's rows.
        return len(fewer) > _FEW_LINES or aligned < _SAME_HEIGHTS
    return aligned < 1 - _ALIGNED_SHARE and len(fewer) >= _LEAST_LINES + 1


def _is_prose(box: np.ndarray, words: np.ndarray, side: np.ndarray, em: float) -> bool:
    """Whether a side is running text, in one column or in several."""
    columns = [part for part in _parted(box, side, em) if len(part) >= _LEAST_LINES] or [side]
    for column in columns:
        lines = _lines(box, words, column, em)
        is_full = (lines.length / lines.length.max()).mean() >= _FULL_SHARE
        if lines.words.mean() < _PROSE_WORDS or not is_full or lines.inked.mean() < _INKED_SHARE:
            return False
    return True


def _parted(box: np.ndarray, side: np.ndarray, em: float) -> list[np.ndarray]:
    """A side cut at each gutter that nothing crosses."""
    order = side[np.argsort(box[side, 0])]
    right = np.maximum.accumulate(box[order, 2])
    return list(np.split(order, np.flatnonzero(box[order[1:], 0] - right[:-1] >= _GUTTER_EM * em) + 1))


def _lines(box: np.ndarray, words: np.ndarray, side: np.ndarray, em: float) -> _Lines:
    """Lines of a column."""
    middle = box[side][:, [1, 3]].mean(axis=1)
    order = np.argsort(middle)
    middle, (x1, _, x2, _) = middle[order], box[side[order]].T
    starts = np.flatnonzero(np.diff(middle, prepend=-math.inf) > 0.4 * em)
    length = np.maximum.reduceat(x2, starts) - np.minimum.reduceat(x1, starts)
    return _Lines(
        np.add.reduceat(middle, starts) / np.diff(starts, append=len(side)),
        length,
        np.add.reduceat(words[side[order]], starts),
        np.add.reduceat(x2 - x1, starts) / length,
    )


def _rows(segments: list[Segment]) -> list[Row]:
    """Rows from top to bottom."""
    rows: list[list[Segment]] = []
    for segment in sorted(segments, key=lambda each: each.middle):
        for row in rows[-4:][::-1]:
            if _on_row(segment, row):
                row.append(segment)
                break
        else:
            rows.append([segment])
    ordered = [tuple(sorted(row, key=lambda each: each.box[0])) for row in rows]
    return sorted(ordered, key=lambda row: float(np.median([each.middle for each in row])))


def _on_row(segment: Segment, row: list[Segment]) -> bool:
    if any(min(segment.box[2], other.box[2]) - max(segment.box[0], other.box[0]) > 2 for other in row):
        return False
    nearest = min(row, key=lambda other: abs(other.middle - segment.middle))
    shared = min(segment.box[3], nearest.box[3]) - max(segment.box[1], nearest.box[1])
    return shared > 0.45 * min(segment.height, nearest.height)


def _blocks(rows: list[Row]) -> list[list[Row]]:
    """Rows cut where the page leaves room: more than it does between most of them."""
    if not rows:
        return []
    tops = [min(each.box[1] for each in row) for row in rows]
    bottoms = [max(each.box[3] for each in row) for row in rows]
    ems = [float(np.median([each.em_px for each in row])) for row in rows]
    gaps = [(top - bottom) / em for top, bottom, em in zip(tops[1:], bottoms, ems, strict=False)]
    usual = float(np.percentile(gaps, 40)) if gaps else 0.0
    least = max(_BLANK_EM, min(1.35 * usual, usual + 1.0)) if len(gaps) > 3 else _BLANK_EM
    blocks = [[rows[0]]]
    for row, gap in zip(rows[1:], gaps, strict=True):
        if gap > least:
            blocks.append([])
        blocks[-1].append(row)
    return blocks
