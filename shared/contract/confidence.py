"""How sure a model is of what it read: from the probabilities of an answer's tokens to those of its words.

The service scores words with it and the trainer calibrates it, so what is measured is what is served. Pure; free of
torch.
"""

from __future__ import annotations

import codecs
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

_WORD = re.compile(r"\S+")
_DIGIT = re.compile(r"\d")


@dataclass(frozen=True, slots=True)
class TokenScores:
    """The probabilities of an answer's tokens, the end token left out, and where each token is in the text."""

    starts: tuple[int, ...]
    """In code points of the answer, as `ends`. Tokens that share a character overlap, one without text is empty."""
    ends: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    """Natural logarithms."""
    alternatives: tuple[tuple[tuple[bytes, float], ...], ...] = ()
    """At each token's place the most probable tokens, falling: UTF-8, perhaps a part of a character, and the logarithm
    of its probability. Empty unless they were asked for."""

    @property
    def mean(self) -> float:
        """Mean of the logarithms; 0 without tokens."""
        return sum(self.log_probabilities) / len(self.ends) if self.ends else 0.0

    def mean_of_print(self, answer: str) -> float | None:
        """Mean of the logarithms of tokens that are not only white space, which is easy to guess; None without any."""
        logs = self.logs_of_print(answer)
        return sum(logs) / len(logs) if logs else None

    def logs_of_print(self, answer: str) -> list[float]:
        """The logarithms of tokens that are not only white space."""
        rows = zip(self.starts, self.ends, self.log_probabilities, strict=True)
        return [log for start, end, log in rows if answer[start:end].strip()]

    def within(self, start: int, end: int, at: int = 0) -> TokenScores:
        """Of the tokens that are in a part of the answer, where the part begins at this place of a text."""
        if start >= end:
            return TokenScores((), (), ())
        low, high = bisect_right(self.ends, start), bisect_left(self.starts, end)
        return TokenScores(
            tuple(at + max(place - start, 0) for place in self.starts[low:high]),
            tuple(at + min(place, end) - start for place in self.ends[low:high]),
            self.log_probabilities[low:high],
        )


def joined(parts: Iterable[TokenScores]) -> TokenScores:
    """The scores of parts that have their places in one text."""
    listed = list(parts)
    return TokenScores(
        tuple(place for part in listed for place in part.starts),
        tuple(place for part in listed for place in part.ends),
        tuple(log for part in listed for log in part.log_probabilities),
    )


@dataclass(frozen=True, slots=True)
class ScoredSpan:
    """A word, or a digit in a word, with the logarithm of its probability: the sum over the tokens that make it."""

    start: int
    """In code points of the clean text."""
    end: int
    log_probability: float


@dataclass(frozen=True, slots=True)
class ScoredWord(ScoredSpan):
    """A run of characters without white space."""

    line: int
    """From 1; lines are what line breaks separate."""
    digits: tuple[ScoredSpan, ...]
    """One for each decimal digit."""


def score_tokens(pieces: Iterable[bytes], log_probabilities: Iterable[float]) -> TokenScores:
    """Find where tokens are in the text that they make together.

    Args:
        pieces: UTF-8 of each token, perhaps only a part of a character.
        log_probabilities: Of each token.

    Returns:
        Their scores.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    starts, ends = [], []
    at = 0
    for piece in pieces:
        starts.append(at)
        at += len(decoder.decode(piece))
        has_begun_another = bool(decoder.getstate()[0])
        ends.append(at + has_begun_another)
    return TokenScores(tuple(starts), tuple(ends), tuple(log_probabilities))


def score_words(text: str, answer: str, sources: Sequence[tuple[int, int]], tokens: TokenScores) -> list[ScoredWord]:
    """Score the words of a page.

    Args:
        text: The clean text.
        answer: The model's answer that it was made from.
        sources: Start and end of the parts of the answer that the text consists of, in order; white space between and
            in them may differ.
        tokens: Of the answer.

    Returns:
        All words in order; none if the text has other characters than its sources.
    """
    places: Sequence[int] = range(len(text))
    if text != answer:
        solid = [place for start, end in sources for place in range(start, end) if not answer[place].isspace()]
        shown = [place for place, character in enumerate(text) if not character.isspace()]
        if [answer[place] for place in solid] != [text[place] for place in shown]:
            return []
        moved = [0] * len(text)
        for place, source in zip(shown, solid, strict=True):
            moved[place] = source
        places = moved
    sums = [0.0, *accumulate(tokens.log_probabilities)]
    breaks = [place for place, character in enumerate(text) if character == "\n"]
    words = []
    for found in _WORD.finditer(text):
        start, end = found.span()
        digits = tuple(
            ScoredSpan(place, place + 1, _log_probability(tokens, sums, places[place], places[place] + 1))
            for place in (digit.start() for digit in _DIGIT.finditer(text, start, end))
        )
        score = _log_probability(tokens, sums, places[start], places[end - 1] + 1)
        words.append(ScoredWord(start, end, score, bisect_left(breaks, start) + 1, digits))
    return words


def _log_probability(tokens: TokenScores, sums: Sequence[float], start: int, end: int) -> float:
    """Of the tokens that have a share in characters `start` to `end` of the answer."""
    first, last = bisect_right(tokens.ends, start), bisect_left(tokens.starts, end)
    return sums[max(first, last)] - sums[first]


@dataclass(frozen=True, slots=True)
class MonotoneMap:
    """From a log probability to the share of cases that are right: linear between points, constant beyond them.

    Attributes:
        page_weight: What the mean log probability of the page's tokens counts: a word is more doubtful on a page that
            is hard to read.
        scores: Of the points, rising.
        shares: Of the points, 0 to 1, never falling.
    """

    page_weight: float
    scores: tuple[float, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.scores or len(self.scores) != len(self.shares):
            raise ValueError("a map needs as many scores as shares, and at least one")
        if not all(map(math.isfinite, (self.page_weight, *self.scores))) or self.page_weight < 0:
            raise ValueError("scores and the page's weight are finite, and the weight is not negative")
        rises = all(low < high for low, high in pairwise(self.scores))
        if not rises or not all(low <= high for low, high in pairwise((0.0, *self.shares, 1.0))):
            raise ValueError("scores rise, and shares never fall and are from 0 to 1")

    def share(self, log_probability: float, page_mean: float) -> float:
        """The probability that a word, or digit, is right.

        Args:
            log_probability: Its own.
            page_mean: `TokenScores.mean` of its page.

        Returns:
            From 0 to 1.
        """
        score = log_probability + self.page_weight * page_mean
        above = bisect_right(self.scores, score)
        if not above or above == len(self.scores):
            return self.shares[above - 1 if above else 0]
        low, high = self.scores[above - 1], self.scores[above]
        part = (score - low) / (high - low)
        return self.shares[above - 1] * (1 - part) + self.shares[above] * part
