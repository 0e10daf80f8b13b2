"""Processor time of a service and of the processes that it started, to the nanosecond. Needs Linux."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")


def spent_s(root: int) -> dict[str, float]:
    """Seconds so far of all threads that still run: `http` is the process itself, `image` those that decode."""
    spent = dict.fromkeys(("http", "image", "engine"), 0.0)
    for process in _family(root):
        with contextlib.suppress(OSError):
            is_image = b"service.intake.child" in (PROC / str(process) / "cmdline").read_bytes()
            part = "http" if process == root else "image" if is_image else "engine"
            spent[part] += sum(_thread_s(thread) for thread in (PROC / str(process) / "task").iterdir())
    return spent


def _thread_s(thread: Path) -> float:
    try:
        return int((thread / "schedstat").read_text().split()[0]) / 1e9
    except OSError:
        # It has ended meanwhile.
        return 0.0


def _family(process: int) -> Iterator[int]:
    yield process
    for children in (PROC / str(process) / "task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                yield from _family(int(child))
