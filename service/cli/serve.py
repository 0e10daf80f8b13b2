"""`python -m service serve`: runs the API in a uvicorn server.

Owns how the server listens, how it stops, and its exit status.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from service.app import create_app
from service.cli.startup import start

EXIT_ENGINE_FAILED = 70
"""EX_SOFTWARE: a supervisor that restarts on failure must see one."""
STOP_MARGIN_S = 5.0
SAMPLE = "docs/samples/sample-block.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command; it takes no arguments."""
    parser.description = "Serve the API."


def run(_parser: argparse.ArgumentParser, _arguments: argparse.Namespace) -> int:
    """Run the API until it is stopped, and return the exit status."""
    settings = start()
    servers: list[Server] = []
    app = create_app(
        settings,
        on_ready=lambda: servers[0].ready(),  # noqa: PLW0108 -- made after the app
        on_failed=lambda: servers[0].fail(),  # noqa: PLW0108 -- made after the app
    )
    servers.append(
        make_server(
            app,
            host=settings.host,
            port=settings.port,
            deadline_s=settings.deadline_s,
            drain_grace_s=settings.drain_grace_s,
            on_drain=lambda: app.state.gate.drain(),  # noqa: PLW0108 -- made with the lifespan
            on_open=_greet,
        )
    )
    return run_server(servers[0])


def _greet(host: str, port: int) -> None:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- compared, not bound
    address = f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
    sys.stderr.write(
        f"\n  DeepSynth OCR is ready.\n\n"
        f"    Playground   {address}/\n"
        f"    Try it       curl -F file=@{SAMPLE} {address}/ocr\n"
        f"    Stop         Ctrl-C\n\n"
    )
    sys.stderr.flush()


class Server(uvicorn.Server):
    """Stops in two moves: first it only turns new requests away, then it stops listening and lets the rest finish.

    A second signal ends it at once.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        drain_grace_s: float,
        on_drain: Callable[[], None],
        on_open: Callable[[str, int], None],
    ) -> None:
        super().__init__(config)
        self._on_open = on_open
        self._is_ready = False
        self._drain_grace_s = drain_grace_s
        self._on_drain = on_drain
        self._is_draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.has_failed = False

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override] # narrower upstream
        """Start, and remember the loop that signals must reach."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)  # type: ignore[arg-type]
        self._announce()

    def ready(self) -> None:
        """The engine can read pages; told to the operator once the server listens as well."""
        self._is_ready = True
        self._announce()

    def _announce(self) -> None:
        if self._is_ready and self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._on_open(host, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: end."""
        if self._is_draining or self._loop is None:
            self.force_exit = self._is_draining
            super().handle_exit(sig, frame)
            return
        self._is_draining = True
        self._captured_signals.append(sig)
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._on_drain()
        asyncio.get_running_loop().call_later(self._drain_grace_s, self._stop_listening)

    def _stop_listening(self) -> None:
        self.should_exit = True

    def fail(self) -> None:
        """Stop because the engine cannot go on; the process ends with status 70."""
        self.has_failed = True
        self.should_exit = True


def make_server(
    app: ASGIApp,
    *,
    host: str,
    port: int,
    deadline_s: float,
    drain_grace_s: float,
    on_drain: Callable[[], None],
    on_open: Callable[[str, int], None],
) -> Server:
    """Make a server; it does not listen yet.

    Args:
        app: The app.
        host: Address to listen on.
        port: Port to listen on.
        deadline_s: Longest a request may take; a stop waits a little longer.
        drain_grace_s: How long it still listens after the signal.
        on_drain: Called when the first signal to stop arrives.
        on_open: Called with address and port once it listens and the engine is ready.

    Returns:
        The server.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=int(deadline_s + STOP_MARGIN_S),
    )
    return Server(config, drain_grace_s=drain_grace_s, on_drain=on_drain, on_open=on_open)


def run_server(server: Server) -> int:
    """Serve until stopped.

    Args:
        server: What to run.

    Returns:
        Exit status; a signal's own way of ending the process is left to the caller.
    """
    try:
        server.run()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if server.has_failed:
        return EXIT_ENGINE_FAILED
    return 0 if server.started else 1
