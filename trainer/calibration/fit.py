"""Fits a monotone map from scores to the share of cases that are right: isotonic regression over groups of cases.

How much the page counts is chosen by cross-validation over pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Final

from shared.contract.confidence import MonotoneMap
from trainer.calibration.cases import Case

PAGE_WEIGHTS: Final = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
FOLDS: Final = 5
MOST_POINTS: Final = 40
FEWEST_CASES: Final = 25
"""Of a point: with fewer, the share is mostly chance."""
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
        TooFewCasesError: There are not enough cases for two points, or all are right, or all wrong.
    """
    cases = list(chain.from_iterable(pages))
    num_right = sum(case.is_right for case in cases)
    if len(cases) < 2 * FEWEST_CASES or not 0 < num_right < len(cases):
        raise TooFewCasesError(f"{len(cases)} cases, {num_right} of them right: too few to calibrate with")
    weight = min(PAGE_WEIGHTS, key=lambda weight: _held_back_loss(pages, weight))
    return _isotonic(cases, weight)


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


def _isotonic(cases: Sequence[Case], weight: float) -> MonotoneMap:
    """Pool adjacent violators over groups of cases with similar scores."""
    scored = sorted((case.log_probability + weight * case.page_mean, case.is_right) for case in cases)
    size = max(FEWEST_CASES, math.ceil(len(scored) / MOST_POINTS))
    pools: list[tuple[float, float, int]] = []
    """Sums of scores and of right cases, and the number of cases."""
    for start in range(0, len(scored), size):
        group = scored[start : start + size]
        if pools and len(group) < FEWEST_CASES:
            pools.append(_joined(pools.pop(), _pool(group)))
        else:
            pools.append(_pool(group))
        while len(pools) > 1 and _share(pools[-2]) >= _share(pools[-1]):
            last = pools.pop()
            pools.append(_joined(pools.pop(), last))
    points = {round(scores / count, _DIGITS): round(_share((scores, right, count)), _DIGITS)
              for scores, right, count in pools}  # fmt: skip
    return MonotoneMap(weight, tuple(points), tuple(points.values()))


def _pool(group: Sequence[tuple[float, bool]]) -> tuple[float, float, int]:
    return sum(score for score, _ in group), float(sum(right for _, right in group)), len(group)


def _joined(first: tuple[float, float, int], second: tuple[float, float, int]) -> tuple[float, float, int]:
    return first[0] + second[0], first[1] + second[1], first[2] + second[2]


def _share(pool: tuple[float, float, int]) -> float:
    """Of right cases, with half a case of each kind added, as no share of a sample proves certainty."""
    return (pool[1] + 0.5) / (pool[2] + 1)
