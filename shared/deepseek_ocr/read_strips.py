"""What was read on the strips of a page, and which of two readings of a row is kept. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from shared.contract.confidence import TokenScores
from shared.images.canvases import Strip

LEAST_SURE, SURE = 0.6, 0.975
"""A page is read once more, larger, if its print was read less surely than the second, and not so unsurely that it may
be no print: 18 of 20 real receipts, 2 of 22 clean pages (benchmarks/LOG.md)."""


def is_worth_another_look(answers: Iterable[tuple[str, TokenScores | None]]) -> bool:
    """Whether a page may be read better from larger print.

    Args:
        answers: To the page's first canvases, with the scores of their tokens.

    Returns:
        False where the reader gives no scores.
    """
    logs: list[float] = []
    for text, scores in answers:
        if scores is None:
            return False
        logs += scores.logs_of_print(text)
    return bool(logs) and LEAST_SURE <= math.exp(sum(logs) / len(logs)) < SURE


@dataclass(frozen=True, slots=True)
class ReadStrip:
    """A strip and what was read on it."""

    strip: Strip
    text: str
    scores: TokenScores | None
    """With places in `text`; None if the reader gives none."""
    num_tokens: float = 0.0
    """Its share of the answer's."""
    is_cut: bool = False
    """Whether the page's limit ended the answer in it, or before it."""
    canvas: int = 0
    """On which of a look's canvases it was read."""


def confidence_of_row(row: Sequence[ReadStrip]) -> float:
    """How sure a reader is of the print of a row, or of other strips.

    Args:
        row: All of its strips.

    Returns:
        Geometric mean of the probabilities of the tokens of print; 1 where nothing was read, or where it is not known.
    """
    total, count = 0.0, 0
    for read in row:
        if read.scores is None:
            return 1.0
        logs = read.scores.logs_of_print(read.text)
        total += sum(logs)
        count += len(logs)
    return math.exp(total / count) if count else 1.0


def rows_of(strips: Iterable[ReadStrip]) -> list[list[ReadStrip]]:
    """Strips in reading order, by their row."""
    return [list(row) for _, row in groupby(strips, key=lambda read: read.strip.row)]


def unsure_rows(strips: Iterable[ReadStrip]) -> set[int]:
    """Rows that are worth another look: those on canvases that were not read surely.

    Single rows would lose their neighbours, without which the reader is less good.

    Args:
        strips: Of a page that is worth it, each canvas's next to each other.

    Returns:
        Their numbers.
    """
    canvases = (list(canvas) for _, canvas in groupby(strips, key=lambda read: read.canvas))
    return {read.strip.row for canvas in canvases if confidence_of_row(canvas) < SURE for read in canvas}


def surer(first: Iterable[ReadStrip], second: Iterable[ReadStrip]) -> list[ReadStrip]:
    """Choose between two readings of rows.

    Args:
        first: In reading order.
        second: Of some of these rows.

    Returns:
        Each row of `first` in the form in which its reader was surer of it; a row that the limit cut is compared with
        nothing.
    """
    others = {row[0].strip.row: row for row in rows_of(second)}
    chosen: list[ReadStrip] = []
    for row in rows_of(first):
        other = others.get(row[0].strip.row)
        is_read = other is not None and any(read.text for read in other) and not any(read.is_cut for read in other)
        chosen += other if other and is_read and confidence_of_row(other) > confidence_of_row(row) else row
    return chosen
