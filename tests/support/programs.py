"""Programs from outside Python that end-to-end tests drive, and what happens where one is missing."""

from __future__ import annotations

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


def free_port() -> int:
    """A loopback port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until_ready(port: int, process: subprocess.Popen[bytes], log: Path, limit_s: float) -> None:
    """Return once the server answers that it is ready; fail with its log when it ends or takes too long."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text(encoding="utf-8")[-4000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
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
        process.wait(10)
        raise


def take_interrupts() -> None:
    """For `preexec_fn`: let Ctrl-C reach a program although the tests themselves run in the background, where shells
    ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
