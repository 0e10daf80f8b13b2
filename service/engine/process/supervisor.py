"""The service's side of the engine: sends sequences, receives their events, and restarts the engine when it is lost.

Owns the engine's life as the service sees it: start, loss, restart, stop. When the engine is lost, every open sequence
fails, and the engine restarts and loads its adapters again. Knows nothing of devices. Runs on the event loop. Free of
torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections import deque
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from pathlib import Path

from service.engine.process.adapter_calls import AdapterCalls
from service.engine.process.codec import AdapterReply, Broken, Cancel, EngineOutputs, Message, Ping, Ready, Stop, Submit
from service.engine.process.connection import EngineConnection
from service.engine.process.launcher import Launcher
from service.engine.protocol import (
    AdapterLoad,
    EngineInfo,
    EngineState,
    EngineStats,
    SequenceDelta,
    SequenceEvent,
    SequenceFailure,
    SequenceRequest,
)
from service.errors import EngineError, EngineLostError

ENGINE_LOST = "engine_lost"
MAX_BATCH_SIZES = 1024
"""Batch sizes kept between two readings of the statistics."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Supervision:
    """When an engine counts as lost and how it is restarted; all times in seconds."""

    start_timeout_s: float = 300.0
    """From launch to ready: loading weights and the warm-up page."""
    stall_s: float = 60.0
    """Longest time without an answer to a ping."""
    check_s: float = 1.0
    """Between two checks of the engine; each sends a ping unless one is unanswered."""
    max_restarts: int = 5
    """Restarts in a row without a finished page; after that the engine stays down."""
    backoff_s: float = 0.5
    """Before the first restart; doubles each time."""
    max_backoff_s: float = 30.0
    stop_grace_s: float = 5.0


