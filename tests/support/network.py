"""Networks of a test's own: this thread and the processes that it starts see loopback, or hosts joined by a switch.

Linux alone, and root. Threads that run already stay in the network they are in.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Host:
    """A network namespace that plays a host: its own address, loopback and ports."""

    name: str
    address: str

    @property
    def prefix(self) -> list[str]:
        """Words before a command that is to run there."""
        return [require("ip"), "netns", "exec", self.name]

    def plug(self, *, is_in: bool) -> None:
        """Put the host's cable in, or pull it; only from where `switched_hosts` was called."""
        _ip("link", "set", _cable(self.address), "up" if is_in else "down")


def _cable(address: str) -> str:
    return f"host{address.rpartition('.')[2]}"


def _ip(*words: str) -> None:
    subprocess.run([require("ip"), *words], check=True)


@contextlib.contextmanager
def switched_hosts(count: int) -> Iterator[tuple[str, list[Host]]]:
    """A switch in a network of its own, with hosts on it; the calling thread has the switch's address.

    Args:
        count: How many hosts.

    Yields:
        The switch's address, and the hosts.
    """
    with own_network(), contextlib.ExitStack() as stack:
        _ip("link", "add", "switch", "type", "bridge")
        _ip("address", "add", "10.77.0.1/24", "dev", "switch")
        _ip("link", "set", "switch", "up")
        hosts = []
        for number in range(2, 2 + count):
            hosts.append(host := Host(f"deepsynth-{os.getpid()}-{number}", f"10.77.0.{number}"))
            _ip("netns", "add", host.name)
            stack.callback(_ip, "netns", "delete", host.name)
            _ip("link", "add", _cable(host.address), "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _ip("link", "set", _cable(host.address), "master", "switch")
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
            for each in ("lo", "eth0"):
                _ip("-n", host.name, "link", "set", each, "up")
            host.plug(is_in=True)
        yield "10.77.0.1", hosts
