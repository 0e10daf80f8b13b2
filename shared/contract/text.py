"""How texts are compared: normalisation, edit distance, character and word error rates.

Knows nothing of pages or models. Every rate is over `normalise`d texts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """Edits that turn a reading into its reference, and the reference's length, in characters or words."""

    edits: int
    length: int

    @property
    def rate(self) -> float:
        """Edits per reference symbol; may exceed 1. Against an empty reference every symbol read is an error."""
        return self.edits / max(self.length, 1)

    @property
    def capped(self) -> ErrorCount:
        """The same with at most one edit per reference symbol, so that one runaway reading cannot dominate a mean."""
        return ErrorCount(min(self.edits, max(self.length, 1)), self.length)


def normalise(text: str) -> str:
    """Unicode NFC, white space collapsed to single spaces and stripped at the ends; case and punctuation stay."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Fewest insertions, deletions and substitutions between two sequences.

    Bit-parallel (Myers 1999, in Hyyro's form of 2003) on Python's integers: a row of the table is one integer, so two
    texts of 3000 characters take milliseconds without a compiled package.

    Args:
        first: A string or a list of words.
        second: Another of the same kind.

    Returns:
        The Levenshtein distance.
    """
    if not first or not second:
        return len(first) + len(second)
    places: dict[Hashable, int] = {}
    for index, symbol in enumerate(first):
        places[symbol] = places.get(symbol, 0) | 1 << index
    mask, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    distance, rises, falls = len(first), mask, 0
    for symbol in second:
        equal = places.get(symbol, 0)
        vertical = equal | falls
        diagonal = (((equal & rises) + rises) ^ rises) | equal
        right_rises = falls | (mask & ~(diagonal | rises))
        right_falls = rises & diagonal
        distance += bool(right_rises & last) - bool(right_falls & last)
        right_rises = right_rises << 1 | 1
        rises = right_falls << 1 | (mask & ~(vertical | right_rises))
        rises, falls = rises & mask, right_rises & vertical & mask
    return distance


def char_errors(reference: str, reading: str) -> ErrorCount:
    """Character errors of a reading."""
    expected = normalise(reference)
    return ErrorCount(edit_distance(expected, normalise(reading)), len(expected))


def word_errors(reference: str, reading: str) -> ErrorCount:
    """Word errors of a reading; words are separated by white space."""
    expected = normalise(reference).split()
    return ErrorCount(edit_distance(expected, normalise(reading).split()), len(expected))


def cer(reference: str, reading: str) -> float:
    """Character error rate of one reading."""
    return char_errors(reference, reading).rate


def wer(reference: str, reading: str) -> float:
    """Word error rate of one reading."""
    return word_errors(reference, reading).rate


def total(counts: Iterable[ErrorCount]) -> ErrorCount:
    """Sum of edits and of lengths, for a micro-averaged rate; pass `capped` counts for the capped one."""
    edits = length = 0
    for count in counts:
        edits += count.edits
        length += count.length
    return ErrorCount(edits, length)
