"""The lock of a run's folder: one process of a rank writes into it at a time.

Imports no torch, as a sweep's process looks at it too.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import BinaryIO, Final

LOCK: Final = ".lock"


def lock_run(folder: Path, rank: int) -> BinaryIO | None:
    """Lock a run's folder until the file that this returns is closed; None if another process has locked it."""
    file = (folder / f"{LOCK}-{rank}").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def is_busy(folder: Path) -> bool:
    """Whether a process is training in a folder."""
    if not (folder / f"{LOCK}-0").is_file():
        return False
    file = lock_run(folder, 0)
    if file is None:
        return True
    file.close()
    return False
