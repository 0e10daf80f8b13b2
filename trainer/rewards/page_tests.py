"""Small tests of a page's text that pass or fail: a text is there, is not there, comes first, or is in a table's cell.

The kinds and the file format are those of olmOCR-Bench, so its files can be used; without a file, tests are made of the
true text. Knows neither models nor training.

Source: Poznanski et al., olmOCR 2: Unit Test Rewards for Document OCR, 2025 (arXiv 2510.19817).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from rapidfuzz import fuzz

from shared.contract.text import normalise
from trainer.training.errors import TrainingCode, TrainingError

MOST_LINES: Final = 12
"""Lines of a true text that tests are made of, evenly spread: more say little new and take time at every update."""
MOST_CELLS: Final = 12
SNIPPET_WORDS: Final = 8
MIN_SNIPPET: Final = 3
"""Characters; shorter snippets are found anywhere."""
_RULE: Final = re.compile(r"\|?\s*:?-{2,}:?\s*(\|\s*:?-{2,}:?\s*)*\|?")
_NEIGHBOURS: Final = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}

Grid = list[list[str]]


@dataclass(frozen=True, slots=True)
class Present:
    """A text that the page has; up to `max_diffs` characters may differ."""

    text: str
    max_diffs: int = 0

    def passes(self, answer: Answer) -> bool:
        """Whether an answer has it."""
        return _find(self.text, answer.text, self.max_diffs) is not None


@dataclass(frozen=True, slots=True)
class Absent:
    """A text that must not be read, such as a running head."""

    text: str
    max_diffs: int = 0

    def passes(self, answer: Answer) -> bool:
        """Whether an answer lacks it."""
        return _find(self.text, answer.text, self.max_diffs) is None


@dataclass(frozen=True, slots=True)
class Order:
    """Two texts, the first before the second."""

    before: str
    after: str
    max_diffs: int = 0

    def passes(self, answer: Answer) -> bool:
        """Whether an answer has both, in this order."""
        first, second = (_find(text, answer.text, self.max_diffs) for text in (self.before, self.after))
        return first is not None and second is not None and first < second


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell and what is next to it: `up`, `down`, `left` or `right`."""

    cell: str
    neighbours: tuple[tuple[str, str], ...]

    def passes(self, answer: Answer) -> bool:
        """Whether a table of an answer has such a cell."""
        wanted = [(*_NEIGHBOURS[side], text) for side, text in self.neighbours]
        return any(
            cell == self.cell and all(_at(grid, row + down, column + right) == text for down, right, text in wanted)
            for grid in answer.tables
            for row, cells in enumerate(grid)
            for column, cell in enumerate(cells)
        )


PageTest = Present | Absent | Order | Cell


@dataclass(frozen=True, slots=True)
class Answer:
    """A text as tests see it: folded white space, and its tables."""

    text: str
    tables: tuple[Grid, ...]

    @classmethod
    def of(cls, text: str) -> Answer:
        """Find the tables of a text in HTML or Markdown."""
        return cls(normalise(text), tuple(tables_of(text)))


def passed_ratio(tests: Sequence[PageTest], text: str) -> float:
    """Share of tests that a text passes; 1 without tests."""
    answer = Answer.of(text)
    return sum(test.passes(answer) for test in tests) / len(tests) if tests else 1.0


