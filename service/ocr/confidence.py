"""How sure the model is of the words of a page, and which of them a person should look at.

Words are scored from the probabilities of their tokens (`shared.contract.confidence`). The checkpoint's calibration
makes a score the probability that the word is right; it was measured without adapters, so it is not used with one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from math import exp

from service.engine.protocol import SequenceResult
from shared.contract.calibration import Calibration
from shared.contract.confidence import ScoredSpan, score_words
from shared.deepseek_ocr.grounding import GroundedText, Region

CONFIDENCE_DIGITS = 4
"""Decimals of confidences in answers."""


LOW_ACCURACY = 0.6
"""Share of right words. nano's pages in other scripts are below it, scans that it reads are far above
(docs/confidence.md)."""

FEWEST_WORDS = 5
"""Of fewer words the mean says little about a page."""


class Granularity(StrEnum):
    """How fine confidences are given."""

    PAGE = "page"
    BLOCK = "block"
    WORD = "word"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for."""

    granularity: Granularity = Granularity.PAGE
    review_threshold: float | None = None
    """Words with a lower confidence are to be listed; 0 to 1."""

    @property
    def needs_words(self) -> bool:
        """Whether words have to be scored."""
        return self.granularity is not Granularity.PAGE or self.review_threshold is not None


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the page's text, in code points, and how likely it is right, 0 to 1."""

    start: int
    end: int
    line: int
    """From 1."""
    confidence: float


@dataclass(frozen=True, slots=True)
class PageConfidence:
    """The confidences of one page."""

    granularity: Granularity
    is_calibrated: bool
    """Whether confidences are probabilities; else they are the model's own scores, which are often too high."""
    words: tuple[Span, ...]
    regions: tuple[tuple[Span, ...], ...]
    """The words of each region."""
    doubtful_words: tuple[Span, ...] | None
    """Those below the review threshold; None without one."""
    doubtful_digits: tuple[Span, ...] | None
    """Digits below it; adjacent ones are one span, with the lowest confidence."""

    @property
    def word_accuracy(self) -> float | None:
        """The share of words that is expected to be right; None without words."""
        return mean_of(self.words)

    @property
    def has_low_accuracy(self) -> bool:
        """Whether many of the words are expected to be wrong; never without a calibration, which alone can tell."""
        accuracy = self.word_accuracy if len(self.words) >= FEWEST_WORDS else None
        return self.is_calibrated and accuracy is not None and accuracy < LOW_ACCURACY

    def is_junk(self, share: float) -> bool:
        """Whether fewer than this share of words is expected to be right, and far fewer where there are few."""
        accuracy = self.word_accuracy
        limit = share * min(1.0, len(self.words) / FEWEST_WORDS)
        return self.is_calibrated and accuracy is not None and accuracy < limit

    @property
    def lines(self) -> tuple[Span, ...]:
        """Lines with words, each with the mean of its words."""
        groups = (list(words) for _, words in groupby(self.words, key=lambda word: word.line))
        return tuple(
            Span(words[0].start, words[-1].end, words[0].line, sum(word.confidence for word in words) / len(words))
            for words in groups
        )


def judge(
    result: SequenceResult, grounded: GroundedText, wanted: Wanted, calibration: Calibration | None
) -> PageConfidence | None:
    """The confidences of a page, as finely as the request asks for.

    Args:
        result: The model's answer.
        grounded: Its text and regions.
        wanted: What was asked for.
        calibration: Of the model that answered; None if it has none.

    Returns:
        None if the engine gave no scores of its tokens.
    """
    tokens = result.token_scores
    if tokens is None:
        return None
    of_word, of_digit = (calibration.words.share, calibration.digit_share) if calibration else (None, None)

    def span(scored: ScoredSpan, line: int, share_of: Callable[[float, float], float] | None) -> Span:
        share = share_of(scored.log_probability, tokens.mean) if share_of else exp(scored.log_probability)
        # Rounded here, so that what is listed as below a threshold is below it in the answer too.
        return Span(scored.start, scored.end, line, round(share, CONFIDENCE_DIGITS))

    scored = score_words(grounded.text, result.text, grounded.sources, tokens)
    words = tuple(span(word, word.line, of_word) for word in scored)
    threshold = wanted.review_threshold
    doubtful_words = doubtful_digits = None
    if threshold is not None:
        doubtful_words = tuple(word for word in words if word.confidence < threshold)
        digits = (span(digit, word.line, of_digit) for word in scored for digit in word.digits)
        doubtful_digits = _joined(digit for digit in digits if digit.confidence < threshold)
    return PageConfidence(
        wanted.granularity,
        calibration is not None,
        words,
        tuple(words_of(region, words) for region in grounded.regions),
        doubtful_words,
        doubtful_digits,
    )


def _joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Spans that touch as one, with the lowest confidence."""
    joined: list[Span] = []
    for each in spans:
        last = joined[-1] if joined else None
        if last is not None and last.end == each.start:
            joined[-1] = Span(last.start, each.end, last.line, min(last.confidence, each.confidence))
        else:
            joined.append(each)
    return tuple(joined)


def words_of(region: Region, words: tuple[Span, ...]) -> tuple[Span, ...]:
    """The words of a region: as many characters from its start as its text has, white space aside."""
    num_left = sum(not character.isspace() for character in region.text)
    first = bisect_left(words, region.start, key=lambda word: word.start)
    last = first
    while last < len(words) and num_left > 0:
        num_left -= words[last].end - words[last].start
        last += 1
    return words[first:last]


def mean_of(words: Sequence[Span]) -> float | None:
    """Mean of their confidences: the share that is expected to be right; None without words."""
    return sum(word.confidence for word in words) / len(words) if words else None
