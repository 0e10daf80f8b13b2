"""Tables of many columns, set on a page: rules or none, shaded rows, heads in white on dark, cells of several lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Final

from trainer.nano.fonts.glyphs import Glyphs
from trainer.nano.pages.layout import TextStyle, break_line
from trainer.nano.pages.mosaic import BandedPage
from trainer.nano.pages.rows import Cell, Rows

LOOKS: Final = ("plain", "plain", "lines", "lines", "grid", "zebra", "head")
MOST_LINES: Final = 4
"""Of a cell of the flexible column."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table's content.

    Attributes:
        head: rows at its top.
        body: the others; every row has as many cells.
        aligns: left or right, by column.
        flexible: the column that takes what room the others leave, its longer texts going on below.
    """

    head: Sequence[Sequence[str]]
    body: Sequence[Sequence[str]]
    aligns: Sequence[str]
    flexible: int


def set_grid(page: BandedPage, grid: Grid, style: TextStyle, rng: Random) -> None:
    """Set as much of a table as has room: columns are left out at the right, rows at the end."""
    glyphs = style.glyphs
    bold = style.heading if rng.random() < 0.6 else glyphs
    pad = max(glyphs.size_px // rng.choice((2, 3, 4)), 4)
    columns = _columns(grid, glyphs, bold, pad, page.width, rng)
    if not columns:
        return
    look = rng.choice(LOOKS)
    dark = rng.randint(140, 255) if look in {"zebra", "head", "grid"} and rng.random() < 0.5 else 0
    shade = rng.randint(20, 60)
    rows = Rows(page, style, rng, round(glyphs.size_px * rng.uniform(1.15, 1.7)))
    above = max((rows.step_px - glyphs.ascent - glyphs.descent) // 2, 1)
    edges = [page.left, *accumulate(columns.values(), initial=page.left)][1:]
    top, right = page.y - above, edges[-1]
    for number, row in enumerate((*grid.head, *grid.body)):
        is_head = number < len(grid.head)
        y0 = page.y - above
        whole = _set_row(rows, grid, row, columns, edges, pad, style, rng, bold if is_head else None)
        y1 = page.y - above
        if is_head and dark:
            page.sheet.invert(page.left, y0, right, y1, dark)
        elif (look == "zebra" and number % 2) or (is_head and look in {"head", "grid"}):
            page.sheet.rule(page.left, y0, right, y1, shade)
        if look in {"lines", "grid"} or (is_head and look != "plain"):
            page.sheet.rule(page.left, y1, right, y1 + (2 if is_head else 1))
        if not whole:
            break
    if look == "grid":
        for x in edges:
            page.sheet.rule(x, top, x + 1, page.y - above)
        page.sheet.rule(page.left, top, right, top + 1)
    rows.close()


def _columns(grid: Grid, glyphs: Glyphs, bold: Glyphs, pad: int, room: int, rng: Random) -> dict[int, int]:
    """Widths in pixels of the columns that have room; none where not even two have."""
    widths = {
        i: 2 * pad + max([bold.width(row[i]) for row in grid.head] + [glyphs.width(row[i]) for row in grid.body])
        for i in range(len(grid.aligns))
    }
    natural = widths.pop(grid.flexible)
    least = min(10 * glyphs.size_px, natural)
    while widths and sum(widths.values()) + least > room:
        # The last column holds the sums.
        widths.pop(list(widths)[-2 if len(widths) > 1 else -1])
    rest = room - sum(widths.values())
    if not widths or rest < least:
        return {}
    spare = round(max(rest - 1.3 * natural, 0) * rng.random() / (len(widths) + 1))
    widths = {i: width + spare for i, width in widths.items()}
    widths[grid.flexible] = min(room - sum(widths.values()), round(natural * 1.3) + spare)
    return dict(sorted(widths.items()))


def _set_row(
    rows: Rows,
    grid: Grid,
    row: Sequence[str],
    columns: dict[int, int],
    edges: Sequence[int],
    pad: int,
    style: TextStyle,
    rng: Random,
    face: Glyphs | None,
) -> bool:
    """Set a row and the further lines of its long cell; returns whether it had room."""
    room = columns[grid.flexible] - 2 * pad
    line, words = row[grid.flexible], list[str]()
    if face is None:
        line, words = break_line(line.split(), style.glyphs, room, style, rng)
    start = edges[list(columns).index(grid.flexible)] + pad
    cells = [
        Cell(line if i == grid.flexible else row[i], x + pad, width - 2 * pad, grid.aligns[i], face)
        for (i, width), x in zip(columns.items(), edges, strict=False)
    ]
    if not rows.add(*cells):
        return False
    for _ in range(MOST_LINES - 1):
        if not words:
            break
        line, words = break_line(words, style.glyphs, room, style, rng)
        if not rows.add(Cell(line, start, room)):
            return False
    return True
