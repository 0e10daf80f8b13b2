"""Which version a name stands for, and which adapter leaves its slot: pure decisions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from shared.contract.volume import AdapterListing


def candidates(listing: AdapterListing, *, pin: int | None, former: Iterable[int], kept: Collection[int]) -> list[int]:
    """Versions that a name may stand for, best first.

    Args:
        listing: What lies on the volume.
        pin: The version that an operator chose.
        former: Versions that this service used under the name before, newest first.
        kept: Versions of which there is a private copy, whatever the volume says.

    Returns:
        The pin, what the pointer names, what it named before, and what was used here before; as far as they can be
        had. A version that was never in use is not chosen.
    """
    named = [pin, listing.current, *listing.former, *former]
    can_be_had = {*listing.versions, *kept}
    return [number for number in dict.fromkeys(named) if number is not None and number in can_be_had]


@dataclass(frozen=True, slots=True)
class Occupant:
    """An adapter in a slot."""

    holds: int
    used_at: int
    """Grows with each use."""


def choose_victim(occupants: Mapping[str, Occupant]) -> str | None:
    """Which adapter makes room: the least recently used of those that nobody uses, else of all.

    Args:
        occupants: By `name@version`.

    Returns:
        Its name; None where there is none.
    """
    return min(occupants, key=lambda name: (occupants[name].holds > 0, occupants[name].used_at), default=None)
