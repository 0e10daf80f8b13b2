"""The service's side of the engine: sequences in and events out on the event loop, and a supervisor beside them.

Owns the engine's life as the service sees it: start, loss, restart, stop. A lost engine fails every open sequence and
comes back by itself, with the adapters that were resident. Knows links and frames, nothing of devices. Free of torch.
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

from service.engine.process.adapter_calls import Residents
from service.engine.process.codec import AdapterReply, Broken, Cancel, Message, Ping, Ready, Report, Stop, Submit
from service.engine.process.connection import Link
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
    """When an engine counts as lost and how it comes back; all times in seconds."""

    start_timeout_s: float = 300.0
    """From launch to ready: loading weights and the warm-up page."""
    stall_s: float = 60.0
    """Longest silence of an engine that has work or was asked for a sign of life."""
    check_s: float = 1.0
    """Between two looks at the engine; an idle one is asked for a sign of life at each."""
    max_restarts: int = 5
    """Restarts without a finished page between them; after that the engine stays down."""
    backoff_s: float = 0.5
    """Before the first restart; doubles each time."""
    max_backoff_s: float = 30.0
    stop_grace_s: float = 5.0


class SupervisedEngine:
    """Implements `protocol.EngineHandle` over a peer that it launches anew whenever it is lost.

    Invariant: every open sequence gets exactly one last event, a result or a failure, unless its reader closes first.

    Args:
        launch: Starts a peer; blocks, so it runs in a thread.
        supervision: When an engine is lost and how it comes back.
    """

    def __init__(self, launch: Launcher, supervision: Supervision | None = None) -> None:
        self._launch = launch
        self._supervision = supervision or Supervision()
        self._state = EngineState.LOADING
        self._info: EngineInfo | None = None
        self._link: Link | None = None
        self._greeting: asyncio.Future[Message | None] | None = None
        self._open: dict[str, asyncio.Queue[SequenceEvent]] = {}
        self._residents = Residents()
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

        The failure is `engine_lost` if the engine is away, or goes away meanwhile.
        """
        link, name = self._link, request.sequence_id
        if link is None or self._state is not EngineState.READY:
            yield SequenceFailure(name, ENGINE_LOST, f"the engine is {self._state}")
            return
        inbox = self._open[name] = asyncio.Queue()
        link.send(Submit(request))
        is_final = False
        try:
            while not is_final:
                event = await inbox.get()
                is_final = not isinstance(event, SequenceDelta)
                yield event
        finally:
            del self._open[name]
            if not is_final:
                link.send(Cancel(name))

    @property
    def adapters(self) -> Collection[str]:
        """Adapters that sequences may name; they come back with an engine that was lost."""
        return self._residents.names

    async def load_adapter(self, model_id: str, folder: Path) -> AdapterLoad:
        """Make an adapter resident; sequences that run go on.

        Args:
            model_id: `name@version`; never used for another content.
            folder: A PEFT folder that stays as it is for as long as the adapter is resident.

        Returns:
            What it cost.

        Raises:
            EngineLostError: The engine went away, or is away. An `AdapterError` says that the adapter is refused.
        """
        if self._link is None or self._state is not EngineState.READY:
            raise EngineLostError(f"the engine is {self._state}")
        return await self._residents.load(self._link, model_id, folder)

    async def unload_adapter(self, model_id: str) -> None:
        """Take an adapter out of service, and return when its slot is free.

        Args:
            model_id: Its name; one that is not resident is no error.

        Raises:
            EngineLostError: The engine went away; the adapter with it, for good.
        """
        if self._link is None or self._state is not EngineState.READY:
            self._residents.forget(model_id)
            raise EngineLostError(f"the engine is {self._state}")
        await self._residents.unload(self._link, model_id)

    async def stats(self) -> EngineStats:
        """The engine's latest report, with the state and the waiting count as this side knows them."""
        now_s = asyncio.get_running_loop().time()
        batch_sizes = tuple(self._batch_sizes)
        self._batch_sizes.clear()
        return dataclasses.replace(
            self._stats,
            state=self._state,
            waiting=max(self._stats.waiting, len(self._open) - self._stats.running),
            batch_sizes=batch_sizes,
            seconds_since_progress=now_s - self._link.heard_s if self._link and self._open else 0.0,
        )

    async def stop(self) -> None:
        """End the engine and free the device; open sequences fail."""
        self._state = EngineState.DRAINING
        if self._supervisor:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        self._fail_open("the engine was stopped")
        if self._link:
            self._link.send(Stop())
            await self._disconnect(self._supervision.stop_grace_s)

    async def _connect(self) -> None:
        """Launch a peer and wait until it is ready."""
        self._lost.clear()
        self._greeting = asyncio.get_running_loop().create_future()
        peer = await asyncio.to_thread(self._launch)
        self._link = Link(peer, self._on_message, self._on_lost)
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
                cause = await asyncio.to_thread(self._link.describe_exit)
                reason = f"its process ended while loading: {cause}"
            await self._disconnect(0.0)
            raise EngineError(f"the engine could not start: {reason}")
        self._info = greeting.info
        # Before it counts as ready, so that no page misses its adapter.
        await self._reload_adapters(self._link)
        self._state = EngineState.READY

    async def _reload_adapters(self, link: Link) -> None:
        """Give a new engine what the lost one held."""
        try:
            async with asyncio.timeout(self._supervision.start_timeout_s):
                await self._residents.load_again(link)
        except (EngineLostError, TimeoutError) as error:
            await self._disconnect(0.0)
            raise EngineError("the engine was lost while its adapters were loaded again") from error

    async def _disconnect(self, grace_s: float) -> None:
        link, self._link = self._link, None
        if link:
            await asyncio.to_thread(link.close, grace_s)

    async def _supervise(self) -> None:
        """Bring the engine back whenever it is lost, up to the bound."""
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
        """Watch the engine; the reason why it is lost."""
        loop = asyncio.get_running_loop()
        asked_s: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._supervision.check_s):
                    await self._lost.wait()
            link = self._link
            if link is None:
                return "its process ended"
            if self._lost.is_set():
                return f"its process ended: {await asyncio.to_thread(link.describe_exit)}"
            if asked_s is not None and link.heard_s < asked_s and loop.time() - asked_s > self._supervision.stall_s:
                return f"silent for {loop.time() - link.heard_s:.1f} s"
            if asked_s is None or link.heard_s >= asked_s:
                asked_s = loop.time()
                link.send(Ping())

    def _on_message(self, link: Link, message: Message) -> None:
        if link is not self._link:
            return
        if self._greeting and not self._greeting.done():
            self._greeting.set_result(message)
        elif isinstance(message, Broken):
            _log.error("engine broke: %s", message.detail)
        elif isinstance(message, Report):
            self._stats = message.stats
            self._batch_sizes.extend(message.stats.batch_sizes)
            for event in message.events:
                self._deliver(event)
        elif isinstance(message, AdapterReply):
            self._residents.take_reply(message)

    def _deliver(self, event: SequenceEvent) -> None:
        if not isinstance(event, SequenceDelta):
            self._failures = 0
        inbox = self._open.get(event.sequence_id)
        # A sequence that was cancelled on this side may still be heard of.
        if inbox:
            inbox.put_nowait(event)

    def _on_lost(self, link: Link) -> None:
        if link is not self._link:
            return
        if self._greeting and not self._greeting.done():
            self._greeting.set_result(None)
        self._residents.fail_calls("the engine's process ended")
        self._lost.set()

    def _fail_open(self, reason: str) -> None:
        for name, inbox in self._open.items():
            inbox.put_nowait(SequenceFailure(name, ENGINE_LOST, reason))
        self._residents.fail_calls(reason)
        self._stats = EngineStats(self._state)
