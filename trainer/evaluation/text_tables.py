"""Tables in a text, HTML or Markdown, as cells with their places.

A model's text is untrusted: nothing here raises an error for it, or makes a table far larger than what is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from html.parser import HTMLParser
from itertools import groupby

from shared.contract.text import normalise

MAX_SPAN = 100
"""Columns or rows of a cell: a model may write any number, and no page's table has so many."""
MAX_PLACES = 20_000
"""Of a table with spans; cells beyond them span nothing."""
_DELIMITER = re.compile(r"\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?")
_PIPE = re.compile(r"(?<!\\)\|")

Place = tuple[int, int]
"""Row and column, from 0."""
Grid = list[list[str]]


class Side(Enum):
    """Where a neighbour is: the step to it, in rows and columns."""

    UP = (-1, 0)
    DOWN = (1, 0)
    LEFT = (0, -1)
    RIGHT = (0, 1)


@dataclass(frozen=True, slots=True)
class TextCell:
    """A cell; `row` and `column` are its first, and `text` has its white space folded."""

    text: str
    row: int
    column: int
    num_rows: int = 1
    num_columns: int = 1
    is_heading: bool = False

    def places(self) -> Iterator[Place]:
        """All places that it covers."""
        for row in range(self.row, self.row + self.num_rows):
            for column in range(self.column, self.column + self.num_columns):
                yield row, column


@dataclass(frozen=True)
class TextTable:
    """Cells in the order in which they are written."""

    cells: tuple[TextCell, ...]
    is_markdown: bool = False

    @cached_property
    def covered(self) -> Mapping[Place, TextCell]:
        """The cell at each place; of cells that overlap, the first."""
        found: dict[Place, TextCell] = {}
        for cell in self.cells:
            for place in cell.places():
                found.setdefault(place, cell)
        return found

    def grid(self) -> Grid:
        """Texts by row, a cell that spans several places in each of them.

        Rows are as long as they were written: different lengths are a fault to be seen.
        """
        widths: dict[int, int] = {}
        for row, column in self.covered:
            widths[row] = max(widths.get(row, 0), column + 1)
        return [
            [self.covered[row, column].text if (row, column) in self.covered else "" for column in range(width)]
            for row, width in sorted(widths.items())
        ]

    def neighbours(self, cell: TextCell, side: Side) -> list[TextCell]:
        """The nearest other cells on one side, one for each row or column of the cell; gaps are passed over."""
        down, right = side.value
        found: dict[TextCell, None] = {}
        rows, columns = self._size
        for start in cell.places():
            row, column = start
            while 0 <= row < rows and 0 <= column < columns:
                other = self.covered.get((row, column))
                if other is not None and other != cell:
                    found[other] = None
                    break
                row, column = row + down, column + right
        return list(found)

    def headings(self, cell: TextCell, side: Side) -> list[TextCell]:
        """All heading cells on the way to an edge; without any, the cells at the edge. Never the cell itself."""
        seen, waiting, edge = {cell: None}, [cell], []
        while waiting:
            current = waiting.pop()
            around = self.neighbours(current, side)
            if not around:
                edge.append(current)
            fresh = [other for other in around if other not in seen]
            seen |= dict.fromkeys(fresh)
            waiting += fresh
        headings = [other for other in seen if other.is_heading and other != cell]
        return headings or [other for other in edge if other != cell]

    @cached_property
    def _size(self) -> Place:
        return (
            max((row for row, _ in self.covered), default=-1) + 1,
            max((column for _, column in self.covered), default=-1) + 1,
        )


def text_tables(text: str, *, any_pipes: bool = False) -> list[TextTable]:
    """Tables of a text, HTML's first, then Markdown's; those without a cell are left out.

    Args:
        text: what a reader wrote.
        any_pipes: take two successive lines with a pipe for a table in Markdown, as olmOCR-Bench does; else lines need
            pipes at both ends, or a row of dashes below the first.

    Returns:
        The tables.
    """
    parser = _HtmlTables()
    parser.feed(text)
    parser.close()
    html = (TextTable(tuple(_placed(rows))) for rows in parser.tables)
    markdown = (
        TextTable(tuple(_markdown_cells(lines)), is_markdown=True) for lines in _markdown_lines(text, any_pipes)
    )
    return [table for table in (*html, *markdown) if table.cells]


