"""Looks at the adapter volume every now and then; works on network file systems, where nobody announces changes.

Owns the period and what a volume that fails or hangs means: nothing is taken out of service for it. What was found is
`AdapterCatalog`'s to judge.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping

from service.adapters.metrics import AdapterObserver
from service.adapters.threads import in_thread
from shared.contract.refusals import VolumeError
from shared.contract.volume import AdapterListing, AdapterVolume

MAX_LOOKING_RATIO = 0.2
"""Share of the time that looking may take: a look at a large or slow volume is followed by a longer pause."""
MAX_STRETCHED_PAUSE_S = 1.0
LOOK_TIMEOUT_S = 10.0
"""A look that takes longer counts as a volume that is away; no other begins before it has ended."""

_log = logging.getLogger(__name__)


class Watcher:
    """One task.

    Args:
        volume: What to look at.
        period_s: From the end of a look to the next; see `pause_after_s`.
        on_found: Given what lies there, after every look that succeeded.
        on_looked: Called after every look, successful or not.
        observer: Told whether the volume can be read.
    """

    def __init__(
        self,
        *,
        volume: AdapterVolume,
        period_s: float,
        on_found: Callable[[Mapping[str, AdapterListing]], None],
        on_looked: Callable[[], None],
        observer: AdapterObserver,
    ) -> None:
        self._volume = volume
        self._period_s = period_s
        self._on_found = on_found
        self._on_looked = on_looked
        self._observer = observer
        self._task: asyncio.Task[None] | None = None
        self._look: asyncio.Task[dict[str, AdapterListing]] | None = None
        self.fault: str | None = None
        """What was wrong with the volume at the last look."""

    async def start(self) -> None:
        """Look once, and go on looking."""
        await self.look()
        self._task = asyncio.create_task(self._run(), name="adapter-watcher")

    async def stop(self) -> None:
        """End; a look that hangs is left behind."""
        for task in (self._task, self._look):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, VolumeError):
                    await task

    async def look(self) -> None:
        """See what lies there now."""
        if self._look is None:
            self._look = asyncio.create_task(in_thread(self._volume.discover, "adapter-watcher"))
        done, _ = await asyncio.wait({self._look}, timeout=LOOK_TIMEOUT_S)
        fault: str | None = "timeout"
        if done:
            look, self._look = self._look, None
            try:
                listings = look.result()
            except VolumeError as error:
                fault = error.code
            except Exception:  # noqa: BLE001 -- the boundary: whatever lies on a shared volume must not end the watch
                _log.exception("the adapter volume could not be looked at")
                fault = "internal_error"
            else:
                fault = None
                self._on_found(listings)
        if fault != self.fault:
            _log.warning("adapter volume: %s", fault or "back", extra={"fields": {"volume": str(self._volume.root)}})
        self.fault = fault
        self._observer.volume(is_up=fault is None)
        self._on_looked()

    async def _run(self) -> None:
        pause_s = self._period_s
        while True:
            await asyncio.sleep(pause_s)
            began_s = time.monotonic()
            await self.look()
            pause_s = pause_after_s(time.monotonic() - began_s, self._period_s)


def pause_after_s(look_s: float, period_s: float) -> float:
    """How long to wait after a look.

    Args:
        look_s: How long it took.
        period_s: The shortest pause.

    Returns:
        Seconds.
    """
    return max(period_s, min(look_s * (1 / MAX_LOOKING_RATIO - 1), MAX_STRETCHED_PAUSE_S))
