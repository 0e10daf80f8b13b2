"""Small tests of a page's text that pass or fail, with the reason: a text is there, is not, comes first, is in a cell.

Kinds, fields and what passes are those of olmOCR-Bench, so its files can be used (`trainer.evaluation.page_test_file`);
without a file, tests are made of the true text. Texts are compared without Markdown's bold and italics, with plain
quotes and hyphens. Knows neither models nor training.

Source: Poznanski et al., olmOCR 2: Unit Test Rewards for Document OCR, 2025 (arXiv 2510.19817); allenai/olmocr,
`olmocr/bench`, March 2026.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import Final, Protocol

import numpy as np
from rapidfuzz import fuzz

from shared.contract.text import normalise
from trainer.evaluation.text_tables import Side, TextCell, TextTable, text_tables

MOST_LINES: Final = 12
"""Lines of a true text that tests are made of, evenly spread: more say little new and take time at every update."""
MOST_CELLS: Final = 12
SNIPPET_WORDS: Final = 8
MIN_SNIPPET: Final = 3
"""Characters; shorter snippets are found anywhere."""
MAX_REPEATS: Final = 30
LONGEST_REPEATED: Final = 5
"""Characters of what an answer may not repeat at its end."""
LEAST_LIKE_CELL: Final = 0.5
"""Share of agreeing characters below which no number of differences makes two cells the same."""
SHOWN_CHARACTERS: Final = 60
_ROUNDING: Final = 1e-9
_BREAK: Final = re.compile(r"<br\s*/?>", re.IGNORECASE)
_BOLD: Final = re.compile(r"(\*\*|__)(.*?)\1")
_ITALIC: Final = re.compile(r"([*_])(.*?)\1")
_TAG: Final = re.compile(r"</?[bi]>")
_PLAIN: Final = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a", "'"),
        **dict.fromkeys("\u201c\u201d\u201e", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
        "\uff3f": "_",
        "\u00b5": "\u03bc",
    }
)
_FOREIGN: Final = re.compile(
    "[\u3040-\u30ff\u4e00-\u9fff\U0001f1e0-\U0001f1ff\U0001f300-\U0001f64f\U0001f680-\U0001f6ff]"
)
"""Kana, Han and pictographs: on a page in Latin script, what a model writes when it has lost its way."""
_IMAGE: Final = re.compile(r"!\[.*?\]\(.*?\)")


class PageTest(Protocol):
    """A test of one page."""

    @property
    def kind(self) -> str:
        """Its `type` in a file."""

    def failure(self, answer: Answer) -> str | None:
        """Why an answer fails; None if it passes."""


@dataclass(frozen=True, slots=True)
class Present:
    """A text that the page has; up to `max_diffs` characters may differ.

    Attributes:
        text: as `plain` gives it.
        max_diffs: characters.
        is_case_sensitive: whether capital letters count.
        first_n: look at so many characters at the beginning alone; None for all.
        last_n: likewise at the end; with `first_n`, at both.
    """

    text: str
    max_diffs: int = 0
    is_case_sensitive: bool = True
    first_n: int | None = None
    last_n: int | None = None

    kind = "present"

    def failure(self, answer: Answer) -> str | None:
        """See `PageTest`."""
        share = _likeness(*self._compared(answer), self.max_diffs)
        return None if share is None else f"{_shown(self.text)} is not there (at most {share:.0%} of it)"

    def _compared(self, answer: Answer) -> tuple[str, str]:
        within = answer.text
        if self.first_n or self.last_n:
            first = within[: self.first_n] if self.first_n else ""
            within = first + (within[-self.last_n :] if self.last_n else "")
        return (self.text, within) if self.is_case_sensitive else (self.text.lower(), within.lower())


@dataclass(frozen=True, slots=True)
class Absent(Present):
    """A text that must not be read, such as a running head; fields as of `Present`."""

    kind = "absent"

    def failure(self, answer: Answer) -> str | None:
        """See `PageTest`."""
        is_there = _likeness(*self._compared(answer), self.max_diffs) is None
        return f"{_shown(self.text)} is there" if is_there else None


@dataclass(frozen=True, slots=True)
class Order:
    """Two texts, one place of the first before one of the second; in each up to `max_diffs` edits."""

    before: str
    after: str
    max_diffs: int = 0

    kind = "order"

    def failure(self, answer: Answer) -> str | None:
        """See `PageTest`."""
        first, second = (occurrences(text, answer.text, self.max_diffs) for text in (self.before, self.after))
        for text, places in ((self.before, first), (self.after, second)):
            if not places:
                return f"{_shown(text)} is not there"
        return None if min(first) < max(second) else f"{_shown(self.before)} is not before {_shown(self.after)}"


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell and what is around it.

    Attributes:
        cell: its text.
        neighbours: texts of the next cells by side.
        headings: texts of the headings above (`UP`) or to the left (`LEFT`).
        max_diffs: characters that may differ in each, half of them at most.
        ignores_markdown: whether tables in Markdown do not count.
    """

    cell: str
    neighbours: tuple[tuple[Side, str], ...] = ()
    headings: tuple[tuple[Side, str], ...] = ()
    max_diffs: int = 0
    ignores_markdown: bool = False

    kind = "table"

    def failure(self, answer: Answer) -> str | None:
        """See `PageTest`."""
        tables = [table for table in answer.tables if not (self.ignores_markdown and table.is_markdown)]
        if not tables:
            return "there is no table"
        places = [(table, cell) for table in tables for cell in table.cells if self._is_like(self.cell, cell)]
        if not places:
            return f"no cell is {_shown(self.cell)}"
        faults = [self._fault(table, cell) for table, cell in places]
        return None if None in faults else faults[0]

    def _fault(self, table: TextTable, cell: TextCell) -> str | None:
        around = [(side, text, table.neighbours, "next cell") for side, text in self.neighbours]
        around += [(side, text, table.headings, "heading") for side, text in self.headings]
        for side, text, cells_of, what in around:
            found = cells_of(cell, side)
            if not any(self._is_like(text, other) for other in found):
                seen = _shown(found[0].text) if found else "none"
                return f"{_shown(self.cell)} has {seen} as {what} {side.name.lower()}, not {_shown(text)}"
        return None

    def _is_like(self, text: str, cell: TextCell) -> bool:
        least = max(LEAST_LIKE_CELL, 1 - self.max_diffs / max(len(text), 1))
        return fuzz.ratio(text, plain(cell.text)) / 100 >= least - _ROUNDING


