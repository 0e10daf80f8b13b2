"""The service as a process of its own on a loopback port, and raw sockets to talk to it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.programs import free_port

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 240.0
ANSWER_LIMIT_S = 240.0
"""More than any answer takes on a machine that does much else; httpx gives up after 5 s."""


@dataclass
class ServerProcess:
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=ANSWER_LIMIT_S, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=ANSWER_LIMIT_S, **options)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=300)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=ANSWER_LIMIT_S)

    def metric(self, line: str) -> float | None:
        for each in self.get("/metrics").text.splitlines():
            if each.startswith(line + " "):
                return float(each.rpartition(" ")[2])
        return None

    def wait_metric(self, line: str, value: float, seconds: float = 300.0) -> None:
        """Wait for a value; a series with labels may not be there yet."""
        end_s = time.monotonic() + seconds
        while (seen := self.metric(line)) != value:
            assert time.monotonic() < end_s, f"{line} is {seen}, not {value}"
            time.sleep(0.02)


def environment(**settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DEEPSYNTH_")}
    names = {f"DEEPSYNTH_{name}": value for name, value in settings.items()}
    return {**kept, "PYTHONPATH": str(ROOT), **names}


@contextlib.contextmanager
def running_server(**settings: str) -> Iterator[ServerProcess]:
    """Start `python -m service serve` with the fake engine and wait until it is ready."""
    port = free_port()
    chosen = {"ENGINE": "fake", "PORT": str(port), "IMAGE_WORKERS": "1", "METRICS_CACHE_S": "0", **settings}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve"],
                cwd=folder,
                env=environment(**chosen),
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        server = ServerProcess(port, process, log)
        try:
            _wait_ready(server)
            yield server
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(timeout=30)


def _wait_ready(server: ServerProcess) -> None:
    end_s = time.monotonic() + START_TIMEOUT_S
    while True:
        assert server.process.poll() is None, server.log.read_text()
        assert time.monotonic() < end_s, server.log.read_text()
        with contextlib.suppress(httpx.TransportError):
            if server.get("/readyz").status_code == 200:
                return
        time.sleep(0.05)


def form_body(data: bytes, **fields: str) -> tuple[bytes, str]:
    """A multipart body and its content type."""
    request = httpx.Request("POST", "http://x/", files={"file": ("page.png", data)}, data=fields)
    return request.read(), request.headers["content-type"]


def read_response(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received
