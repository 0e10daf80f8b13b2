"""Programs from outside Python that end-to-end tests drive, and what happens where one is missing."""

from __future__ import annotations

import os
import shutil
import socket
import sys
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
