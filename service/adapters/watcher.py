"""Scans the adapter volume periodically, which also works on network file systems that report no changes.

Owns the period, and the rule that a volume, or a folder on it, which fails or hangs takes nothing out of service. The
catalog decides what the findings mean.
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
from shared.contract.volume import AdapterListing, AdapterVolume, VolumeContent

MAX_LOOKING_RATIO = 0.2
"""Share of the time that scanning may take: a slow scan is followed by a longer pause."""
MAX_STRETCHED_PAUSE_S = 1.0
LOOK_TIMEOUT_S = 10.0
"""After this time the volume counts as unavailable; the next scan starts once this one has ended."""

_log = logging.getLogger(__name__)


class Watcher:
    """The task that scans.

    Args:
        volume: The volume.
        period_s: From the end of a scan to the next; see `pause_after_s`.
        on_found: Called with the volume's content after every successful scan.
        on_looked: Called after every scan, successful or not.
        observer: Records whether the volume can be read.
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
        self._look: asyncio.Task[VolumeContent] | None = None
        self.misnamed: tuple[str, ...] = ()
        """Folders that are not looked into, since their names are none of adapters."""
        self.fault: str | None = None
        """What was wrong with the volume at the last scan: a code, and after a colon what of the volume it is about."""

    async def start(self) -> None:
        """Scan once and start the task."""
        await self.look()
        self._task = asyncio.create_task(self._run(), name="adapter-watcher")

    async def stop(self) -> None:
        """Stop the task; a scan that hangs is abandoned."""
        for task in (self._task, self._look):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, VolumeError):
                    await task

    async def look(self) -> None:
        """Scan the volume."""
        if self._look is None:
            self._look = asyncio.create_task(in_thread(self._volume.look, "adapter-watcher"))
        done, _ = await asyncio.wait({self._look}, timeout=LOOK_TIMEOUT_S)
        fault: str | None = "timeout"
        if done:
            look, self._look = self._look, None
            try:
                content = look.result()
            except VolumeError as error:
                fault = error.code
            except Exception:  # noqa: BLE001 -- the boundary: nothing on a shared volume may end the task
                _log.exception("the adapter volume could not be scanned")
                fault = "internal_error"
            else:
                fault = _fault_of(content)
                self._tell_misnamed(content.misnamed)
                self._on_found(content.listings)
        if fault != self.fault:
            _log.warning("adapter volume: %s", fault or "back", extra={"fields": {"volume": str(self._volume.root)}})
        self.fault = fault
        self._observer.volume(is_up=fault is None)
        self._on_looked()

    def _tell_misnamed(self, names: tuple[str, ...]) -> None:
        for name in set(names) - set(self.misnamed):
            _log.warning(
                "a folder on the adapter volume is not served: its name is none of an adapter (a-z, 0-9 and -)",
                extra={"fields": {"folder": name}},
            )
        self.misnamed = names

    async def _run(self) -> None:
        pause_s = self._period_s
        while True:
            await asyncio.sleep(pause_s)
            began_s = time.monotonic()
            await self.look()
            pause_s = pause_after_s(time.monotonic() - began_s, self._period_s)


def _fault_of(content: VolumeContent) -> str | None:
    """What to tell of a volume that could be read, but not all of it."""
    if content.faults:
        # A name is from a folder that anything may have made, but a valid one.
        name, fault = next(iter(content.faults.items()))
        more = f" and {len(content.faults) - 1} more" if len(content.faults) > 1 else ""
        return f"{fault}: {name}{more}"
    return f"too_many_names: {content.num_left_out} left out" if content.num_left_out else None


def pause_after_s(look_s: float, period_s: float) -> float:
    """Seconds to wait after a scan that took `look_s`; at least `period_s`."""
    return max(period_s, min(look_s * (1 / MAX_LOOKING_RATIO - 1), MAX_STRETCHED_PAUSE_S))
