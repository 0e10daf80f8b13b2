"""Removing unfinished work from an adapter's folder: that of a publisher that failed, or was killed long ago.

Touches nothing but entries whose names begin with a dot, which no reader looks at.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress

from shared.contract.durable import closing_descriptor, folder_descriptor, remove_entry, write_new
from shared.contract.refusals import reporting
from shared.contract.volume import AdapterVolume

TRASH_PREFIX = ".trash-"
DEFAULT_AGE_S = 24 * 3600.0


def sweep(volume: AdapterVolume, name: str, older_than_s: float = DEFAULT_AGE_S) -> list[str]:
    """Remove what killed publishers left behind.

    Ages are taken by the volume's own clock, that of a file made for the purpose: the clock of a file server and this
    machine's may be hours apart.

    Args:
        volume: Where.
        name: The adapter.
        older_than_s: Age below which unfinished work may still be going on.

    Returns:
        Entries that were removed.

    Raises:
        VolumeError: The volume failed.
    """
    removed = []
    with volume.folder(name) as folder, reporting(f"sweeping {name}"):
        hidden = [entry for entry in os.listdir(folder) if entry.startswith(".")]
        now_s = _volume_clock_s(folder) if hidden else 0.0
        for entry in hidden:
            is_trash = entry.startswith(TRASH_PREFIX)
            if (is_trash or now_s - _last_change_s(entry, folder) > older_than_s) and discard(entry, folder):
                removed.append(entry)
    return removed


def discard(entry: str, folder: int) -> bool:
    """Remove an entry; renamed away in one step first, so that it cannot be published while it is deleted.

    Args:
        entry: Its plain name.
        folder: Descriptor of the adapter's folder.

    Returns:
        Whether it is gone because of this call.
    """
    trash = entry if entry.startswith(TRASH_PREFIX) else f"{TRASH_PREFIX}{uuid.uuid4().hex}"
    try:
        if trash != entry:
            os.rename(entry, trash, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        return False
    return remove_entry(trash, folder)


def _volume_clock_s(folder: int) -> float:
    name = f".clock-{uuid.uuid4().hex}"
    write_new(name, iter([b"now"]), folder, sync=False)
    try:
        return os.stat(name, dir_fd=folder).st_mtime
    finally:
        os.unlink(name, dir_fd=folder)


def _last_change_s(entry: str, folder: int) -> float:
    """Latest change of an entry or of what it holds; now, so to speak, where it is gone."""
    try:
        times = [os.stat(entry, dir_fd=folder, follow_symlinks=False).st_mtime]
        with suppress(NotADirectoryError), closing_descriptor(folder_descriptor(entry, folder)) as inside:
            times += [os.stat(name, dir_fd=inside, follow_symlinks=False).st_mtime for name in os.listdir(inside)]
    except OSError:
        return float("inf")
    return max(times)
