"""Puts segments of lines in the order in which a person reads them: columns one after another, tables row by row.

Geometry alone decides. Knows no pixels and no text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.images.columns import find_columns
from shared.images.segments import Segment

Row = tuple[Segment, ...]
"""Segments side by side, from left to right: a line, or the cells of a table's row."""

_APART_SHARE = 0.5
"""Of a column's width: a wider line is text."""
_BLANK_EM = 0.75
"""White space between two rows, in em, from which they are two blocks."""


def reading_order(segments: Sequence[Segment], rules: Sequence[tuple[int, int, int, int]] = ()) -> list[list[Row]]:
    """Order segments.

    Args:
        segments: Of a level page, in any order.
        rules: Boxes of its rules.

    Returns:
        Blocks of rows.
    """
    blocks: list[list[Row]] = []
    for part in _parts(list(segments), rules, is_page=True):
        blocks += _blocks(_rows(part))
    return blocks


def _parts(
    segments: list[Segment], rules: Sequence[tuple[int, int, int, int]], *, is_page: bool = False
) -> list[list[Segment]]:
    """Parts of a page each of which is read row by row."""
    columns = find_columns(segments, rules)
    if columns is None:
        return [segments] if segments else []
    parts = [
        [segments[index] for index in part] for part in (columns.above, columns.left, columns.right, columns.below)
    ]
    if is_page:
        _, left, right, _ = parts
        header, footer = _line_apart(segments, right, -1), _line_apart(segments, left, 1)
        parts = [header, *([each for each in part if each not in header + footer] for part in parts), footer]
    return [each for part in parts for each in _parts(part, rules)]


def _line_apart(segments: list[Segment], column: list[Segment], side: int) -> list[Segment]:
    """The line above (-1) or below (1) everything else on a page, such as its number, if it is part of a column.

    Empty where the line is as wide as text, or no farther from it than lines are from each other.
    """
    edge = 1 if side < 0 else 3
    outermost = max(segments, key=lambda each: side * each.box[edge])
    line = [each for each in segments if _on_row(each, [outermost])] + [outermost]
    rest = [each for each in segments if each not in line]
    if not rest or not all(each in column for each in line):
        return []
    gap = min(side * each.box[4 - edge] for each in line) - max(side * each.box[edge] for each in rest)
    left, right = min(each.box[0] for each in column), max(each.box[2] for each in column)
    width = max(each.box[2] for each in line) - min(each.box[0] for each in line)
    is_apart = gap > _BLANK_EM * float(np.median([each.em_px for each in rest]))
    return line if is_apart and width < _APART_SHARE * (right - left) else []


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
