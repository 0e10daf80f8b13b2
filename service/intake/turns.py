"""Whose turn it is to use an image process, so that a few slow files do not keep the others waiting.

Documents share the time of the processes fairly (start-time fair queueing): the next turn goes to the one that has used
the least. A new document starts level with those that are being read, so it neither waits for their long history nor
starves them. While there are several processes, documents with slow pages leave one to the others. Runs on the event
loop.

Source: Goyal, Vin, Cheng, "Start-time Fair Queuing", SIGCOMM 1996.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from service.intake.document import Document


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


class Turns:
    """Grants as many turns at a time as there are processes.

    Args:
        places: Processes.
        slow_s: A document is slow while its last turn took longer.
    """

    def __init__(self, places: int, slow_s: float) -> None:
        self._num_free = places
        self._num_free_for_slow = max(1, places - 1)
        self._slow_s = slow_s
        self._reached_s = 0.0
        """Time used by the document whose turn began last; where new documents start."""
        self._waiting: list[_Waiting] = []
        """In order of arrival."""

    async def take(self, document: Document) -> Turn:
        """Wait for a turn, which is then to be given back."""
        document.used_s = max(document.used_s, self._reached_s)
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
        turn.document.used_s += duration_s
        turn.document.is_slow = duration_s > self._slow_s
        self._grant()

    def _grant(self) -> None:
        while self._num_free:
            able = [each for each in self._waiting if not each.document.is_slow or self._num_free_for_slow]
            if not able:
                return
            entry = min(able, key=lambda each: each.document.used_s)
            self._waiting.remove(entry)
            turn = Turn(entry.document, entry.document.is_slow)
            self._reached_s = entry.document.used_s
            self._num_free -= 1
            self._num_free_for_slow -= turn.is_slow
            entry.granted.set_result(turn)
