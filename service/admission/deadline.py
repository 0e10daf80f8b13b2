"""Runs a request to exactly one outcome: done, past its deadline, or client gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from service.errors import ClientGoneError, DeadlineError

Result = TypeVar("Result")


async def run_to_outcome(
    work: Coroutine[Any, Any, Result], *, deadline_s: float, disconnected: Callable[[], Awaitable[None]] | None
) -> Result:
    """Run a request's work until it is done, its deadline has passed or its client is gone.

    Finished work counts as done even if the client left in the same moment; otherwise the work is cancelled and has
    ended before this returns.

    Args:
        work: What to do.
        deadline_s: Maximum time in seconds.
        disconnected: Returns when the client is gone; None if there is no client.

    Returns:
        The work's result.

    Raises:
        ClientGoneError: The client left first.
        DeadlineError: The deadline passed first.
    """
    task = asyncio.create_task(work, name="request-work")
    watchers: set[asyncio.Future[Any]] = {task}
    watch: asyncio.Future[Any] | None = None
    if disconnected is not None:
        watch = asyncio.ensure_future(disconnected())
        watchers.add(watch)
    try:
        await asyncio.wait(watchers, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if watch is not None and watch.done():
            raise ClientGoneError
        raise DeadlineError
    finally:
        for each in (task, watch):
            if each is not None and not each.done():
                each.cancel()
                await asyncio.wait({each})
                if not each.cancelled():
                    # Retrieved so that asyncio does not log it; the outcome is already decided.
                    each.exception()
