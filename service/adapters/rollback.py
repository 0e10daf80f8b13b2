"""The rule for automatic rollback: compares how the newest pages of a version and of its predecessor ended. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How a page ended, as far as the adapter may be the cause."""

    FINE = "fine"
    LOOP = "loop"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class RollbackRule:
    """When a version is rolled back automatically."""

    pages: int = 100
    """Newest pages of each version to compare; with fewer there is no verdict. 0 turns rollback off."""
    margin: float = 0.1
    """Share of pages by which the new version's loops, or failures, must exceed its predecessor's."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a version is rolled back."""

    kind: Outcome
    rate: float
    former_rate: float
    pages: int

    def __str__(self) -> str:
        return f"{self.kind} rate {self.rate:.0%} over {self.pages} pages, {self.former_rate:.0%} before"


def judge(newest: Collection[Outcome], former: Collection[Outcome], rule: RollbackRule) -> Verdict | None:
    """Compare the outcomes of a version with those of its predecessor; None if it is not to be rolled back."""
    if not rule.pages or min(len(newest), len(former)) < rule.pages:
        return None
    for kind in (Outcome.FAILURE, Outcome.LOOP):
        rate, former_rate = _rate(newest, kind), _rate(former, kind)
        if rate > former_rate + rule.margin:
            return Verdict(kind, rate, former_rate, len(newest))
    return None


def _rate(outcomes: Collection[Outcome], kind: Outcome) -> float:
    return sum(outcome is kind for outcome in outcomes) / len(outcomes)
