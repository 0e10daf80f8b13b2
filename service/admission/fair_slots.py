"""Slots for pages, given to clients by turns. Runs on the event loop."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque


class FairSlots:
    """A number of slots; those who wait for one are served client by client, and of one client in order of arrival.

    So a page of a client with few of them waits for one page of each other client at most, however many those have.

    Invariant: while a slot is free, no one waits.

    Args:
        num_slots: How many there are.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_free = num_slots
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """By client, the one whose turn is next first; none is empty."""

    @property
    def num_free(self) -> int:
        """Slots that no one has."""
        return self._num_free

    async def acquire(self, client: str = "") -> None:
        """Wait for a slot.

        Args:
            client: Whose turn it takes.
        """
        if self._num_free:
            self._num_free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()
            else:
                self._leave(client, turn)
            raise

    def release(self) -> None:
        """Give a slot back."""
        while self._waiting:
            client, line = self._waiting.popitem(last=False)
            turn = line.popleft()
            if line:
                # Behind all others, those who have just come included.
                self._waiting[client] = line
            if not turn.done():
                turn.set_result(None)
                return
        self._num_free += 1

    def _leave(self, client: str, turn: asyncio.Future[None]) -> None:
        line = self._waiting.get(client, deque())
        # It is gone if its turn came while it was being cancelled.
        if turn in line:
            line.remove(turn)
            if not line:
                del self._waiting[client]
