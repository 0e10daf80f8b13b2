"""Which adapters are resident in the engine, by the names that requests use, and which of them are being drained.

Maps names to slots; knows nothing of the adapters' content, and does not import torch. A name always means the same
content, so a new version has a new name. Used by the engine's single thread.
"""

from __future__ import annotations

from collections.abc import Iterable

NO_ADAPTER = -1
"""The slot of rows without an adapter."""


class AdapterError(RuntimeError):
    """An adapter cannot be loaded or unloaded; resident adapters are not affected.

    Args:
        reason: A stable code, see the attribute.
        detail: Explanation for the log.

    Attributes:
        detail: As given.
        reason: A `Reason` of `shared.contract.refusals` if the adapter is at fault, otherwise `no_slot`, `name_in_use`,
            `unknown_adapter` or `adapters_off`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class AdapterRegistry:
    """Names and slots.

    Invariant: a slot is free or belongs to one name. A draining name keeps its slot, but new requests cannot use it.

    Args:
        num_slots: Largest number of resident adapters; 0 turns adapters off.
    """

    def __init__(self, num_slots: int) -> None:
        self._free = list(reversed(range(num_slots)))
        self._num_slots = num_slots
        self._slots: dict[str, int] = {}
        self._draining: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """Names that new requests may use, oldest first."""
        return tuple(name for name in self._slots if name not in self._draining)

    @property
    def draining(self) -> frozenset[str]:
        """Names that are removed once no sequence uses them."""
        return frozenset(self._draining)

    def find(self, name: str) -> int | None:
        """The slot of a name that new requests may use, or None."""
        return None if name in self._draining else self._slots.get(name)

    def offer_slot(self, name: str) -> int:
        """Find a slot for a new adapter; it stays free until `add`.

        Args:
            name: Model ID that requests will use.

        Returns:
            A free slot.

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
        """Register an adapter in the slot that was offered."""
        assert self._free[-1] == slot
        assert name not in self._slots
        self._free.pop()
        self._slots[name] = slot

    def drain(self, name: str) -> None:
        """Stop new requests from using an adapter.

        Args:
            name: Model ID that requests use.

        Raises:
            AdapterError: `unknown_adapter`.
        """
        if name not in self._slots:
            raise AdapterError("unknown_adapter", f"{name} is not loaded")
        self._draining.add(name)

    def sweep(self, used: Iterable[int]) -> list[str]:
        """Remove draining adapters that no sequence uses.

        Args:
            used: Slots of all waiting and running sequences.

        Returns:
            Names that were removed.
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
