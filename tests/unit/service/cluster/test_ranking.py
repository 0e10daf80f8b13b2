"""Which replicas are tried for a request, and in which order."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.cluster.ranking import ADAPTERS, NUM_CHOICES, rank


@dataclass(eq=False)
class Replica:
    name: str
    routing_stats: dict[str, list[str]] = field(default_factory=dict)


def replicas() -> list[Replica]:
    holding = [Replica(f"holds {n}", {ADAPTERS: ["letters", "letters@2"]}) for n in range(3)]
    others = [Replica("other", {ADAPTERS: ["invoices"]}), Replica("silent")]
    return [others[0], *holding, others[1]]


def names(groups: list[list[Replica]]) -> list[set[str]]:
    return [{each.name for each in group} for group in groups]


def test_holders_come_first_and_the_others_if_those_have_no_room() -> None:
    for wanted in ("letters", "letters@2"):
        for _ in range(20):
            first, second = names(rank(replicas(), wanted))
            assert len(first) == NUM_CHOICES
            assert all(name.startswith("holds") for name in first)
            assert second == {"other", "silent"}


def test_what_nobody_holds_goes_to_anyone() -> None:
    for wanted in ("", "unknown", "letters@1"):
        seen: set[str] = set()
        for _ in range(200):
            (group,) = names(rank(replicas(), wanted))
            assert len(group) == NUM_CHOICES
            seen |= group
        assert len(seen) == 5


def test_without_replicas_there_is_no_rank() -> None:
    assert rank([], "letters") == []