@dataclass(frozen=True, slots=True)
class _Written:
    """A cell as its tag says; `num_rows` 0 reaches to the end of the table."""

    text: str
    num_rows: int
    num_columns: int
    is_heading: bool


class _HtmlTables(HTMLParser):
    """Collects the rows of tables."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[_Written]]] = []
        self._cell: list[str] | None = None
        self._tag = _Written("", 1, 1, is_heading=False)
        self._in_head = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._end()
            self.tables.append([])
        elif tag == "br" and self._cell is not None:
            self._cell.append(" ")
        elif not self.tables:
            return
        elif tag in {"thead", "tbody", "tfoot"}:
            self._in_head = tag == "thead"
        elif tag == "tr":
            self._end()
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self._end()
            named = dict(attrs)
            rows = 0 if (named.get("rowspan") or "").strip() == "0" else _span(named.get("rowspan"))
            self._tag = _Written("", rows, _span(named.get("colspan")), tag == "th" or self._in_head)
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th", "tr", "table"}:
            self._end()
        if tag in {"thead", "table"}:
            self._in_head = False

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def close(self) -> None:
        """A table that is never closed is a table: answers may meet a limit."""
        super().close()
        self._end()

    def _end(self) -> None:
        if self._cell is not None:
            if not self.tables[-1]:
                self.tables[-1].append([])
            written, tag = normalise("".join(self._cell)), self._tag
            self.tables[-1][-1].append(_Written(written, tag.num_rows, tag.num_columns, tag.is_heading))
        self._cell = None


def _placed(rows: Sequence[Sequence[_Written]]) -> Iterator[TextCell]:
    """Cells in the places that HTML gives them: each in the first free column of its row."""
    taken: set[Place] = set()
    for row, cells in enumerate(rows):
        column = 0
        for written in cells:
            while (row, column) in taken:
                column += 1
            high, wide = written.num_rows or min(len(rows) - row, MAX_SPAN), written.num_columns
            if len(taken) + high * wide > MAX_PLACES:
                high = wide = 1
            cell = TextCell(written.text, row, column, high, wide, written.is_heading)
            taken.update(cell.places())
            yield cell
            column += wide


def _span(text: str | None) -> int:
    digits = (text or "").strip()
    # Python refuses to parse thousands of digits.
    return min(max(int(digits[:9]), 1), MAX_SPAN) if digits.isdecimal() else 1


def _markdown_lines(text: str, any_pipes: bool) -> Iterator[list[str]]:
    for has_pipe, run in groupby(map(str.strip, text.splitlines()), lambda line: "|" in line):
        lines = list(run)
        if not has_pipe:
            continue
        if len(lines) > 1 and (any_pipes or _DELIMITER.fullmatch(lines[1])):
            yield lines
        elif not any_pipes:
            yield from (list(part) for is_row, part in groupby(lines, _is_row) if is_row)


def _is_row(line: str) -> bool:
    return len(line) > 1 and line.startswith("|") and line.endswith("|")


def _markdown_cells(lines: Sequence[str]) -> Iterator[TextCell]:
    # Further down, a row of dashes is a row of empty figures.
    rows = [line for place, line in enumerate(lines) if place > 1 or not _DELIMITER.fullmatch(line)]
    for row, line in enumerate(rows):
        texts = _PIPE.split(line)
        # A line may begin and end with a pipe, or not.
        texts = texts[not texts[0].strip() :]
        texts = texts[: len(texts) - (bool(texts) and not texts[-1].strip())]
        for column, text in enumerate(texts):
            yield TextCell(normalise(text.replace("\\|", "|")), row, column, is_heading=row == 0 or column == 0)
