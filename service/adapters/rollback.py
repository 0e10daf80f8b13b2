"""When a version is worse in service than the one before it: a pure rule over how their newest pages ended."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How a page ended, as far as the adapter may be to blame."""

    FINE = "fine"
    LOOP = "loop"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class RollbackRule:
    """When a version is taken back by itself."""

    pages: int = 100
    """Newest pages of each of the two that are compared; fewer decide nothing. 0: never."""
    margin: float = 0.1
    """Share of pages by which the new version's loops, or failures, must exceed its predecessor's."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a version is taken back."""

    kind: Outcome
    rate: float
    former_rate: float
    pages: int

    def __str__(self) -> str:
        return f"{self.kind} rate {self.rate:.0%} over {self.pages} pages, {self.former_rate:.0%} before"


def judge(newest: Collection[Outcome], former: Collection[Outcome], rule: RollbackRule) -> Verdict | None:
    """Compare a version with its predecessor.

    Args:
        newest: How the newest pages of the version in use ended.
        former: How the newest pages of the one before it ended.
        rule: How many pages, and how much worse.

    Returns:
        Why it is to be taken back; None where it is not, or not known yet.
    """
    if not rule.pages or min(len(newest), len(former)) < rule.pages:
        return None
    for kind in (Outcome.FAILURE, Outcome.LOOP):
        rate, former_rate = _rate(newest, kind), _rate(former, kind)
        if rate > former_rate + rule.margin:
            return Verdict(kind, rate, former_rate, len(newest))
    return None


def _rate(outcomes: Collection[Outcome], kind: Outcome) -> float:
    return sum(outcome is kind for outcome in outcomes) / len(outcomes)
