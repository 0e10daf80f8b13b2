"""Tables in the text that a model writes: HTML or Markdown, from one to the other.

A model's text is untrusted: nothing here raises an error for it, takes more than linear time in it, or makes a table
far larger than what is written. A table that cannot be converted stays as it is.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from html.parser import HTMLParser

import nh3
from markdown_it import MarkdownIt

MAX_COLUMNS = 200
MAX_CELLS = 20_000
"""Of a grid: a span of a few characters could make millions."""
_KEPT_TAGS = frozenset({"b", "br", "code", "del", "em", "i", "s", "strong", "sub", "sup", "u"})
"""Inline elements that both forms may hold."""
_SECTIONS = frozenset({"table", "thead", "tbody", "tfoot"})
_IGNORED_TAGS = frozenset({"center", "div", "p", "span"})
_AMPERSAND = re.compile(r"&amp;(?!#?[A-Za-z0-9]{1,32};)")
_LESS_THAN = re.compile(r"&lt;(?![A-Za-z/!?])")
_OPEN, _CLOSE = re.compile(r"<table(?=[\s>])", re.IGNORECASE), re.compile(r"</table\s*>", re.IGNORECASE)


class TableFormat(StrEnum):
    """How tables are written."""

    HTML = "html"
    MARKDOWN = "markdown"


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell; its content is HTML with inline elements alone."""

    content: str
    colspan: int = 1
    rowspan: int = 1
    is_header: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, as HTML has them: a cell that spans several rows is in the first of them alone."""

    rows: tuple[tuple[Cell, ...], ...]

    def grid(self) -> list[list[str]] | None:
        """The contents, each in the first place of its cell; None if that would be too large."""
        num_rows = len(self.rows)
        placed: dict[tuple[int, int], str] = {}
        for row, cells in enumerate(self.rows):
            column = 0
            for cell in cells:
                while (row, column) in placed:
                    column += 1
                last_row = min(row + cell.rowspan, num_rows)
                if column + cell.colspan > MAX_COLUMNS or (len(placed) + (last_row - row) * cell.colspan > MAX_CELLS):
                    return None
                for y in range(row, last_row):
                    for x in range(column, column + cell.colspan):
                        placed[y, x] = ""
                placed[row, column] = cell.content
                column += cell.colspan
        num_columns = 1 + max((column for _, column in placed), default=-1)
        if num_rows * num_columns > MAX_CELLS:
            return None
        return [[placed.get((row, column), "") for column in range(num_columns)] for row in range(num_rows)]

    @property
    def num_columns(self) -> int:
        """Of its grid; 0 if it is empty or too large."""
        grid = self.grid()
        return len(grid[0]) if grid else 0

    def to_html(self) -> str:
        """The table on one line, as the public model writes it."""
        rows = ("".join(map(_html_cell, cells)) for cells in self.rows)
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"

    def to_markdown(self) -> str | None:
        """The table with pipes, its first row as the head; None if it is empty or too large."""
        grid = self.grid()
        if not grid or not grid[0]:
            return None
        lines = [f"| {' | '.join(map(_markdown_cell, row))} |" for row in grid]
        return "\n".join([lines[0], f"|{' --- |' * len(grid[0])}", *lines[1:]])

    def followed_by(self, other: Table) -> Table | None:
        """This table with the rows of another below it, without its head if that repeats this one's.

        Args:
            other: What may be its continuation.

        Returns:
            None if it is a table of its own: with other columns, or with a head that this one does not have.
        """
        if not self.num_columns or self.num_columns != other.num_columns:
            return None
        head, *rest = other.rows
        if _texts(head) == _texts(self.rows[0]):
            return Table((*self.rows, *rest)) if rest else None
        if any(cell.is_header for cell in head):
            return None
        return Table((*self.rows, *other.rows))


def _texts(cells: tuple[Cell, ...]) -> list[str]:
    return [" ".join(cell.content.split()) for cell in cells]


def _html_cell(cell: Cell) -> str:
    name = "th" if cell.is_header else "td"
    spans = "".join(
        f' {attribute}="{span}"'
        for attribute, span in (("colspan", cell.colspan), ("rowspan", cell.rowspan))
        if span > 1
    )
    return f"<{name}{spans}>{cell.content}</{name}>"


def _markdown_cell(content: str) -> str:
    """Text with as few references as possible, since people read it: only where it would be an element, or another."""
    text = " ".join(content.split()).replace("|", "\\|").replace("&gt;", ">")
    return _LESS_THAN.sub("<", _AMPERSAND.sub("&", text))


def convert_tables(text: str, to: TableFormat) -> str:
    """Write every table of a text in one form.

    Args:
        text: Markdown, which may have HTML tables in it.
        to: The form.

    Returns:
        The text; a table in that form already, or one that cannot be converted, is unchanged.
    """
    if to is TableFormat.HTML:
        return _map_markdown_tables(text, lambda table: table.to_html())
    return _map_html_tables(text, lambda table: table.to_markdown())


def only_table(text: str) -> tuple[Table, TableFormat] | None:
    """The table that a text is, and its form; None if it is anything else."""
    text = text.strip()
    found = list(html_places(text))
    if len(found) == 1 and found[0] == (0, len(text)):
        table = _parse_html(text)
        return None if table is None else (table, TableFormat.HTML)
    places = list(_markdown_places(text))
    if len(places) == 1 and places[0][:2] == (0, len(text.split("\n"))):
        return places[0][2], TableFormat.MARKDOWN
    return None


@dataclass(frozen=True, slots=True)
class FoundTable:
    """A table in a text."""

    start: int
    end: int
    text: str
    """As it is written there."""
    table: Table
    form: TableFormat

    def written(self, to: TableFormat) -> str | None:
        """The table in a form, unchanged if it is in it; None if it cannot be."""
        if to is self.form:
            return self.text
        return self.table.to_html() if to is TableFormat.HTML else self.table.to_markdown()


def find_tables(text: str) -> list[FoundTable]:
    """Every table of a text.

    Args:
        text: Markdown, which may have HTML tables in it.

    Returns:
        Tables in order, without those that cannot be understood.
    """
    found, places = [], list(html_places(text))
    for start, end in places:
        table = _parse_html(text[start:end])
        if table is not None:
            found.append(FoundTable(start, end, text[start:end], table, TableFormat.HTML))
    starts = [0, *(place + 1 for place, character in enumerate(text) if character == "\n"), len(text) + 1]
    for first, last, table in _markdown_places(text):
        start, end = starts[first], min(starts[last] - 1, len(text))
        end = start + len(text[start:end].rstrip())
        if not any(start < stop and begin < end for begin, stop in places):
            found.append(FoundTable(start, end, text[start:end], table, TableFormat.MARKDOWN))
    return sorted(found, key=lambda each: each.start)


def html_places(text: str) -> Iterator[tuple[int, int]]:
    """Where HTML tables begin and end in a text."""
    at = 0
    while (opening := _OPEN.search(text, at)) and (closing := _CLOSE.search(text, opening.end())):
        at = closing.end()
        yield opening.start(), at


def _map_html_tables(text: str, write: Callable[[Table], str | None]) -> str:
    parts: list[str] = []
    end = 0
    for start, stop in html_places(text):
        table = _parse_html(text[start:stop])
        written = None if table is None else write(table)
        if written is not None:
            parts += [text[end:start], written]
            end = stop
    if not parts:
        return text
    # A Markdown table needs blank lines around it.
    return "\n\n".join(part.strip() for part in [*parts, text[end:]] if part.strip())


class _TableParser(HTMLParser):
    """Collects the rows of one table; `is_plain` turns false at anything that is no such table."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.is_plain = True
        self.rows: list[list[Cell]] = []
        self._cell: Cell | None = None
        self._content: list[str] = []
        self._num_tables = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._num_tables += 1
            self.is_plain &= self._num_tables == 1
        elif tag == "tr":
            self._end_cell()
            self.rows.append([])
        elif tag in {"td", "th"}:
            self._end_cell()
            if not self.rows:
                self.rows.append([])
            given = dict(attrs)
            self._cell = Cell("", _span(given.get("colspan")), _span(given.get("rowspan")), tag == "th")
        elif self._cell is not None and tag in _KEPT_TAGS:
            self._content.append(f"<{tag}>")
        elif tag not in _SECTIONS | _IGNORED_TAGS:
            self.is_plain = False

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th", "tr", "table"}:
            self._end_cell()
        elif self._cell is not None and tag in _KEPT_TAGS and tag != "br":
            self._content.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._content.append(html.escape(data, quote=False))
        elif data.strip():
            self.is_plain = False

    def _end_cell(self) -> None:
        if self._cell is not None:
            self.rows[-1].append(replace(self._cell, content=_inline("".join(self._content))))
        self._cell = None
        self._content = []


