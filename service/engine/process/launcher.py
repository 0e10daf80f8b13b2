"""Where an engine's loop runs: a child process, or for tests a thread. Both talk through one pipe.

Owns starting and ending it, and making sure that none outlives its owner. Knows nothing of sequences or asyncio;
`start` and `end` block, so the event loop calls them in a thread. Free of torch.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Protocol

from service.child_exit import describe_exit
from service.engine.process.worker import EngineFactory, run, run_process


class Peer(Protocol):
    """One running engine loop."""

    connection: Connection
    """The owner's end of the pipe."""

    def end(self, grace_s: float) -> None:
        """Hang up, give it time to leave, then make it leave.

        Args:
            grace_s: Seconds to wait for a loop that was told to stop; 0 for one that is lost.
        """

    def describe_exit(self) -> str:
        """Why it hung up, in one line; blocks for `EXIT_S` at most."""


Launcher = Callable[[], Peer]

EXIT_S = 0.5
"""Longest wait for the exit status of a process that has hung up."""


class ProcessPeer:
    """A spawned child process; it shares nothing with its parent but the pipe."""

    def __init__(self, factory: EngineFactory, max_wait_s: float, num_threads: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=run_process,
            args=(theirs, factory, max_wait_s, num_threads),
            name="deepsynth-engine",
            daemon=True,
        )
        self._process.start()
        self._reaping = threading.Lock()
        """Of two threads that wait for a child at once, one could miss that it has ended."""
        theirs.close()
        # multiprocessing ends daemons with SIGTERM, which the child ignores, and would then wait for it for ever.
        # Registered later, this runs earlier.
        atexit.register(self._process.kill)

    @property
    def pid(self) -> int | None:
        """Process id of the child."""
        return self._process.pid

    def describe_exit(self) -> str:
        """Exit status or signal of the child."""
        with self._reaping:
            self._process.join(EXIT_S)
            return describe_exit(self._process.exitcode)

    def end(self, grace_s: float) -> None:
        """Wait for the child, kill it if it stays, and reap it."""
        atexit.unregister(self._process.kill)
        with self._reaping:
            self._process.join(grace_s)
            self._process.kill()
            self._process.join()
            self._process.close()
        hang_up(self.connection)


class ThreadPeer:
    """A thread of this process; a stuck one cannot be ended, only left behind."""

    def __init__(self, factory: EngineFactory, max_wait_s: float) -> None:
        self.connection, self._theirs = multiprocessing.Pipe()
        self._thread = threading.Thread(
            target=self._run, args=(factory, max_wait_s), name="deepsynth-engine", daemon=True
        )
        self._thread.start()

    def describe_exit(self) -> str:
        """A thread has no exit status."""
        return "a thread"

    def end(self, grace_s: float) -> None:
        """Wait for the thread and hang up."""
        self._thread.join(grace_s)
        hang_up(self.connection)
        self._thread.join(grace_s)

    def _run(self, factory: EngineFactory, max_wait_s: float) -> None:
        run(self._theirs, factory, max_wait_s)
        hang_up(self._theirs)


def hang_up(connection: Connection) -> None:
    """Wake whoever reads at either end of a pipe: both find it closed."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as pipe:
        pipe.shutdown(socket.SHUT_RDWR)
