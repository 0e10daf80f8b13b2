"""The connection to one engine worker: sends commands and receives messages without blocking the event loop.

Owns the two threads that block instead. Knows nothing of sequences. Free of torch.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable

from service import frames
from service.engine.process.codec import Command, Frame, Message, decode_message, encode_command
from service.engine.process.launcher import Worker

JOIN_S = 5.0
"""Longest wait for the two threads once the connection is shut down."""

_log = logging.getLogger(__name__)


class EngineConnection:
    """A connection to a worker that runs.

    Invariant: `on_message` and `on_lost` run on the event loop, in the order of arrival, `on_lost` once and last.

    Args:
        worker: The other side.
        on_message: Called with each message.
        on_lost: Called when the worker has gone, or sends what is no message.

    Attributes:
        heard_s: When the last message came, on the event loop's clock.
    """

    def __init__(
        self,
        worker: Worker,
        on_message: Callable[[EngineConnection, Message], None],
        on_lost: Callable[[EngineConnection], None],
    ) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._outbox: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._on_message = on_message
        self._on_lost = on_lost
        self.heard_s = self._loop.time()
        self._threads = [
            threading.Thread(target=self._read, name="engine-reader", daemon=True),
            threading.Thread(target=self._write, name="engine-writer", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def send(self, command: Command) -> None:
        """Queue a command; dropped if the worker has gone."""
        self._outbox.put(encode_command(command))

    def describe_exit(self) -> str:
        """Why the worker has gone; blocks briefly."""
        return self._worker.describe_exit()

    def is_stopped(self) -> bool:
        """Whether a signal has stopped the worker."""
        return self._worker.is_stopped()

    def was_killed(self) -> bool:
        """Whether a signal has ended the worker; after `describe_exit`."""
        return self._worker.was_killed()

    def close(self, grace_s: float) -> None:
        """End the worker and both threads; blocks."""
        self._worker.end(grace_s)
        self._outbox.put(None)
        for thread in self._threads:
            thread.join(JOIN_S)
        self._worker.pipe.close()

    def _read(self) -> None:
        try:
            while True:
                header, _ = frames.receive(self._worker.pipe)
                self._call(self._receive, decode_message(header))
        except (frames.BrokenFrameError, OSError) as error:
            _log.debug("the connection to the engine ends: %s", error)
            self._call(self._on_lost, self)

    def _receive(self, message: Message) -> None:
        self.heard_s = self._loop.time()
        self._on_message(self, message)

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            _log.debug("the event loop has closed before its engine")

    def _write(self) -> None:
        while (frame := self._outbox.get()) is not None:
            try:
                # Here, as the pixels of a page would block the event loop for milliseconds.
                frames.send(self._worker.pipe, *frame)
            except OSError:
                return
