"""Starts and ends engine workers: child processes, or threads in tests, each at the other end of a socket.

Owns their lives and makes sure that none outlives its owner. Knows nothing of sequences or asyncio; starting and ending
block, so the event loop does both in a thread. Free of torch.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable
from typing import Protocol

from service import frames
from service.child_exit import describe_exit
from service.engine.process.worker import EngineFactory, run, run_process


class Worker(Protocol):
    """One running engine loop."""

    pipe: socket.socket
    """The owner's end of the connection."""

    def end(self, grace_s: float) -> None:
        """Wait for its end, then force it, and shut the connection down.

        Args:
            grace_s: Seconds to wait for a loop that was told to stop; 0 for one that is lost.
        """

    def describe_exit(self) -> str:
        """Why it ended, in one line; blocks for `EXIT_S` at most."""

    def was_killed(self) -> bool:
        """Whether a signal ended it."""

    def is_stopped(self) -> bool:
        """Whether a signal has stopped it."""


Launcher = Callable[[], Worker]

EXIT_S = 0.5
"""Longest wait for the exit status of a process whose connection has closed."""
KILL_S = 10.0
"""Longest wait for the end of a process that was killed."""

_log = logging.getLogger(__name__)


class ProcessWorker:
    """A spawned child process that shares only a socket with its parent."""

    def __init__(self, factory: EngineFactory, max_wait_s: float, num_threads: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = frames.connected()
        self._process = context.Process(
            target=run_process,
            args=(theirs, factory, max_wait_s, num_threads),
            name="deepsynth-engine",
            daemon=True,
        )
        self._reaping = threading.Lock()
        """If two threads wait for a child at once, one may miss that it has ended."""
        try:
            with theirs:
                self._process.start()
        except BaseException:
            self.pipe.close()
            raise
        # At exit multiprocessing sends SIGTERM, which the child ignores, and waits for ever. Registered later, this
        # runs earlier.
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

    def was_killed(self) -> bool:
        """Whether a signal ended the child."""
        return (self._process.exitcode or 0) < 0

    def is_stopped(self) -> bool:
        """Whether SIGSTOP or another signal has stopped the child; it answers nothing until SIGCONT."""
        if self.pid is None:
            return False
        try:
            # Without WEXITED, so that the exit status stays for `describe_exit`.
            return os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return False

    def end(self, grace_s: float) -> None:
        """Wait for the child, kill it if it stays, and reap it."""
        atexit.unregister(self._process.kill)
        with self._reaping:
            self._process.join(grace_s)
            self._process.kill()
            self._process.join(KILL_S)
            if self._process.exitcode is None:
                # In the kernel, such as in a driver's call that does not return.
                _log.error("the engine's process %d cannot be killed", self._process.pid)
            else:
                self._process.close()
        shut_down(self.pipe)


class ThreadWorker:
    """A thread of this process; one that is stuck cannot be ended, only abandoned."""

    def __init__(self, factory: EngineFactory, max_wait_s: float) -> None:
        self.pipe, self._theirs = socket.socketpair()
        self._thread = threading.Thread(
            target=self._run, args=(factory, max_wait_s), name="deepsynth-engine", daemon=True
        )
        self._thread.start()

    def describe_exit(self) -> str:
        """A thread has no exit status."""
        return "a thread"

    def was_killed(self) -> bool:
        """A thread cannot be killed."""
        return False

    def is_stopped(self) -> bool:
        """A thread cannot be stopped."""
        return False

    def end(self, grace_s: float) -> None:
        """Wait for the thread and shut the connection down."""
        self._thread.join(grace_s)
        shut_down(self.pipe)
        self._thread.join(grace_s)

    def _run(self, factory: EngineFactory, max_wait_s: float) -> None:
        with self._theirs:
            run(self._theirs, factory, max_wait_s)
            shut_down(self._theirs)


def shut_down(pipe: socket.socket) -> None:
    """Close a connection for both sides; whichever is reading from it wakes up."""
    with contextlib.suppress(OSError):
        pipe.shutdown(socket.SHUT_RDWR)