@dataclass(frozen=True, slots=True)
class Baseline:
    """What any good reading has: text, no loop at its end, and no letters from far away.

    Attributes:
        max_length: of a page that is all but blank: letters and digits that may be read, and nothing else is tested.
        skips_images: whether Markdown's images do not count for `max_length`.
        max_repeats: how often up to five characters may follow each other at the end.
        is_latin: whether Han, kana and pictographs are faults.
    """

    max_length: int | None = None
    skips_images: bool = False
    max_repeats: int = MAX_REPEATS
    is_latin: bool = True

    kind = "baseline"

    def failure(self, answer: Answer) -> str | None:
        """See `PageTest`."""
        text = answer.written
        if self.max_length is not None:
            length = sum(map(str.isalnum, _IMAGE.sub("", text) if self.skips_images else text))
            return None if length <= self.max_length else f"{length} letters on a page without text"
        if not any(map(str.isalnum, text)):
            return "there is no letter"
        for size in range(1, LONGEST_REPEATED + 1):
            repeats = repeats_at_end(text, size)
            if repeats > self.max_repeats:
                return f"{text[-size:]!r} comes {repeats} times at the end"
        foreign = _FOREIGN.search(text) if self.is_latin else None
        return None if foreign is None else f"there is {foreign.group()!r}"


@dataclass(frozen=True)
class Answer:
    """A text as tests see it."""

    written: str

    @cached_property
    def text(self) -> str:
        """The whole text, as `plain` gives it."""
        return plain(self.written)

    @cached_property
    def tables(self) -> Sequence[TextTable]:
        """Its tables in HTML or Markdown."""
        return text_tables(self.written, any_pipes=True)


