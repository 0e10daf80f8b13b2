"""The loop that owns an engine: takes commands, runs steps, sends events. The failure boundary around the device.

Runs as the main thread of a child process, or in a thread of a test; a second thread reads commands, so sending one
never waits for a step. Knows the codec and the `Engine` protocol, nothing of asyncio or restarts. Free of torch until
the factory makes the engine.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from service import frames
from service.engine.lora.registry import AdapterError
from service.engine.process.codec import (
    AdapterReply,
    Broken,
    Cancel,
    Command,
    EngineOutputs,
    LoadAdapter,
    Message,
    Ping,
    Ready,
    Stop,
    Submit,
    UnloadAdapter,
    decode_command,
    encode_message,
)
from service.engine.protocol import Engine, SequenceDelta, SequenceEvent
from service.engine.scheduler import batching_window_s

EngineFactory = Callable[[], Engine]

REPORT_INTERVAL_S = 0.02
"""Deltas are collected for this long before they are sent; results never wait."""
ORPHAN_CHECK_S = 1.0
ONEDNN_PRODUCTS = 256
"""Compiled products that oneDNN keeps, each for one shape; it would keep 1,024."""
TRIM_S = 5.0
LOST_PARENT_EXIT = 17
"""Exit status of a process whose parent has gone."""

_log = logging.getLogger(__name__)


def run_process(pipe: socket.socket, factory: EngineFactory, max_wait_s: float, num_threads: int | None) -> None:
    """Body of the child process.

    Args:
        pipe: The child's end of the connection.
        factory: Makes the engine; top-level, as it travels by name.
        max_wait_s: Longest batching window, in seconds.
        num_threads: Threads of a tensor operation; None: torch's own choice.
    """
    # Ctrl-C reaches the whole process group, but the parent decides when this process ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with, args=(os.getppid(),), name="engine-orphan-watch", daemon=True).start()
    # Torch reads this when it is imported, so it is set before the factory runs. Threads of an operation then sleep
    # while they wait for one another. Threads that spin instead take cores from each other where other work runs too:
    # on two busy cores a step of nano took 12 to 75 ms instead of 3.4 to 7.3 (medians of 100), and the fastest steps
    # were no faster. GOMP_SPINCOUNT takes precedence, so setting that makes threads spin again.
    os.putenv("OMP_WAIT_POLICY", "passive")
    os.putenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(ONEDNN_PRODUCTS))
    if num_threads:
        import torch

        torch.set_num_threads(num_threads)

    def make() -> Engine:
        engine = factory()
        # A GPU's host takes in hundreds of pages a second, and keeps their blocks.
        if engine.info.device == "cpu":
            threading.Thread(target=_return_memory, name="engine-memory", daemon=True).start()
        return engine

    run(pipe, make, max_wait_s, on_disconnect=lambda: os._exit(LOST_PARENT_EXIT))


def _return_memory() -> None:
    """Give memory that is free back to the system, again and again; another C library than glibc goes without.

    Pages come in ever other sizes, which leaves gaps between the blocks that stay. A lower threshold for blocks of
    their own would give more back, and costs a tenth to a third of the speed (`benchmarks/LOG.md`).
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return
    while True:
        time.sleep(TRIM_S)
        trim(0)


def run(
    pipe: socket.socket,
    factory: EngineFactory,
    max_wait_s: float,
    on_disconnect: Callable[[], None] = lambda: None,
) -> None:
    """Make the engine and serve it until told to stop or until the other side has gone.

    Args:
        pipe: The worker's end of the connection.
        factory: Makes the engine.
        max_wait_s: Longest batching window, in seconds.
        on_disconnect: Called by the reading thread when the other side has gone, whatever the loop is doing.
    """
    inbox: queue.SimpleQueue[Command | _ReadAdapter] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(pipe, inbox, on_disconnect), name="engine-inbox", daemon=True)
    reader.start()
    try:
        engine = factory()
        engine.warm_up()
        _send(pipe, Ready(engine.info))
        _Loop(engine, pipe, inbox, max_wait_s).run()
    except (BrokenPipeError, ConnectionResetError):
        _log.info("the service has closed the engine's connection")
    except Exception as error:  # noqa: BLE001 - the boundary: the parent must be told, whatever it was
        _log.exception("the engine's loop ended")
        detail = "".join(traceback.format_exception_only(error)).strip()
        detail = detail.encode(errors="backslashreplace").decode()  # a file's name may be no UTF-8
        with contextlib.suppress(OSError):
            _send(pipe, Broken(detail))


@dataclass(frozen=True, slots=True)
class _ReadAdapter:
    """An adapter's files have been read, or could not be."""

    command: LoadAdapter
    source: Any
    error: Exception | None
    """An `AdapterError` is the adapter's fault; any other is raised in the loop and ends it."""
    read_s: float


