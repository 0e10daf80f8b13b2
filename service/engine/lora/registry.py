"""Which adapters the engine holds, by the names that requests use, and which of them are about to leave. Free of torch.

Owns the way from a name to a resident slot, nothing of the adapters' content. A name is used for one content only, so a
new version is a new name. Used by the engine's single thread.
"""

from __future__ import annotations

from collections.abc import Iterable

NO_ADAPTER = -1
"""The slot of rows that the base model answers alone."""


class AdapterError(RuntimeError):
    """An adapter that cannot be loaded or unloaded; what is served is not touched.

    Args:
        reason: See below.
        detail: For the log.

    Attributes:
        detail: As given.
        reason: Stable, from `shared.contract.refusals` where the adapter is to blame, else `no_slot`, `name_in_use`,
            `unknown_adapter` or `adapters_off`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class AdapterRegistry:
    """Names and slots.

    Invariant: a slot is free, or belongs to one name; a name that drains still has its slot, but nobody new gets it.

    Args:
        num_slots: Adapters at once.
    """

    def __init__(self, num_slots: int) -> None:
        self._free = list(reversed(range(num_slots)))
        self._num_slots = num_slots
        self._slots: dict[str, int] = {}
        self._draining: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """Those that new requests may use, oldest first."""
        return tuple(name for name in self._slots if name not in self._draining)

    @property
    def draining(self) -> frozenset[str]:
        """Those that leave with their last sequence."""
        return frozenset(self._draining)

    def find(self, name: str) -> int | None:
        """The slot of an adapter that new requests may use."""
        return None if name in self._draining else self._slots.get(name)

    def offer_slot(self, name: str) -> int:
        """Find a slot for a new adapter; it stays free until `add`.

        Args:
            name: What requests will call it.

        Returns:
            The slot.

        Raises:
            AdapterError: `adapters_off`, `name_in_use` or `no_slot`.
        """
        if not self._num_slots:
            raise AdapterError("adapters_off", "the engine was started without slots for adapters")
        if name in self._slots:
            state = "draining" if name in self._draining else "loaded"
            raise AdapterError("name_in_use", f"{name} is {state}")
        if not self._free:
            raise AdapterError("no_slot", f"all {self._num_slots} slots are taken")
        return self._free[-1]

    def add(self, name: str, slot: int) -> None:
        """Serve an adapter from the slot that was offered."""
        assert self._free[-1] == slot
        assert name not in self._slots
        self._free.pop()
        self._slots[name] = slot

    def drain(self, name: str) -> None:
        """Let nobody new use an adapter.

        Args:
            name: What requests call it.

        Raises:
            AdapterError: `unknown_adapter`.
        """
        if name not in self._slots:
            raise AdapterError("unknown_adapter", f"{name} is not loaded")
        self._draining.add(name)

    def sweep(self, used: Iterable[int]) -> list[str]:
        """Forget draining adapters that no sequence uses.

        Args:
            used: Slots of all sequences that wait or run.

        Returns:
            Names that have gone.
        """
        in_use = set(used)
        gone = sorted(name for name in self._draining if self._slots[name] not in in_use)
        for name in gone:
            self._draining.remove(name)
            self._free.append(self._slots.pop(name))
        return gone

    def check_integrity(self) -> None:
        """Assert the invariants."""
        assert sorted([*self._free, *self._slots.values()]) == list(range(self._num_slots))
        assert self._draining <= self._slots.keys()