def _inline(content: str) -> str:
    """Content with no element that could end its cell, and with every element closed."""
    return nh3.clean(content, tags=set(_KEPT_TAGS), attributes={}).strip()


def _span(given: str | None) -> int:
    return min(max(int(given), 1), MAX_CELLS) if given is not None and re.fullmatch(r"\d{1,9}", given.strip()) else 1


def _parse_html(text: str) -> Table | None:
    parser = _TableParser()
    parser.feed(text)
    parser.close()
    rows = tuple(tuple(row) for row in parser.rows if row)
    return Table(rows) if parser.is_plain and rows else None


@cache
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": True}).enable("table").disable(["escape", "code", "lheading", "reference"])


def _markdown_places(text: str) -> Iterator[tuple[int, int, Table]]:
    """First line, line after the last one, and content of each Markdown table that is part of no list or quotation."""
    if "|" not in text:
        return
    tokens = _markdown().parse(text)
    rows: list[list[Cell]] = []
    for index, token in enumerate(tokens):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in {"th_open", "td_open"}:
            content = _inline(_markdown().renderInline(tokens[index + 1].content))
            rows[-1].append(Cell(content, is_header=token.type == "th_open"))
        elif token.type == "table_open":
            rows, place = [], token.map if token.level == 0 else None
        elif token.type == "table_close" and place is not None:
            yield place[0], place[1], Table(tuple(tuple(row) for row in rows))


def _map_markdown_tables(text: str, write: Callable[[Table], str]) -> str:
    lines = text.split("\n")
    for start, stop, table in reversed(list(_markdown_places(text))):
        lines[start:stop] = [write(table)]
    return "\n".join(lines)
