"""How far confidences are from the shares that are right: the reliability curve and its error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from trainer.calibration.cases import Case

NUM_BINS: Final = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Cases with similar confidence."""

    cases: int
    confidence: float
    """Mean of theirs."""
    right: float
    """Share of them that are right."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """A reliability curve; bins are of equal width in confidence, those without cases left out."""

    bins: tuple[Bin, ...]

    @property
    def cases(self) -> int:
        """All of them."""
        return sum(each.cases for each in self.bins)

    @property
    def confidence(self) -> float:
        """Mean of all cases."""
        return sum(each.cases * each.confidence for each in self.bins) / max(self.cases, 1)

    @property
    def right(self) -> float:
        """Share of all cases that are right."""
        return sum(each.cases * each.right for each in self.bins) / max(self.cases, 1)

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of confidence and share over bins, weighted by their cases."""
        return sum(each.cases * abs(each.confidence - each.right) for each in self.bins) / max(self.cases, 1)


@dataclass(frozen=True, slots=True)
class Review:
    """What reviewing everything below a threshold takes and finds."""

    threshold: float
    reviewed: float
    """Share of all cases."""
    found: float
    """Share of the wrong ones that are among them."""
    wrong: float
    """Share of the reviewed ones that are wrong."""


def confidences(cases: Sequence[Case], share_of: Callable[[float, float], float]) -> list[tuple[float, bool]]:
    """The confidence of each case, and whether it is right; `share_of` is `MonotoneMap.share` or what is like it."""
    return [(share_of(case.log_probability, case.page_mean), case.is_right) for case in cases]


def reliability(judged: Sequence[tuple[float, bool]]) -> Reliability:
    """The curve of cases.

    Args:
        judged: Confidence and whether it is right.

    Returns:
        The curve.
    """
    groups: list[list[tuple[float, bool]]] = [[] for _ in range(NUM_BINS)]
    for confidence, is_right in judged:
        groups[min(int(confidence * NUM_BINS), NUM_BINS - 1)].append((confidence, is_right))
    return Reliability(
        tuple(
            Bin(len(group), sum(each for each, _ in group) / len(group), sum(right for _, right in group) / len(group))
            for group in groups
            if group
        )
    )


def review(judged: Sequence[tuple[float, bool]], threshold: float) -> Review:
    """What a threshold gives."""
    below = [is_right for confidence, is_right in judged if confidence < threshold]
    wrong = sum(not is_right for _, is_right in judged)
    found = sum(not is_right for is_right in below)
    return Review(threshold, len(below) / max(len(judged), 1), found / max(wrong, 1), found / max(len(below), 1))
