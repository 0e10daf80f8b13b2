"""`deepsynth serve`: runs the API in a uvicorn server.

Owns how the server listens, how it stops, and its exit status.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

import uvicorn

from service.cli.http_protocol import BoundedProtocol
from service.cli.startup import start
from service.config import ServiceSettings

EXIT_ENGINE_FAILED = 70
"""EX_SOFTWARE, so that a process supervisor sees a failure and restarts."""
STOP_MARGIN_S = 5.0
KEEP_ALIVE_S = 75
"""How long an idle connection stays open: longer than proxies (60 s) and clients (httpx: 5 s) keep theirs. Else they
send a request just when this end closes."""
SWITCH_INTERVAL_S = 0.001
"""A thread that brings a page waits so long at most for the event loop to give the interpreter lock up, which it needs
several times a page. With Python's own 5 ms the threads hold pages up as soon as the loop is busy."""
OPEN_TO_ALL = (
    "no keys are set, and the service listens on more than this machine: everyone who reaches it can read documents. "
    "Set DEEPSYNTH_API_KEY or DEEPSYNTH_KEY_FILE (deepsynth keys create), or put an authenticating proxy in front"
)
SAMPLE = Path("docs/samples/sample-block.png")
"""In a checkout; elsewhere the greeting names a file to be replaced."""


logger = logging.getLogger(__name__)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command; it takes no arguments."""
    parser.description = "Serve the API."


def run(_parser: argparse.ArgumentParser, _arguments: argparse.Namespace) -> int:
    """Run the API until it is stopped, and return the exit status."""
    settings = start()
    logger.info("loading", extra={"fields": {"model": settings.model, "port": settings.port}})
    server = Server(settings)
    try:
        server.run()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if server.has_failed:
        return EXIT_ENGINE_FAILED
    return 0 if server.started and server.listens else 1


class Server(uvicorn.Server):
    """Serves the app and stops in two steps.

    First `/readyz` says no; after the grace it stops listening, rejects new requests and finishes running ones.
    A second signal ends the process at once.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        # Imported here because it is slow, and `--help` does not need it.
        from service.app import create_app

        self._app = create_app(settings, on_ready=self._on_ready, on_failed=self._on_failed)
        super().__init__(
            uvicorn.Config(
                self._app,
                host=settings.host,
                port=settings.port,
                http=BoundedProtocol,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                timeout_keep_alive=KEEP_ALIVE_S,
                lifespan="on",
                # Longer than any request, so that running ones can finish.
                timeout_graceful_shutdown=int(settings.deadline_s + STOP_MARGIN_S),
            )
        )
        self._admin_port, self._admin_host = settings.admin_port, settings.admin_host or settings.host
        self._drain_grace_s = settings.drain_grace_s
        self._is_guarded = settings.needs_key or _is_loopback(settings.host)
        self._is_ready = False
        self._is_draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.has_failed = False
        self.listens = True
        """Whether every port could be opened."""

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override] # narrower upstream
        """Start, and keep the loop for signal handlers."""
        self._loop = asyncio.get_running_loop()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        await super().startup(sockets)  # type: ignore[arg-type]
        if self._admin_port is not None:
            await self._listen_for_operators(self._admin_port)
        self._greet()

    async def _listen_for_operators(self, port: int) -> None:
        def make_protocol() -> asyncio.Protocol:
            return BoundedProtocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(make_protocol, self._admin_host, port, backlog=self.config.backlog)
        except OSError as error:
            logger.error("cannot listen on DEEPSYNTH_ADMIN_PORT=%d: %s", port, error.strerror)  # noqa: TRY400 -- the text suffices
            self.listens, self.should_exit = False, True
        else:
            self.servers.append(server)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, end at the second."""
        if self._is_draining:
            self._end_at_once(sig)
        if self._loop is None:
            super().handle_exit(sig, frame)
            return
        self._is_draining = True
        self._captured_signals.append(sig)
        self._loop.call_soon_threadsafe(self._drain)

    def _end_at_once(self, sig: int) -> NoReturn:
        """End without waiting for anything; image processes end when their pipes close."""
        for child in multiprocessing.active_children():
            child.kill()
        gate = self._app.state.gate
        # Not through sys.stderr, which the signal may have interrupted in the middle of a line.
        os.write(2, f"\nStopped at once; requests cut off: {gate.num_running + gate.num_waiting}.\n".encode())
        os._exit(128 + sig)

    def _drain(self) -> None:
        # Requests are served during the grace: load balancers still send some until they have noticed.
        self._app.state.gate.leave()
        asyncio.get_running_loop().call_later(self._drain_grace_s, self._stop_listening)

    def _stop_listening(self) -> None:
        self._app.state.gate.drain()
        self.should_exit = True

    def _on_ready(self) -> None:
        self._is_ready = True
        if not self._is_guarded:
            logger.warning("%s", OPEN_TO_ALL)
        self._greet()

    def _on_failed(self) -> None:
        self.has_failed = True
        # Otherwise uploads would still be received, and hold up the end.
        self._app.state.gate.drain()
        self.should_exit = True

    def _greet(self) -> None:
        """Tell the operator how to try the service, once it listens and the engine is ready."""
        if not (self._is_ready and self.started):
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- compared, not bound  # nosec B104
        address = f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
        sys.stderr.write(
            f"\n  DeepSynth OCR is ready.\n\n"
            f"    Playground   {address}/\n"
            f"    Try it       curl -F file=@{SAMPLE if SAMPLE.is_file() else 'page.png'} {address}/ocr\n"
            f"    Stop         Ctrl-C\n\n"
        )
        sys.stderr.flush()