def derive_tests(truth: str) -> tuple[PageTest, ...]:
    """Tests that a page's true text passes: its lines are present and in order, and its tables' cells are in place."""
    is_table = re.compile(r"\s*(\||<)")
    lines = [normalise(line) for line in truth.splitlines() if not is_table.match(line)]
    snippets = [" ".join(line.split()[:SNIPPET_WORDS]) for line in lines]
    whole = normalise(truth)
    # One that occurs twice says nothing about order.
    told = [snippet for snippet in snippets if len(snippet) >= MIN_SNIPPET and whole.count(snippet) == 1]
    told = told[:: max(-(-len(told) // MOST_LINES), 1)]
    tests: list[PageTest] = [Present(snippet) for snippet in told]
    tests += [Order(first, second) for first, second in pairwise(told)]
    cells = [cell for grid in tables_of(truth) for cell in _cells(grid)]
    return (*tests, *cells[:: max(-(-len(cells) // MOST_CELLS), 1)])


def load_tests(path: Path) -> dict[str, tuple[PageTest, ...]]:
    """Read a file of tests, one JSON object a line, by page.

    Args:
        path: lines with `page` (a sample's name, or `pdf` as olmOCR-Bench has it), `type` and that type's fields.

    Returns:
        Tests of each page.

    Raises:
        TrainingError: the file or a line cannot be read, or has another type.
    """
    found: dict[str, list[PageTest]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            page, test = str(record.get("pdf") or record["page"]), _parsed(record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _invalid(f"line {number} of {path} is not a test: {error}") from error
        found.setdefault(page, []).append(test)
    return {page: tuple(tests) for page, tests in found.items()}


def tables_of(text: str) -> Iterator[Grid]:
    """Tables of a text, HTML's first, then Markdown's; cells with folded white space.

    A cell that spans several columns or rows is in each of them.
    """
    parser = _Tables()
    parser.feed(text)
    parser.close()
    yield from (_spanned(table) for table in parser.tables)
    rows: Grid = []
    for line in (*text.splitlines(), ""):
        stripped = line.strip()
        if stripped.startswith("|") and stripped.endswith("|") and len(stripped) > 1:
            if not _RULE.fullmatch(stripped):
                rows.append([normalise(cell) for cell in stripped[1:-1].split("|")])
        elif rows:
            yield rows
            rows = []


class _Tables(HTMLParser):
    """Collects tables as rows of (text, columns, rows) cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[tuple[str, int, int]]]] = []
        self._cell: list[str] | None = None
        self._spans = (1, 1)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self._end()
            self.tables[-1].append([])
        elif tag in {"td", "th"} and self.tables:
            self._end()
            named = dict(attrs)
            self._spans = (_span(named.get("colspan")), _span(named.get("rowspan")))
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th", "tr", "table"}:
            self._end()

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def _end(self) -> None:
        if self._cell is not None and self.tables:
            if not self.tables[-1]:
                self.tables[-1].append([])
            self.tables[-1][-1].append((normalise("".join(self._cell)), *self._spans))
        self._cell = None


def _spanned(table: list[list[tuple[str, int, int]]]) -> Grid:
    filled: dict[tuple[int, int], str] = {}
    for row, cells in enumerate(table):
        column = 0
        for text, wide, high in cells:
            while (row, column) in filled:
                column += 1
            for down in range(high):
                filled |= {(row + down, column + right): text for right in range(wide)}
            column += wide
    rows: dict[int, int] = {}
    for row, column in filled:
        rows[row] = max(rows.get(row, 0), column + 1)
    # Each as long as it was written: rows of different lengths are a fault to be seen.
    return [[filled.get((row, column), "") for column in range(width)] for row, width in sorted(rows.items())]


def _span(text: str | None) -> int:
    # A model may write any number; a table of a page has no hundred columns.
    return min(max(int(text), 1), 100) if text and text.isdecimal() else 1


def _cells(grid: Grid) -> Iterator[Cell]:
    for row, cells in enumerate(grid):
        for column, text in enumerate(cells):
            around = ((side, _at(grid, row + down, column + right)) for side, (down, right) in _NEIGHBOURS.items())
            known = tuple((side, other) for side, other in around if other)
            if text and known:
                yield Cell(text, known)


def _at(grid: Grid, row: int, column: int) -> str | None:
    return grid[row][column] if 0 <= row < len(grid) and 0 <= column < len(grid[row]) else None


def _find(text: str, within: str, max_diffs: int) -> int | None:
    """Where a text is, give or take some characters; None if it is not there."""
    place = within.find(text)
    if place >= 0 or not max_diffs or not within:
        return place if place >= 0 else None
    # Of the share of characters that agree; as olmOCR-Bench does it.
    least = 100 * (1 - max_diffs / max(len(text), 1))
    found = fuzz.partial_ratio_alignment(text, within, score_cutoff=max(least, 0.0))
    return None if found is None or len(text) > len(within) + max_diffs else found.dest_start


def _parsed(record: Mapping[str, Any]) -> PageTest:
    kind, diffs = record["type"], int(record.get("max_diffs") or 0)
    if kind == "present":
        return Present(normalise(record["text"]), diffs)
    if kind == "absent":
        return Absent(normalise(record["text"]), diffs)
    if kind == "order":
        return Order(normalise(record["before"]), normalise(record["after"]), diffs)
    if kind == "table":
        known = tuple((side, normalise(record[side])) for side in _NEIGHBOURS if record.get(side))
        return Cell(normalise(record["cell"]), known)
    raise ValueError(f"{kind!r} is not present, absent, order or table")


def _invalid(message: str) -> TrainingError:
    return TrainingError(
        TrainingCode.OPTION_INVALID,
        message,
        'write lines such as {"page": "a.png", "type": "present", "text": "Total"}',
    )
