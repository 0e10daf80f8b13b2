"""Pure decisions: which version a name serves, and which adapter is evicted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from shared.contract.volume import AdapterListing


def candidates(
    listing: AdapterListing,
    *,
    pin: int | None,
    chosen: int | None = None,
    active: int | None = None,
    former: Iterable[int],
    kept: Collection[int],
) -> list[int]:
    """Versions that a name may serve, best first.

    Args:
        listing: The volume's content.
        pin: The version that an operator chose.
        chosen: The last one served here because a pointer or a pin named it.
        active: The version that the name serves now, perhaps in place of a better one.
        former: Versions that this service served under the name before, newest first.
        kept: Versions with a private copy, whether or not the volume still has them.

    Returns:
        The pin, the pointer's version, the one chosen before, the pointer's former versions, the one in use, and those
        that were served here before; without versions that are neither on the volume nor kept. A version that was never
        in use is not chosen.
    """
    named = [pin, listing.current, chosen, *listing.former, active, *former]
    available = {*listing.versions, *kept}
    return [number for number in dict.fromkeys(named) if number is not None and number in available]


@dataclass(slots=True)
class SlotUse:
    """How a loaded adapter is used."""

    holds: int = 0
    used_at: int = 0
    """Grows with each use."""
    is_leaving: bool = False
    """Its slot is promised to another adapter: no new holds, and it is evicted after the last one."""
    is_retired: bool = False
    """It is unloaded after the last hold, unless it is requested again first."""


def choose_victim(loaded: Mapping[str, SlotUse]) -> str | None:
    """The adapter to evict: the least recently used one of those not held, or of all if every one is held."""
    return min(loaded, key=lambda name: (loaded[name].holds > 0, loaded[name].used_at), default=None)
