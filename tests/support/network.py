"""Networks of a test's own: this thread and the processes that it starts see loopback, or hosts joined by a switch.

Linux alone, and root. Threads that run already stay in the network they are in.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.programs import absent, require

_CLONE_NEWNET = 0x40000000
_HERE = Path("/proc/thread-self/ns/net")


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """A network with loopback and nothing else: what listens on all interfaces is reached from nowhere else."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(_CLONE_NEWNET):
            absent(f"no network of its own: {os.strerror(ctypes.get_errno())}")
        try:
            subprocess.run([require("ip"), "link", "set", "lo", "up"], check=True)
            yield
        finally:
            if libc.setns(before, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "cannot go back to the network of before")
    finally:
        os.close(before)
