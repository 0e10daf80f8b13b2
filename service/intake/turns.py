"""Whose turn it is to use an image process, so that a few slow files do not keep the others waiting.

Clients share the time of the processes fairly, and so do the documents of a client (start-time fair queueing): the next
turn goes to the client that has used the least, and to its document that has. A new one starts level with those that
are being read, so it neither waits for their long history nor starves them. While there are several processes,
documents with slow pages leave one to the others. Runs on the event loop.

Source: Goyal, Vin, Cheng, "Start-time Fair Queuing", SIGCOMM 1996.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from service.intake.document import Document

MAX_SHARES = 1024
"""Clients that are remembered until some are forgotten who have nothing to lose by it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The use of one process for one page."""

    document: Document
    is_slow: bool
    """Whether the document was slow when the turn began."""


@dataclass(eq=False, slots=True)
class _Waiting:
    document: Document
    granted: asyncio.Future[Turn]


@dataclass(slots=True)
class _Share:
    """What a client has used."""

    used_s: float
    reached_s: float = 0.0
    """Time used by its document whose turn began last; where its new documents start."""


class Turns:
    """Grants as many turns at a time as there are processes.

    Args:
        places: Processes.
        slow_s: A document is slow while its last turn took longer.
    """

    def __init__(self, places: int, slow_s: float) -> None:
        self._places = self._num_free = places
        self._num_free_for_slow = max(1, places - 1)
        self._slow_s = slow_s
        self._reached_s = 0.0
        """Time used by the client whose turn began last; where new clients start."""
        self._shares: dict[str, _Share] = {}
        """By client: those that wait, and those that have used more than a new one would start with."""
        self._waiting: list[_Waiting] = []
        """In order of arrival."""

    @property
    def are_all_taken(self) -> bool:
        """Whether a new turn would have to wait."""
        return not self._num_free

    async def take(self, document: Document) -> Turn:
        """Wait for a turn, which is then to be given back."""
        share = self._share(document.client)
        share.used_s = max(share.used_s, self._reached_s)
        document.used_s = max(document.used_s, share.reached_s)
        if not self._waiting and self._has_room(document):
            return self._begin(document)
        entry = _Waiting(document, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._grant()
        try:
            return await entry.granted
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            else:
                self.give_back(entry.granted.result(), 0.0)
            raise

    def give_back(self, turn: Turn, duration_s: float) -> None:
        """End a turn.

        Args:
            turn: As `take` gave it.
            duration_s: How long the process worked.
        """
        self._num_free += 1
        self._num_free_for_slow += turn.is_slow
        self._share(turn.document.client).used_s += duration_s
        turn.document.used_s += duration_s
        turn.document.is_slow = duration_s > self._slow_s
        self._grant()
        if self._num_free == self._places:
            # No one has to catch up with what was used while no one else wanted it.
            self._reached_s = max(self._reached_s, *(share.used_s for share in self._shares.values()))

    def _used(self, entry: _Waiting) -> tuple[float, float]:
        return self._share(entry.document.client).used_s, entry.document.used_s

    def _share(self, client: str) -> _Share:
        share = self._shares.get(client)
        if share is None:
            if len(self._shares) >= MAX_SHARES:
                self._forget()
            share = self._shares[client] = _Share(self._reached_s)
        return share

    def _forget(self) -> None:
        """Drop clients who would start where they are, or further on."""
        waiting = {entry.document.client for entry in self._waiting}
        self._shares = {
            client: share
            for client, share in self._shares.items()
            if client in waiting or share.used_s > self._reached_s
        }

    def _grant(self) -> None:
        while able := [each for each in self._waiting if self._has_room(each.document)]:
            entry = min(able, key=self._used)
            self._waiting.remove(entry)
            entry.granted.set_result(self._begin(entry.document))

    def _has_room(self, document: Document) -> bool:
        return self._num_free > 0 and (not document.is_slow or self._num_free_for_slow > 0)

    def _begin(self, document: Document) -> Turn:
        turn = Turn(document, document.is_slow)
        share = self._share(document.client)
        self._reached_s, share.reached_s = share.used_s, document.used_s
        self._num_free -= 1
        self._num_free_for_slow -= turn.is_slow
        return turn