@dataclass(slots=True)
class _Loop:
    """Steps the engine while it has work and sleeps on the inbox while it has none."""

    engine: Engine
    pipe: socket.socket
    inbox: queue.SimpleQueue[Command | _ReadAdapter]
    max_wait_s: float
    _pending: list[SequenceEvent] = field(default_factory=list)
    _unloading: dict[str, UnloadAdapter] = field(default_factory=dict)
    """Commands to unload adapters that still drain, by name."""
    _reported_s: float = 0.0
    _stopping: bool = False

    def run(self) -> None:
        while not self._stopping:
            if self.engine.has_work:
                self._take_all()
                self._step()
            else:
                self._report()
                command = self.inbox.get()
                self._take(command)
                if not (isinstance(command, Submit) and command.request.is_alone):
                    self._fill_batch()

    def _step(self) -> None:
        if self._stopping:
            return
        self._pending += self.engine.step()
        self._reply_unloaded()
        has_final = any(not isinstance(event, SequenceDelta) for event in self._pending)
        if has_final or time.monotonic() - self._reported_s >= REPORT_INTERVAL_S:
            self._report()

    def _fill_batch(self) -> None:
        """After the first page of an idle engine: collect more within the batching window."""
        began_s = time.monotonic()
        while not self._stopping:
            stats = self.engine.stats()
            waited_s = time.monotonic() - began_s
            wait_s = batching_window_s(
                stats.waiting, stats.running, waited_s, self.engine.info.batch_size, self.max_wait_s
            )
            if wait_s <= 0:
                return
            try:
                self._take(self.inbox.get(timeout=wait_s))
            except queue.Empty:
                return

    def _take_all(self) -> None:
        while True:
            try:
                self._take(self.inbox.get_nowait())
            except queue.Empty:
                return

    def _take(self, command: Command | _ReadAdapter) -> None:
        if isinstance(command, Submit):
            self.engine.submit(command.request)
        elif isinstance(command, LoadAdapter):
            # In a thread, while steps run: reading tens of megabytes takes longer than a step may.
            threading.Thread(target=self._read_adapter, args=(command,), name="adapter-reader", daemon=True).start()
        elif isinstance(command, _ReadAdapter):
            self._load_adapter(command)
        elif isinstance(command, UnloadAdapter):
            self._unload_adapter(command)
        elif isinstance(command, Cancel):
            self.engine.cancel(command.sequence_id)
            self._pending = [event for event in self._pending if event.sequence_id != command.sequence_id]
            self._reply_unloaded()
        elif isinstance(command, Ping):
            self._report()
        else:
            self._stopping = True

    def _read_adapter(self, command: LoadAdapter) -> None:
        began_s = time.monotonic()
        _use_one_thread()
        source: Any = None
        error: Exception | None = None
        try:
            source = self.engine.read_adapter(Path(os.fsdecode(unquote_to_bytes(command.folder))))
        except Exception as caught:  # noqa: BLE001 - the boundary of a thread; the loop raises it
            error = caught
        self.inbox.put(_ReadAdapter(command, source, error, time.monotonic() - began_s))

    def _load_adapter(self, adapter: _ReadAdapter) -> None:
        call, began_s = adapter.command.call, time.monotonic()
        try:
            if adapter.error:
                raise adapter.error
            self.engine.load_adapter(adapter.command.model_id, adapter.source)
        except AdapterError as error:
            _send(self.pipe, AdapterReply(call, error.reason, error.detail))
        else:
            _send(self.pipe, AdapterReply(call, read_s=adapter.read_s, place_s=time.monotonic() - began_s))

    def _unload_adapter(self, command: UnloadAdapter) -> None:
        try:
            is_free = self.engine.unload_adapter(command.model_id)
        except AdapterError as error:
            _send(self.pipe, AdapterReply(command.call, error.reason, error.detail))
            return
        if is_free:
            _send(self.pipe, AdapterReply(command.call))
        else:
            self._unloading[command.model_id] = command

    def _reply_unloaded(self) -> None:
        if self._unloading:
            draining = self.engine.adapters.draining
            # Asked again, since a cancelled sequence leaves without a step.
            for name in [name for name in self._unloading if name not in draining or self.engine.unload_adapter(name)]:
                _send(self.pipe, AdapterReply(self._unloading.pop(name).call))

    def _report(self) -> None:
        events, self._pending = tuple(self._pending), []
        self._reported_s = time.monotonic()
        _send(self.pipe, EngineOutputs(events, self.engine.stats()))


def _read(
    pipe: socket.socket, inbox: queue.SimpleQueue[Command | _ReadAdapter], on_disconnect: Callable[[], None]
) -> None:
    try:
        while True:
            inbox.put(decode_command(*frames.receive(pipe)))
    except (frames.BrokenFrameError, OSError):
        inbox.put(Stop())
        on_disconnect()


def _use_one_thread() -> None:
    """Let tensor operations of the calling thread run on it alone.

    Threads that exist keep their number; later ones start with one. An adapter is some hundred small tensors. Divided
    over the 32 cores of an H200's host, reading them took 877 ms, and 947 ms while steps ran; on one core 26 and 33 ms
    (`benchmarks/adapter_load.py`, without and with `--threads 1`, commit caf8981).
    """
    torch = sys.modules.get("torch")  # the fake engine does not import it
    if torch is not None:
        torch.set_num_threads(1)


def _leave_with(parent: int) -> None:
    """End this process when its parent has gone, even if another process keeps the parent's socket open."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_CHECK_S)
    os._exit(LOST_PARENT_EXIT)


def _send(pipe: socket.socket, message: Message) -> None:
    frames.send(pipe, encode_message(message))
