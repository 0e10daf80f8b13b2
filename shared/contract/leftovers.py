"""Removes unfinished work from an adapter's folder, left there by publishers that failed or were killed.

Touches only entries whose names begin with a dot, which no reader looks at.
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

    Ages are measured by the volume's own clock, taken from a file made for this purpose: the clocks of a file server
    and of this machine may differ by hours.

    Args:
        volume: Must be writable.
        name: Name of an adapter on the volume.
        older_than_s: Younger work is kept, since it may still be going on.

    Returns:
        Names of the removed entries.

    Raises:
        VolumeError: A file operation failed, or there is no such adapter.
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
    """Remove an entry. It is renamed first, in one step, so that it cannot be published while it is being deleted.

    Args:
        entry: Plain name, without folders.
        folder: Descriptor of the adapter's folder.

    Returns:
        Whether this call removed it.
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
    """Latest change of an entry or of the files in it; infinity, which is never old enough, if it is gone."""
    try:
        times = [os.stat(entry, dir_fd=folder, follow_symlinks=False).st_mtime]
        with suppress(NotADirectoryError), closing_descriptor(folder_descriptor(entry, folder)) as inside:
            times += [os.stat(name, dir_fd=inside, follow_symlinks=False).st_mtime for name in os.listdir(inside)]
    except OSError:
        return float("inf")
    return max(times)
