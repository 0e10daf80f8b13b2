"""Runs a request to exactly one outcome: done, past its deadline, or client gone."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from service.errors import ClientGoneError, DeadlineError

Result = TypeVar("Result")


class Deadline:
    """Passes when nothing has been finished for `seconds`, so a long document has as long as its pages need.

    Args:
        seconds: From now, and again from each finished page.
        total_s: From now for everything; None: no limit.
    """

    def __init__(self, seconds: float, total_s: float | None = None) -> None:
        self._seconds = seconds
        self._end_s = math.inf if total_s is None else asyncio.get_running_loop().time() + total_s
        self._at_s = self._next_s()
        self._timeout: asyncio.Timeout | None = None

    def _next_s(self) -> float:
        return min(asyncio.get_running_loop().time() + self._seconds, self._end_s)

    @property
    def total_left_s(self) -> float:
        """Seconds until it passes however many pages are finished; infinite without such a limit."""
        return self._end_s - asyncio.get_running_loop().time()

    @property
    def has_passed(self) -> bool:
        """Whether it is cancelling, or has cancelled, the block that it is enforced on."""
        return self._timeout is not None and self._timeout.expired()

    def renew(self) -> None:
        """A page has been finished."""
        self._at_s = self._next_s()
        # One that has expired is already cancelling its block, and can no longer be moved.
        if self._timeout is not None and not self.has_passed:
            self._timeout.reschedule(self._at_s)

    @contextlib.asynccontextmanager
    async def enforced(self) -> AsyncIterator[None]:
        """Cancel the block when the deadline passes.

        Yields:
            Nothing.

        Raises:
            DeadlineError: It has passed.
        """
        try:
            async with asyncio.timeout_at(self._at_s) as self._timeout:
                yield
        except TimeoutError as error:
            if self._timeout is None or not self._timeout.expired():
                raise
            raise DeadlineError from error
        finally:
            self._timeout = None


async def run_to_outcome(
    work: Coroutine[Any, Any, Result], *, disconnected: Callable[[], Awaitable[None]] | None
) -> Result:
    """Run a request's work until it is done or its client is gone.

    Finished work counts as done even if the client left in the same moment; otherwise the work is cancelled and has
    ended before this returns.

    Args:
        work: What to do.
        disconnected: Returns when the client is gone; None if there is no client.

    Returns:
        The work's result.

    Raises:
        ClientGoneError: The client left first.
    """
    task = asyncio.create_task(work, name="request-work")
    watchers: set[asyncio.Future[Any]] = {task}
    watch: asyncio.Future[Any] | None = None
    if disconnected is not None:
        watch = asyncio.ensure_future(disconnected())
        watchers.add(watch)
    try:
        await asyncio.wait(watchers, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for each in (task, watch):
            if each is not None and not each.done():
                each.cancel()
                await asyncio.wait({each})
                if not each.cancelled():
                    # Retrieved so that asyncio does not log it; the outcome is already decided.
                    each.exception()
