"""File operations that survive a crash and a hostile folder: durable writes, reads that follow no link.

Knows no adapters. Works with folder descriptors, so that a folder cannot be swapped for a link between two steps. Never
maps a file into memory, since truncating a mapped file kills the process. POSIX only.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

COPY_BYTES = 1024 * 1024
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a write for which there is no room: disk, quota, size of a file."""
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
"""Errors of file systems that cannot sync a folder; they write its entries at once."""


def folder_descriptor(path: Path | str, inside: int | None = None) -> int:
    """Open a folder.

    Args:
        path: The folder. With `inside` a plain name, which must not be a link.
        inside: Descriptor of the parent folder.

    Returns:
        Its descriptor, which the caller closes.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if inside is None else os.O_NOFOLLOW)
    return os.open(path, flags, dir_fd=inside)


@contextmanager
def closing_descriptor(descriptor: int) -> Iterator[int]:
    """Close a descriptor after a block, ignoring errors: it was opened for reading, so no data can be lost."""
    try:
        yield descriptor
    finally:
        with suppress(OSError):
            os.close(descriptor)


@contextmanager
def open_file(name: str, inside: int) -> Iterator[tuple[int, os.stat_result]]:
    """Open a file for reading without following a link and without waiting on a pipe.

    Args:
        name: Plain name, without folders.
        inside: Descriptor of its folder.

    Yields:
        Its descriptor and status; the caller checks whether it is a regular file.
    """
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=inside)
    with closing_descriptor(descriptor):
        yield descriptor, os.fstat(descriptor)


def chunks_of(descriptor: int, limit_bytes: int) -> Iterator[bytes]:
    """Read a file to its end, or one byte beyond a limit, so that the caller can tell that it is too long.

    Args:
        descriptor: A file that is open for reading.
        limit_bytes: At most one byte more than this is read.

    Yields:
        Chunks of up to `COPY_BYTES`.
    """
    left = limit_bytes + 1
    while left > 0:
        chunk = os.read(descriptor, min(left, COPY_BYTES))
        if not chunk:
            return
        left -= len(chunk)
        yield chunk


def read_small(name: str, inside: int, limit_bytes: int) -> bytes | None:
    """Read a small regular file.

    Args:
        name: Plain name, without folders.
        inside: Descriptor of its folder.
        limit_bytes: Largest expected size.

    Returns:
        Its bytes, cut to one more than the limit if it is longer; None if it is not a regular file.
    """
    with open_file(name, inside) as (descriptor, status):
        if not stat.S_ISREG(status.st_mode):
            return None
        return b"".join(chunks_of(descriptor, limit_bytes))


def write_new(name: str, chunks: Iterator[bytes], inside: int, *, sync: bool = True, mode: int = 0o644) -> None:
    """Write a file that must not exist yet.

    Args:
        name: Plain name, without folders.
        chunks: Its content, in order.
        inside: Descriptor of its folder.
        sync: Call `fsync` before returning.
        mode: Permissions, less the process's mask.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, mode, dir_fd=inside)
    try:
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(descriptor, view) :]
        if sync:
            os.fsync(descriptor)
    finally:
        # A network file system may report a full disk only here, so this error is raised as well.
        os.close(descriptor)


def replace_file(name: str, data: bytes, inside: int, temporary_prefix: str, *, mode: int = 0o644) -> None:
    """Create or replace a file in one step; readers see either the old content or the new.

    Args:
        name: Plain name, without folders.
        data: Its new content.
        inside: Descriptor of its folder.
        temporary_prefix: Begins the name of a temporary file in the same folder.
        mode: Permissions, less the process's mask.
    """
    temporary = f"{temporary_prefix}{uuid.uuid4().hex}"
    try:
        write_new(temporary, iter([data]), inside, mode=mode)
        os.replace(temporary, name, src_dir_fd=inside, dst_dir_fd=inside)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=inside)
        raise
    sync_folder(inside)


def sync_folder(descriptor: int) -> None:
    """Make a folder's entries durable."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def remove_entry(name: str, inside: int) -> bool:
    """Remove a file or a whole folder, following no link.

    Args:
        name: Plain name, without folders.
        inside: Descriptor of its folder.

    Returns:
        Whether no entry of that name is left.
    """
    with suppress(OSError):
        os.unlink(name, dir_fd=inside)
    # rmtree refuses links and works with descriptors, so it cannot leave the folder.
    shutil.rmtree(name, ignore_errors=True, dir_fd=inside)
    return not entry_exists(name, inside)


def entry_exists(name: str, inside: int) -> bool:
    """Whether a folder has an entry of this name, of any kind."""
    try:
        os.stat(name, dir_fd=inside, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
