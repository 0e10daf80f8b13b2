"""From readings to figures: the errors of a page, and what a tier's pages give together.

Arithmetic alone. Texts are compared as `shared.contract.text` says; nothing here opens a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from shared.contract.text import ErrorCount, char_errors, normalise, total, word_errors

BOOTSTRAP_RESAMPLES = 2000
BOOTSTRAP_SEED = 20261122
INTERVAL_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader made of a page."""

    text: str
    seconds: float
    """Wall time that the page took, its share where pages are read together."""
    ended: bool = True
    """Whether the reader came to an end of its own: not after a loop, not at a limit."""


@dataclass(frozen=True, slots=True)
class PageScore:
    """Errors of one reading."""

    chars: ErrorCount
    words: ErrorCount
    is_exact: bool
    ended: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class TierScore:
    """What the pages of a tier give together; rates are shares, not percent."""

    pages: int
    characters: int
    """Characters of all truths, normalised."""
    cer: float
    """Micro: all edits over all characters."""
    cer_low: float
    """Lower end of the micro rate's 95 % interval."""
    cer_high: float
    cer_median: float
    """Of the pages' own rates."""
    cer_capped: float
    """Micro, with at most one edit per character of each page."""
    wer: float
    exact_ratio: float
    """Pages without any error."""
    unfinished_ratio: float
    """Pages whose reading looped or met the limit."""
    seconds_per_page: float


def score_page(truth: str, reading: Reading) -> PageScore:
    """Compare a reading with the truth."""
    return PageScore(
        chars=char_errors(truth, reading.text),
        words=word_errors(truth, reading.text),
        is_exact=normalise(truth) == normalise(reading.text),
        ended=reading.ended,
        seconds=reading.seconds,
    )


def score_tier(pages: Sequence[PageScore]) -> TierScore:
    """Aggregate a tier's pages.

    Args:
        pages: Scores of at least one page.

    Returns:
        The tier's figures.

    Raises:
        ValueError: There are none.
    """
    if not pages:
        raise ValueError("a tier without pages has no score")
    chars = [page.chars for page in pages]
    low, high = bootstrap_interval(chars)
    return TierScore(
        pages=len(pages),
        characters=total(chars).length,
        cer=total(chars).rate,
        cer_low=low,
        cer_high=high,
        cer_median=median(count.rate for count in chars),
        cer_capped=total(count.capped for count in chars).rate,
        wer=total(page.words for page in pages).rate,
        exact_ratio=sum(page.is_exact for page in pages) / len(pages),
        unfinished_ratio=sum(not page.ended for page in pages) / len(pages),
        seconds_per_page=sum(page.seconds for page in pages) / len(pages),
    )


def bootstrap_interval(counts: Sequence[ErrorCount]) -> tuple[float, float]:
    """95 % interval of the micro rate by resampling pages, the same at every call.

    Args:
        counts: One count a page.

    Returns:
        Lower and upper end. It says how the rate would vary with other pages of the kind, nothing of other kinds.

    Source:
        Percentile bootstrap, Efron and Tibshirani 1993, chapter 13.
    """
    edits = np.array([count.edits for count in counts])
    lengths = np.array([count.length for count in counts])
    random = np.random.default_rng(BOOTSTRAP_SEED)
    chosen = random.integers(0, len(counts), (BOOTSTRAP_RESAMPLES, len(counts)))
    rates = edits[chosen].sum(axis=1) / np.maximum(lengths[chosen].sum(axis=1), 1)
    low, high = np.percentile(rates, INTERVAL_PERCENTILES)
    return float(low), float(high)
