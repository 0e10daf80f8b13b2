"""Who may come in: places for requests, and slots for pages in work.

A request takes a place before its body is read and keeps it to its end; with no place free it is turned away at once.
A page takes a slot before it is decoded, in order of arrival across requests, so that a long document takes turns
with short ones and no more pages are prepared ahead of the engine than it can soon use. Runs on the event loop only.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from types import TracebackType
from typing import Self

from service.errors import DrainingError, QueueFullError

MAX_RETRY_AFTER_S = 60
_SMOOTHING = 0.2
_JITTER = 0.2


class Permit:
    """One request's place; given back once, however it ends."""

    def __init__(self, gate: Gate, admitted_at_s: float) -> None:
        self._gate = gate
        self._admitted_at_s = admitted_at_s
        self._is_running = False
        self._is_finished = False

    def mark_finished(self) -> None:
        """The request was answered, so its duration counts for what later ones are told."""
        self._is_finished = True

    def mark_running(self) -> None:
        """The first page of the request is in work: it no longer counts as waiting."""
        if not self._is_running:
            self._is_running = True
            self._gate._started()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate._left(self._admitted_at_s, was_running=self._is_running, finished=self._is_finished)


class Gate:
    """The places and slots, and the counts that metrics and shutdown need.

    Invariant: `num_waiting + num_running <= capacity`, and both return to 0 when nobody is inside.
    """

    def __init__(
        self,
        *,
        capacity: int,
        page_slots: int,
        clock: Callable[[], float],
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._capacity = capacity
        self.page_slots = asyncio.Semaphore(page_slots)
        self._clock = clock
        self._jitter = jitter
        self._num_waiting = 0
        self._num_running = 0
        self._service_s = 1.0
        self._is_draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def capacity(self) -> int:
        """Most requests inside at once."""
        return self._capacity

    @property
    def num_waiting(self) -> int:
        """Requests inside of which no page is in work yet."""
        return self._num_waiting

    @property
    def num_running(self) -> int:
        """Requests inside with pages in work."""
        return self._num_running

    @property
    def is_draining(self) -> bool:
        """Whether nobody else may come in."""
        return self._is_draining

    def admit(self) -> Permit:
        """Take a place; use the permit as a context manager.

        Returns:
            The place.

        Raises:
            DrainingError: The process is about to stop.
            QueueFullError: There is no place; says when to come back.
        """
        if self._is_draining:
            raise DrainingError
        if self._num_waiting + self._num_running >= self._capacity:
            raise QueueFullError(retry_after_s=self._retry_after_s())
        self._num_waiting += 1
        self._empty.clear()
        return Permit(self, self._clock())

    def _retry_after_s(self) -> int:
        # With spread, or all who were turned away come back together.
        guess_s = self._service_s * (1 + self._jitter(-_JITTER, _JITTER))
        return min(max(math.ceil(guess_s), 1), MAX_RETRY_AFTER_S)

    def _started(self) -> None:
        self._num_waiting -= 1
        self._num_running += 1

    def _left(self, admitted_at_s: float, *, was_running: bool, finished: bool) -> None:
        if was_running:
            self._num_running -= 1
        else:
            self._num_waiting -= 1
        if finished:
            self._service_s += _SMOOTHING * (self._clock() - admitted_at_s - self._service_s)
        if self._num_waiting + self._num_running == 0:
            self._empty.set()

    def drain(self) -> None:
        """Let nobody else in."""
        self._is_draining = True

    async def wait_empty(self) -> None:
        """Wait until everybody has left."""
        await self._empty.wait()
