"""Programs from outside Python that end-to-end tests drive, and what happens where one is missing."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]


def require(program: str) -> str:
    """Path of a program; without it the test is skipped, but under CI it fails, since .ci/run installs it."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    found = shutil.which(program, path=places)
    if found is None:
        absent(f"{program} is not installed")
    return found


def absent(reason: str) -> NoReturn:
    """Skip the test for want of something; fail it under CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def free_port(*, is_held: bool = True) -> int:
    """A loopback port on which nothing listens.

    Until this process ends, a socket that does not listen holds it, so that the kernel gives it to no other test in the
    meantime. Servers can listen on it all the same, since they set SO_REUSEADDR; those that look for a socket there
    first cannot, so let them have a port that is not held.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    port = int(holder.getsockname()[1])
    if is_held:
        atexit.register(holder.close)
    else:
        holder.close()
    return port


def read_terminal(terminal: int) -> str:
    """What was written to a pseudo-terminal whose other end has been closed, however many pieces it comes in."""
    shown = b""
    with contextlib.suppress(OSError):  # EIO is its end
        while piece := os.read(terminal, 65536):
            shown += piece
    return shown.decode()


def wait_until_ready(port: int, process: subprocess.Popen[bytes], log: Path, limit_s: float) -> None:
    """Return once the server answers that it is ready; fail with its log when it ends or takes too long."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text(encoding="utf-8")[-4000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"not ready in {limit_s} s:\n" + log.read_text(encoding="utf-8")[-4000:])


def stop_session(process: subprocess.Popen[bytes]) -> None:
    """Ask a process that leads its own session, and its children, to end; insist after five minutes, and fail."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
        raise


def take_interrupts() -> None:
    """For `preexec_fn`: let Ctrl-C reach a program although the tests themselves run in the background, where shells
    ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
