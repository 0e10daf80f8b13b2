"""Puts segments of lines in the order in which a person reads them: columns one after another, tables row by row.

Geometry alone decides. Knows no pixels and no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

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
_FEW_LINES, _SAME_HEIGHTS = 5, 0.7
_BLANK_EM = 0.75
"""White space between two rows, in em, from which they are two blocks."""


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
    x1, y1, x2, y2 = box.T
    middle = (y1 + y2) / 2
    best, best_score = None, 0.0
    for x in np.unique(np.round((x2 + 0.4 * typical) / 4) * 4).tolist():
        crossing = np.flatnonzero((x1 < x) & (x2 > x))
        bounds = [-1e9, *np.sort(middle[crossing]).tolist(), 1e9]
        on_left = x2 <= x
        for low, high in pairwise(bounds):
            inside = (middle > low) & (middle < high) & ~((x1 < x) & (x2 > x))
            left, right = inside & on_left, inside & ~on_left
            if left.sum() < _LEAST_LINES or right.sum() < _LEAST_LINES:
                continue
            # Heights that both sides share: a column next to nothing is none.
            top = max(y1[left].min(), y1[right].min())
            bottom = min(y2[left].max(), y2[right].max())
            if bottom - top < 3.0 * typical:
                continue
            gutter = x1[right].min() - x2[left].max()
            if gutter < _GUTTER_EM * typical:
                continue
            if not _are_columns(box, words, np.flatnonzero(left), np.flatnonzero(right), typical):
                continue
            score = (bottom - top) * min(words[left].sum(), words[right].sum()) ** 0.5
            if score > best_score:
                best_score, best = score, (low, high, left, right)
    if best is None:
        return None
    low, high, left, right = best
    above = [segment for segment, y in zip(segments, middle, strict=True) if y <= low]
    below = [segment for segment, y in zip(segments, middle, strict=True) if y >= high]
    return (
        above,
        [segments[i] for i in np.flatnonzero(left)],
        [segments[i] for i in np.flatnonzero(right)],
        below,
    )


def _are_columns(box: np.ndarray, words: np.ndarray, left: np.ndarray, right: np.ndarray, em: float) -> bool:
    """Whether two sides are read one after the other, rather than row by row."""
    sides = [_lines(box, words, side, em) for side in (left, right)]
    prose = []
    for lines in sides:
        lengths = np.array([length for _, length, _, _ in lines])
        width = lengths.max()
        count = np.array([num for _, _, num, _ in lines])
        inked = np.array([share for _, _, _, share in lines])
        prose.append(
            count.mean() >= _PROSE_WORDS and (lengths / width).mean() >= _FULL_SHARE and inked.mean() >= _INKED_SHARE
        )
    y_left, y_right = (np.array([y for y, _, _, _ in lines]) for lines in sides)
    fewer, more = (y_left, y_right) if len(y_left) <= len(y_right) else (y_right, y_left)
    aligned = float((np.abs(fewer[:, None] - more[None, :]).min(axis=1) < 0.3 * em).mean())
    if all(prose):
        # A few lines that stand side by side exactly are a dense table's rows.
        return len(fewer) > _FEW_LINES or aligned < _SAME_HEIGHTS
    return aligned < 1 - _ALIGNED_SHARE and len(fewer) >= _LEAST_LINES + 1 and any(prose)


def _lines(box: np.ndarray, words: np.ndarray, side: np.ndarray, em: float) -> list[tuple[float, float, float, float]]:
    """Middle, length, words and inked share of each line of a column."""
    middle = box[side][:, [1, 3]].mean(axis=1)
    order = side[np.argsort(middle)]
    middle = np.sort(middle)
    breaks = np.flatnonzero(np.diff(middle) > 0.4 * em) + 1
    return [
        (
            float(box[part][:, [1, 3]].mean()),
            float(box[part][:, 2].max() - box[part][:, 0].min()),
            float(words[part].sum()),
            float((box[part][:, 2] - box[part][:, 0]).sum() / (box[part][:, 2].max() - box[part][:, 0].min())),
        )
        for part in np.split(order, breaks)
    ]


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