def plain(text: str) -> str:
    """NFC on one line with single spaces, without Markdown's or HTML's bold and italics; plain quotes and hyphens."""
    text = _BREAK.sub(" ", text)
    # Marks pair up within a line, so before lines are joined.
    text = _ITALIC.sub(r"\2", _TAG.sub("", _BOLD.sub(r"\2", text)))
    return normalise(unicodedata.normalize("NFC", text).translate(_PLAIN))


def passed_ratio(tests: Sequence[PageTest], text: str) -> float:
    """Share of tests that a text passes; 1 without tests."""
    answer = Answer(text)
    return sum(test.failure(answer) is None for test in tests) / len(tests) if tests else 1.0


def derive_tests(truth: str) -> tuple[PageTest, ...]:
    """Tests that a page's true text passes: its lines are present and in order, and its tables' cells are in place."""
    is_table = re.compile(r"\s*(\||<)")
    lines = [plain(line) for line in truth.splitlines() if not is_table.match(line)]
    snippets = [" ".join(line.split()[:SNIPPET_WORDS]) for line in lines]
    whole = plain(truth)
    # One that occurs twice says nothing about order, and one with half a pair of Markdown's marks is not in the whole.
    told = [snippet for snippet in snippets if len(snippet) >= MIN_SNIPPET and whole.count(snippet) == 1]
    told = told[:: max(-(-len(told) // MOST_LINES), 1)]
    tests: list[PageTest] = [Present(snippet) for snippet in told]
    tests += [Order(first, second) for first, second in pairwise(told)]
    cells = [cell for table in text_tables(truth) for cell in _cells(table)]
    return (*tests, *cells[:: max(-(-len(cells) // MOST_CELLS), 1)])


def occurrences(text: str, within: str, max_diffs: int) -> list[int]:
    """Where a text begins, with at most `max_diffs` edits; of places that run into each other, the best.

    Source: P. H. Sellers, The Theory and Computation of Evolutionary Distances, 1980; the table is filled by rows.
    """
    if not max_diffs:
        return [match.start() for match in re.finditer(f"(?={re.escape(text)})", within)]
    # Backwards, so that ends of matches, which the table gives, are beginnings.
    letters = np.frombuffer(within[::-1].encode("utf-32-le"), np.uint32)
    steps = np.arange(len(letters) + 1)
    costs = np.zeros(len(letters) + 1, np.int64)
    for row, letter in enumerate(reversed(text), 1):
        best = np.minimum(costs[:-1] + (letters != ord(letter)), costs[1:] + 1)
        # One more letter of `within` costs one more edit than the best place before it.
        costs = np.minimum.accumulate(np.concatenate(([row], best)) - steps) + steps
    places = np.flatnonzero(costs <= max_diffs)
    runs = (run for _, run in groupby(enumerate(places.tolist()), lambda item: item[1] - item[0]))
    return [len(within) - min((place for _, place in run), key=costs.__getitem__) for run in runs]


def repeats_at_end(text: str, size: int) -> int:
    """How often the last `size` characters follow each other at the end, white space folded."""
    folded = " ".join(text.split())
    tail, count = folded[-size:], 0
    while len(folded) >= size * (count + 1) and folded.startswith(tail, len(folded) - size * (count + 1)):
        count += 1
    return count


def _likeness(text: str, within: str, max_diffs: int) -> float | None:
    """None if a text is there; else the share of its characters at the place that is most like it."""
    if text in within:
        return None
    # rapidfuzz would look for the shorter in the longer.
    share = fuzz.partial_ratio(text, within) / 100 if len(within) >= len(text) - max_diffs else 0.0
    is_there = bool(max_diffs) and share >= 1 - max_diffs / len(text) - _ROUNDING
    return None if is_there else share


def _cells(table: TextTable) -> Iterator[Cell]:
    for cell in table.cells:
        around = ((side, table.neighbours(cell, side)) for side in Side)
        # Of several neighbours on a side any will do, so the first.
        known = tuple((side, plain(found[0].text)) for side, found in around if found and found[0].text)
        if cell.text and known:
            yield Cell(plain(cell.text), known)


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}\u2026")
