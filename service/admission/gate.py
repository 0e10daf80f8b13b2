"""Admission: a bound on concurrent requests, and slots for pages in work.

A request is admitted before its body is read, or rejected at once. A page takes a slot before its image is decoded,
clients by turns and those of a client in order of arrival across its requests, so that long documents alternate with
short ones and only as many pages are prepared ahead of the engine as it can soon use. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

from service.admission.fair_slots import FairSlots
from service.errors import DrainingError, QueueFullError

MAX_RETRY_AFTER_S = 60
NEWCOMERS = 8
"""One place for so many is added for clients that have no request inside, one each: those that fill the gate do not
shut others out."""
_SMOOTHING = 0.2
_JITTER = 0.2


class Permit:
    """One admitted request; a context manager that gives its place back however the request ends."""

    def __init__(self, gate: Gate, admitted_at_s: float, client: str) -> None:
        self.client = client
        """Whose request it is."""
        self._gate = gate
        self._admitted_at_s = admitted_at_s
        self._is_running = False
        self._is_finished = False

    def mark_finished(self) -> None:
        """The request was answered; its duration goes into the estimate for `Retry-After`."""
        self._is_finished = True

    def mark_running(self) -> None:
        """The request's first page is in work; it no longer counts as waiting."""
        if not self._is_running:
            self._is_running = True
            self._gate._started()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate._left(self._admitted_at_s, self.client, was_running=self._is_running, finished=self._is_finished)


class Gate:
    """Admits requests and counts them.

    Invariant: `num_waiting + num_running <= capacity + capacity // NEWCOMERS`, of one client `capacity`, and both
    return to 0 when no request is left.
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
        self.page_slots = FairSlots(page_slots)
        self._inside: Counter[str] = Counter()
        """Requests of each client."""
        self._clock = clock
        self._jitter = jitter
        self._num_waiting = 0
        self._num_running = 0
        self._service_s = 1.0
        self._is_leaving = False
        self._draining = asyncio.Event()

    @property
    def capacity(self) -> int:
        """Maximum concurrent requests; newcomers find a few places more."""
        return self._capacity

    @property
    def num_waiting(self) -> int:
        """Admitted requests without a page in work yet."""
        return self._num_waiting

    @property
    def num_running(self) -> int:
        """Admitted requests with pages in work."""
        return self._num_running

    @property
    def is_leaving(self) -> bool:
        """Whether the process will stop soon, so that load balancers should send no more requests."""
        return self._is_leaving

    @property
    def is_draining(self) -> bool:
        """Whether new requests are rejected."""
        return self._draining.is_set()

    def admit(self, client: str = "") -> Permit:
        """Admit a request.

        Args:
            client: Whose it is; a client without a request inside finds room even at capacity.

        Returns:
            A context manager that gives the place back.

        Raises:
            DrainingError: The process is shutting down.
            QueueFullError: The service is at capacity; the error says when to retry.
        """
        if self.is_draining:
            raise DrainingError
        places = self._capacity if self._inside[client] else self._capacity + self._capacity // NEWCOMERS
        if self._num_waiting + self._num_running >= places:
            raise QueueFullError(retry_after_s=self._retry_after_s())
        self._num_waiting += 1
        self._inside[client] += 1
        return Permit(self, self._clock(), client)

    def _retry_after_s(self) -> int:
        # With jitter, so that rejected clients do not all retry at once.
        guess_s = self._service_s * (1 + self._jitter(-_JITTER, _JITTER))
        return min(max(math.ceil(guess_s), 1), MAX_RETRY_AFTER_S)

    def _started(self) -> None:
        self._num_waiting -= 1
        self._num_running += 1

    def _left(self, admitted_at_s: float, client: str, *, was_running: bool, finished: bool) -> None:
        self._inside[client] -= 1
        if not self._inside[client]:
            del self._inside[client]
        if was_running:
            self._num_running -= 1
        else:
            self._num_waiting -= 1
        if finished:
            self._service_s += _SMOOTHING * (self._clock() - admitted_at_s - self._service_s)

    def leave(self) -> None:
        """Say that the process will stop; requests are still admitted."""
        self._is_leaving = True

    def drain(self) -> None:
        """Reject new requests from now on."""
        self._is_leaving = True
        self._draining.set()

    async def until_draining(self) -> None:
        """Wait until new requests are rejected."""
        await self._draining.wait()
