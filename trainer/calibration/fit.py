"""Fits a monotone map from scores to the share of cases that are right: isotonic regression over groups of cases.

How much the page counts is chosen by cross-validation over pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from shared.contract.calibration import Calibration
from shared.contract.confidence import MonotoneMap
from trainer.calibration.cases import Case, PageCases

PAGE_WEIGHTS: Final = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
FOLDS: Final = 5
MOST_GROUPS: Final = 100
FEWEST_CASES: Final = 25
"""Of a group: with fewer, the share is mostly chance."""
FEWEST_PAGES: Final = 10
"""Of each kind, readable or not."""
PAGES_OF_A_GROUP: Final = 5
"""Few, as the two kinds are far apart: a larger group has pages of both, and doubts those between."""
_DIGITS: Final = 5


class TooFewCasesError(ValueError):
    """There is too little to fit a map to."""


def fit_map(pages: Sequence[Sequence[Case]]) -> MonotoneMap:
    """Fit a map.

    Args:
        pages: The cases of each page.

    Returns:
        The map, with the page's weight that predicts held-back pages best.

    Raises:
        TooFewCasesError: There are not enough cases or pages, or all cases are right, or all wrong.
    """
    cases = list(chain.from_iterable(pages))
    num_right = sum(case.is_right for case in cases)
    fewest = min(sum(map(len, _without(pages, fold))) for fold in range(FOLDS))
    if fewest < 2 * FEWEST_CASES or not 0 < num_right < len(cases):
        raise TooFewCasesError(
            f"{len(cases)} cases on {len(pages)} pages, {num_right} of them right: too few to calibrate with"
        )
    weight = min(PAGE_WEIGHTS, key=lambda weight: _held_back_loss(pages, weight))
    return _isotonic(cases, weight)


def fit_calibration(pages: Sequence[PageCases]) -> Calibration:
    """Fit the maps of a checkpoint.

    Args:
        pages: What was read, and whether it is right.

    Returns:
        Digits have a map of their own where there are enough of them. Where some pages are unreadable, it is of the
        others, with a map of which pages those are.

    Raises:
        TooFewCasesError: There are not enough words.
    """
    words = fit_map([page.words for page in pages])
    try:
        chances = [[Case(page.words[0].page_mean, 0.0, page.is_readable)] for page in pages if page.words]
        readable = _isotonic([case for (case,) in chances], 0.0, PAGES_OF_A_GROUP) if _has_both(chances) else None
        of_readable = fit_map([page.digits for page in pages if page.is_readable or readable is None])
    except TooFewCasesError:
        # Too few wrong digits on pages that are read, say: one map for all pages then.
        readable = None
        try:
            of_readable = fit_map([page.digits for page in pages])
        except TooFewCasesError:
            # Of pages without many numbers: a digit is then taken for a word of one token.
            of_readable = words
    return Calibration(words, of_readable, readable)


def _has_both(pages: Sequence[Sequence[Case]]) -> bool:
    """Whether enough pages are readable, and enough are not."""
    num_readable = sum(case.is_right for page in pages for case in page)
    return min(num_readable, len(pages) - num_readable) >= FEWEST_PAGES and len(pages) >= 2 * FEWEST_CASES


def _held_back_loss(pages: Sequence[Sequence[Case]], weight: float) -> float:
    loss = 0.0
    for fold in range(FOLDS):
        fitted = _isotonic(list(chain.from_iterable(_without(pages, fold))), weight)
        loss += sum(log_loss(fitted, case) for page in pages[fold::FOLDS] for case in page)
    return loss


def _without(pages: Sequence[Sequence[Case]], fold: int) -> list[Sequence[Case]]:
    return [page for place, page in enumerate(pages) if place % FOLDS != fold]


def log_loss(fitted: MonotoneMap, case: Case) -> float:
    """Negative logarithm of the probability that a map gives to what happened."""
    share = fitted.share(case.log_probability, case.page_mean)
    return -math.log(max(share if case.is_right else 1 - share, 1e-6))


@dataclass(frozen=True, slots=True)
class _Pool:
    """Groups of cases that have one share."""

    first: float
    """Mean score of the first group; the pool's share holds from there to `last`."""
    last: float
    right: int
    cases: int

    @property
    def share(self) -> float:
        """Of right cases, with half a case of each kind added, as no share of a sample proves certainty."""
        return (self.right + 0.5) / (self.cases + 1)

    def joined(self, after: _Pool) -> _Pool:
        """This pool and the one after it."""
        return _Pool(self.first, after.last, self.right + after.right, self.cases + after.cases)


def _isotonic(cases: Sequence[Case], weight: float, fewest: int = FEWEST_CASES) -> MonotoneMap:
    """Pool adjacent violators over groups of cases with similar scores, at least so many in a group."""
    scored = sorted((case.log_probability + weight * case.page_mean, case.is_right) for case in cases)
    size = max(fewest, math.ceil(len(scored) / MOST_GROUPS))
    pools: list[_Pool] = []
    for start in range(0, len(scored) - size + 1, size):
        # The last group takes what is left over.
        group = scored[start : start + size] if start + 2 * size <= len(scored) else scored[start:]
        mean = sum(score for score, _ in group) / len(group)
        pools.append(_Pool(mean, mean, sum(is_right for _, is_right in group), len(group)))
        while len(pools) > 1 and pools[-2].share >= pools[-1].share:
            last = pools.pop()
            pools.append(pools.pop().joined(last))
    points = {round(score, _DIGITS): round(pool.share, _DIGITS) for pool in pools for score in (pool.first, pool.last)}
    return MonotoneMap(weight, tuple(points), tuple(points.values()))
