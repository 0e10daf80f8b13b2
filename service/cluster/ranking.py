"""In which order replicas are tried for a request. Knows nothing of Ray."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

ADAPTERS = "adapters"
"""Key of a replica's report: names of adapters that answer there without being loaded first."""
NUM_CHOICES = 2
"""Of so many replicas, taken at random, Serve takes the one with fewer requests (power of two choices)."""


class Reporting(Protocol):
    """A replica with its last report."""

    @property
    def routing_stats(self) -> Mapping[str, Any]:
        """What the replica reported; empty before its first report."""


R = TypeVar("R", bound=Reporting)


def rank(replicas: Sequence[R], wanted: str) -> list[list[R]]:
    """Put replicas in ranks.

    Args:
        replicas: All of them.
        wanted: Name of an adapter; empty for none.

    Returns:
        At most `NUM_CHOICES` replicas a rank, drawn at random: holders of the adapter, then others.
    """
    holders = [each for each in replicas if wanted and wanted in (each.routing_stats or {}).get(ADAPTERS, ())]
    others = [each for each in replicas if each not in holders]
    ranks = (random.sample(group, min(NUM_CHOICES, len(group))) for group in (holders, others))
    return [group for group in ranks if group]