class SupervisedEngine:
    """Implements `protocol.EngineHandle` with a worker that is replaced whenever it is lost.

    Invariant: every open sequence gets exactly one last event, a result or a failure, unless its reader closes first.

    Args:
        launch: Starts a worker; blocks, so it runs in a thread.
        supervision: When an engine is lost and how it is restarted.
    """

    def __init__(self, launch: Launcher, supervision: Supervision | None = None) -> None:
        self._launch = launch
        self._supervision = supervision or Supervision()
        self._state = EngineState.LOADING
        self._info: EngineInfo | None = None
        self._connection: EngineConnection | None = None
        self._greeting: asyncio.Future[Message | None] | None = None
        self._open: dict[str, asyncio.Queue[SequenceEvent]] = {}
        self._adapter_calls = AdapterCalls()
        self._stats = EngineStats(EngineState.LOADING)
        self._batch_sizes: deque[int] = deque(maxlen=MAX_BATCH_SIZES)
        self._lost = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._failures = 0

    @property
    def info(self) -> EngineInfo:
        """What is loaded.

        Raises:
            EngineError: The engine has never been ready.
        """
        if self._info is None:
            raise EngineError("the engine has not been ready yet")
        return self._info

    @property
    def state(self) -> EngineState:
        """Life of the engine; `failed` until a lost one is back."""
        return self._state

    async def start(self) -> None:
        """Load, warm up and return when ready.

        Raises:
            EngineError: It could not be loaded, or not in time; the message says why.
        """
        try:
            await self._connect()
        except EngineError:
            self._state = EngineState.FAILED
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name="engine-supervisor")

    async def submit(self, request: SequenceRequest) -> AsyncIterator[SequenceEvent]:
        """Read one page, its id unlike any before: deltas, then one result or failure; closing the iterator cancels.

        The failure is `engine_lost` if the engine is not ready, or is lost meanwhile.
        """
        connection, name = self._connection, request.sequence_id
        if connection is None or self._state is not EngineState.READY:
            yield SequenceFailure(name, ENGINE_LOST, f"the engine is {self._state}")
            return
        inbox = self._open[name] = asyncio.Queue()
        connection.send(Submit(request))
        is_final = False
        try:
            while not is_final:
                event = await inbox.get()
                is_final = not isinstance(event, SequenceDelta)
                yield event
        finally:
            del self._open[name]
            if not is_final:
                connection.send(Cancel(name))

    @property
    def adapters(self) -> Collection[str]:
        """Adapters that sequences may name; a restarted engine loads them again."""
        return self._adapter_calls.names

    async def load_adapter(self, model_id: str, folder: Path) -> AdapterLoad:
        """Load an adapter while sequences run.

        Args:
            model_id: `name@version`; never used for another content.
            folder: A PEFT folder that does not change while the adapter is loaded.

        Returns:
            What it cost.

        Raises:
            EngineLostError: The engine is not ready, or was lost. An `AdapterError`: the adapter is refused.
        """
        if self._connection is None or self._state is not EngineState.READY:
            raise EngineLostError(f"the engine is {self._state}")
        return await self._adapter_calls.load(self._connection, model_id, folder)

    async def unload_adapter(self, model_id: str) -> None:
        """Unload an adapter, and return when its slot is free.

        Args:
            model_id: Its name; ignored if it is not loaded.

        Raises:
            EngineLostError: The engine is not ready, or was lost; it will not load the adapter again.
        """
        if self._connection is None or self._state is not EngineState.READY:
            self._adapter_calls.forget(model_id)
            raise EngineLostError(f"the engine is {self._state}")
        await self._adapter_calls.unload(self._connection, model_id)

    async def stats(self) -> EngineStats:
        """The engine's latest figures, with the state and the number that wait as this side knows them."""
        now_s = asyncio.get_running_loop().time()
        batch_sizes = tuple(self._batch_sizes)
        self._batch_sizes.clear()
        return dataclasses.replace(
            self._stats,
            state=self._state,
            waiting=max(self._stats.waiting, len(self._open) - self._stats.running),
            batch_sizes=batch_sizes,
            seconds_since_progress=now_s - self._connection.heard_s if self._connection and self._open else 0.0,
        )

    async def stop(self) -> None:
        """End the engine and free the device; open sequences fail."""
        self._state = EngineState.DRAINING
        if self._supervisor:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        self._fail_open("the engine was stopped")
        if self._connection:
            self._connection.send(Stop())
            await self._disconnect(self._supervision.stop_grace_s)

    async def _connect(self) -> None:
        """Launch a worker and wait until it is ready."""
        self._lost.clear()
        self._greeting = asyncio.get_running_loop().create_future()
        worker = await asyncio.to_thread(self._launch)
        self._connection = EngineConnection(worker, self._on_message, self._on_lost)
        try:
            async with asyncio.timeout(self._supervision.start_timeout_s):
                greeting = await self._greeting
        except TimeoutError:
            greeting = Broken(f"not ready after {self._supervision.start_timeout_s} s")
        except asyncio.CancelledError:
            await asyncio.shield(self._disconnect(0.0))
            raise
        if not isinstance(greeting, Ready):
            if isinstance(greeting, Broken):
                reason = greeting.detail
            else:
                cause = await asyncio.to_thread(self._connection.describe_exit)
                reason = f"its process ended while loading: {cause}"
            await self._disconnect(0.0)
            raise EngineError(f"the engine could not start: {reason}")
        self._info = greeting.info
        # Before it counts as ready: a page must not miss its adapter.
        await self._reload_adapters(self._connection)
        self._state = EngineState.READY

    async def _reload_adapters(self, connection: EngineConnection) -> None:
        try:
            async with asyncio.timeout(self._supervision.start_timeout_s):
                await self._adapter_calls.load_again(connection)
        except (EngineLostError, TimeoutError) as error:
            await self._disconnect(0.0)
            raise EngineError("the engine was lost while its adapters were loaded again") from error

    async def _disconnect(self, grace_s: float) -> None:
        connection, self._connection = self._connection, None
        if connection:
            await asyncio.to_thread(connection.close, grace_s)

    async def _supervise(self) -> None:
        """Restart the engine whenever it is lost, `max_restarts` times in a row at most."""
        while True:
            reason = await self._until_lost()
            self._state = EngineState.FAILED
            _log.error("engine lost: %s; open pages that fail: %d", reason, len(self._open))
            self._fail_open(reason)
            await self._disconnect(0.0)
            while self._state is not EngineState.READY:
                if self._failures >= self._supervision.max_restarts:
                    _log.critical("engine stays down after %d restarts", self._failures)
                    return
                await self._restart()

    async def _restart(self) -> None:
        delay_s = min(self._supervision.backoff_s * 2**self._failures, self._supervision.max_backoff_s)
        self._failures += 1
        await asyncio.sleep(delay_s)
        try:
            await self._connect()
            _log.info("engine ready again")
        except EngineError:
            _log.exception("restart %d of the engine failed", self._failures)

    async def _until_lost(self) -> str:
        """Check the engine until it is lost; returns the reason."""
        loop = asyncio.get_running_loop()
        asked_s: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._supervision.check_s):
                    await self._lost.wait()
            connection = self._connection
            if connection is None:
                return "its process ended"
            if self._lost.is_set():
                return f"its process ended: {await asyncio.to_thread(connection.describe_exit)}"
            is_answered = asked_s is None or connection.heard_s >= asked_s
            if asked_s is not None and not is_answered and loop.time() - asked_s > self._supervision.stall_s:
                return f"silent for {loop.time() - connection.heard_s:.1f} s"
            if is_answered:
                asked_s = loop.time()
                connection.send(Ping())

    def _on_message(self, connection: EngineConnection, message: Message) -> None:
        if connection is not self._connection:
            return
        if self._greeting and not self._greeting.done():
            self._greeting.set_result(message)
        elif isinstance(message, Broken):
            _log.error("engine broke: %s", message.detail)
        elif isinstance(message, EngineOutputs):
            self._stats = message.stats
            self._batch_sizes.extend(message.stats.batch_sizes)
            for event in message.events:
                self._deliver(event)
        elif isinstance(message, AdapterReply):
            self._adapter_calls.take_reply(message)

    def _deliver(self, event: SequenceEvent) -> None:
        if not isinstance(event, SequenceDelta):
            self._failures = 0
        inbox = self._open.get(event.sequence_id)
        # Events of a sequence that was cancelled here may still arrive.
        if inbox:
            inbox.put_nowait(event)

    def _on_lost(self, connection: EngineConnection) -> None:
        if connection is not self._connection:
            return
        if self._greeting and not self._greeting.done():
            self._greeting.set_result(None)
        self._adapter_calls.fail_calls("the engine's process ended")
        self._lost.set()

    def _fail_open(self, reason: str) -> None:
        for name, inbox in self._open.items():
            inbox.put_nowait(SequenceFailure(name, ENGINE_LOST, reason))
        self._adapter_calls.fail_calls(reason)
        self._stats = EngineStats(self._state)
