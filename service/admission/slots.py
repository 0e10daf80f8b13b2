"""A share of the page slots, for work that must leave room for requests. Runs on the event loop."""

from __future__ import annotations

import asyncio
from typing import Protocol


class PageSlots(Protocol):
    """Where a page takes a slot before it is decoded."""

    async def acquire(self, client: str = "") -> None:
        """Wait for a slot, in the turn of a client."""

    def release(self) -> None:
        """Give it back."""


_CLIENT = "jobs"
"""No address, and no key's name as the gate has it."""


class SharedSlots:
    """A bounded part of the slots of others, taken in order of arrival; to the others, all of it is one client.

    Args:
        slots: Where each slot is taken from.
        share: Maximum slots at once.
    """

    def __init__(self, slots: PageSlots, share: int) -> None:
        self._slots = slots
        self._share = asyncio.Semaphore(share)
        self._is_closed = False
        self._num_taken = 0
        self._unused = asyncio.Event()
        self._unused.set()

    async def acquire(self, client: str = "") -> None:
        """Wait for a slot; once this is closed, until the caller is cancelled.

        Args:
            client: Not used.
        """
        del client
        await self._share.acquire()
        try:
            await self._slots.acquire(_CLIENT)
        except asyncio.CancelledError:
            self._share.release()
            raise
        self._num_taken += 1
        self._unused.clear()
        if self._is_closed:
            self.release()
            await asyncio.get_running_loop().create_future()

    def release(self) -> None:
        """Give a slot back."""
        self._slots.release()
        self._share.release()
        self._num_taken -= 1
        if not self._num_taken:
            self._unused.set()

    def close(self) -> None:
        """Give out no more slots."""
        self._is_closed = True

    async def until_unused(self) -> None:
        """Wait until every slot has been given back."""
        await self._unused.wait()
