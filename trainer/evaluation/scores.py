"""From readings to figures: the errors of a page, and the aggregates of a tier.

Arithmetic only. Texts are compared as `shared.contract.text` says; nothing here opens a file.

Shape letters: R resamples, N pages, K numbers of a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from numpy.typing import NDArray

from shared.contract.confidence import TokenScores
from shared.contract.text import ErrorCount, char_errors, normalise, total, word_errors
from trainer.evaluation.overlap import Overlap, corpus_bleu, overlap

BOOTSTRAP_RESAMPLES = 2000
BOOTSTRAP_SEED = 20261122
INTERVAL_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Reading:
    """A reader's result on a page."""

    text: str
    seconds: float
    """Wall time of the page; its share if pages are read together."""
    ended: bool = True
    """Whether the reader finished: neither stopped for a loop nor at a limit."""
    token_scores: TokenScores | None = field(default=None, compare=False)
    """Of the text, where a model read it in this process."""


@dataclass(frozen=True, slots=True)
class PageScore:
    """Errors of one reading."""

    chars: ErrorCount
    words: ErrorCount
    is_exact: bool
    ended: bool
    seconds: float
    overlap: Overlap | None = None


@dataclass(frozen=True, slots=True)
class TierScore:
    """Figures of a tier; rates are shares, not percent."""

    pages: int
    characters: int
    """Characters of all truths, normalised."""
    cer: float
    """Micro: all edits over all characters."""
    cer_low: float
    """Lower end of the micro rate's 95 % interval."""
    cer_high: float
    cer_median: float
    """Median of the pages' own rates."""
    cer_capped: float
    """Micro, with at most one edit per character of each page."""
    wer: float
    exact_ratio: float
    """Share of pages without any error."""
    unfinished_ratio: float
    """Share of pages whose reading looped or met the limit."""
    seconds_per_page: float
    rouge_1: float | None = None
    """Mean of the pages' F1 of words; None in records from before it was measured."""
    rouge_2: float | None = None
    rouge_l: float | None = None
    bleu: float | None = None
    """Of all pages together, 0 to 1; None where sacrebleu was not installed."""
    bert_score: float | None = None
    """Mean of the pages' F1; None unless requested."""
    tables: int | None = None
    """Tables in the truths; None where TEDS was not measured."""
    teds: float | None = None
    """Mean over the tables of the truths; one that was not read has 0."""
    teds_structure: float | None = None
    """The same without the cells' texts."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """95 % intervals of the other figures, by name. `cer_change`: the adapter's rate minus the base model's on
    the same pages."""


def score_page(truth: str, reading: Reading) -> PageScore:
    """Compare a reading with the truth."""
    return PageScore(
        chars=char_errors(truth, reading.text),
        words=word_errors(truth, reading.text),
        is_exact=normalise(truth) == normalise(reading.text),
        ended=reading.ended,
        seconds=reading.seconds,
        overlap=overlap(truth, reading.text),
    )


def score_tier(pages: Sequence[PageScore], base: Sequence[PageScore] | None = None) -> TierScore:
    """Aggregate a tier's pages.

    Args:
        pages: scores of at least one page.
        base: scores of the base model on the same pages, if these are an adapter's.

    Returns:
        The tier's figures. Intervals hold 95 % of resamples of the pages, the same at every call: they say how a figure
        would vary with other pages of this kind, nothing about other kinds.

    Raises:
        ValueError: there are no pages.

    Source:
        Percentile bootstrap, Efron and Tibshirani 1993, chapter 13.
    """
    if not pages:
        raise ValueError("a tier without pages has no score")
    chars = [page.chars for page in pages]
    draws_RN = page_draws(len(pages))
    low, high = interval_of(_rates(chars, draws_RN))
    rouge = {name: _mean(pages, name) for name in ("rouge_1", "rouge_2", "rouge_l")}
    intervals = {
        "cer_capped": interval_of(_rates([count.capped for count in chars], draws_RN)),
        "wer": interval_of(_rates([page.words for page in pages], draws_RN)),
        "exact_ratio": _mean_interval([page.is_exact for page in pages], draws_RN),
        "unfinished_ratio": _mean_interval([not page.ended for page in pages], draws_RN),
        **{name: _mean_interval([getattr(page.overlap, name) for page in pages], draws_RN)
           for name, mean in rouge.items() if mean is not None},
    }  # fmt: skip
    bleu, bleu_interval = _bleu(pages, draws_RN)
    if bleu_interval is not None:
        intervals["bleu"] = bleu_interval
    if base is not None:
        intervals["cer_change"] = change_interval(pages, base)
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
        bleu=bleu,
        intervals=intervals,
        rouge_1=rouge["rouge_1"],
        rouge_2=rouge["rouge_2"],
        rouge_l=rouge["rouge_l"],
    )


def change_interval(pages: Sequence[PageScore], base: Sequence[PageScore]) -> tuple[float, float]:
    """95 % interval of the micro rate of `pages` minus that of `base`, the same pages by another reader."""
    draws_RN = page_draws(len(pages))
    chars, base_chars = [page.chars for page in pages], [page.chars for page in base]
    return interval_of(_rates(chars, draws_RN) - _rates(base_chars, draws_RN))


def page_draws(num_pages: int, stream: int = 0) -> NDArray[np.float64]:
    """Count of each page in each resample, `[R, N]`; the same for every reader, so that they can be compared.

    Another `stream` draws others.
    """
    random = np.random.default_rng(BOOTSTRAP_SEED + stream)
    chosen_RN = random.integers(0, num_pages, (BOOTSTRAP_RESAMPLES, num_pages))
    return np.stack([np.bincount(chosen, minlength=num_pages) for chosen in chosen_RN]).astype(np.float64)


def _rates(counts: Sequence[ErrorCount], draws_RN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Micro rates of the resamples, `[R]`."""
    edits, lengths = (np.array([getattr(count, name) for count in counts], float) for name in ("edits", "length"))
    return (draws_RN @ edits) / np.maximum(draws_RN @ lengths, 1)


def _mean(pages: Sequence[PageScore], name: str) -> float | None:
    values = [getattr(page.overlap, name) for page in pages if page.overlap is not None]
    return sum(values) / len(values) if len(values) == len(pages) else None


def _mean_interval(values: Sequence[float], draws_RN: NDArray[np.float64]) -> tuple[float, float]:
    return interval_of(draws_RN @ np.array(values, float) / len(values))


def _bleu(pages: Sequence[PageScore], draws_RN: NDArray[np.float64]) -> tuple[float | None, tuple[float, float] | None]:
    """Corpus BLEU and its interval."""
    counts = [page.overlap.bleu for page in pages if page.overlap is not None and page.overlap.bleu is not None]
    if len(counts) < len(pages):
        return None, None
    counts_NK = np.array(counts, float)
    resampled = [corpus_bleu(counts_K) for counts_K in (draws_RN @ counts_NK).tolist()]
    return corpus_bleu(counts_NK.sum(axis=0).tolist()), interval_of(np.array(resampled, float))


def interval_of(values_R: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of resamples `[R]`."""
    low, high = np.percentile(values_R, INTERVAL_PERCENTILES)
    return float(low), float(high)
