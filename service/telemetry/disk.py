"""How full the disks are that have folders of the service."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from service.telemetry.metrics import Metrics

TIMEOUT_S = 1.0

logger = logging.getLogger(__name__)


class DiskGauges:
    """Free and total bytes by folder.

    Args:
        metrics: Have the gauges.
        folders: What a folder is for, with its path, which need not exist yet.
    """

    def __init__(self, metrics: Metrics, folders: Mapping[str, Path]) -> None:
        self._metrics = metrics
        self._folders = folders
        self._looking: asyncio.Task[None] | None = None

    async def refresh(self) -> None:
        """Look again; a disk that does not answer in `TIMEOUT_S` keeps its last values, and is waited for."""
        if not self._folders:
            return
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(asyncio.to_thread(self._look), name="disks")
        await asyncio.wait({self._looking}, timeout=TIMEOUT_S)

    def _look(self) -> None:
        for name, folder in self._folders.items():
            try:
                usage = shutil.disk_usage(_existing(folder))
            except OSError as error:
                logger.debug("no figures of a disk", extra={"fields": {"folder": name, "reason": error.strerror}})
                continue
            self._metrics.gauge("disk_free_bytes").labels(name).set(usage.free)
            self._metrics.gauge("disk_size_bytes").labels(name).set(usage.total)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next((each for each in (folder, *folder.parents) if each.exists()), folder)
