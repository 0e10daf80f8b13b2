"""One pipe to one engine loop, seen from the event loop: commands out and messages in, neither ever blocking it.

Owns the two threads that do the blocking. Knows frames and the peer, nothing of sequences. Free of torch.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable

from service.engine.process.codec import Command, Message, decode_message, encode_command
from service.engine.process.launcher import Peer
from service.engine.process.pipe import send

JOIN_S = 5.0
"""Longest wait for the two threads once the pipe is shut."""

_log = logging.getLogger(__name__)


class Link:
    """A connected peer.

    Invariant: `on_message` and `on_lost` run on the event loop, in the order of the pipe, `on_lost` once and last.

    Args:
        peer: What the pipe leads to.
        on_message: Called with each message.
        on_lost: Called when the peer has hung up.

    Attributes:
        heard_s: When the last message came, on the event loop's clock.
    """

    def __init__(
        self, peer: Peer, on_message: Callable[[Link, Message], None], on_lost: Callable[[Link], None]
    ) -> None:
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._outbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
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
        """Queue a command; one sent to a lost peer is dropped."""
        self._outbox.put(command)

    def describe_exit(self) -> str:
        """Why the peer hung up; blocks briefly."""
        return self._peer.describe_exit()

    def close(self, grace_s: float) -> None:
        """End the peer and both threads; blocks."""
        self._peer.end(grace_s)
        self._outbox.put(None)
        for thread in self._threads:
            thread.join(JOIN_S)
        self._peer.connection.close()

    def _read(self) -> None:
        try:
            while True:
                self._call(self._receive, decode_message(self._peer.connection.recv_bytes()))
        except (EOFError, OSError):
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
        while (command := self._outbox.get()) is not None:
            try:
                # Written here: the pixels of a page take milliseconds that the event loop does not have.
                send(self._peer.connection, *encode_command(command))
            except OSError:
                return
