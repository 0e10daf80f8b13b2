"""The service's side of the engine: sends sequences, receives their events, and restarts the engine when it is lost.

Owns the engine's life as the service sees it: start, loss, restart, stop. A lost engine restarts and loads its adapters
again. Pages that it had are read again once, those that may have ended it alone (`page_line`), and a page that was
there at two deaths is refused (`quarantine`). Knows nothing of devices. Runs on the event loop. Free of torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path

from service.engine.process.adapter_calls import AdapterCalls
from service.engine.process.codec import AdapterReply, Broken, Cancel, EngineOutputs, Message, Ping, Ready, Stop, Submit
from service.engine.process.connection import EngineConnection
from service.engine.process.launcher import Launcher
from service.engine.process.page_line import OpenPage, PageLine
from service.engine.process.quarantine import Quarantine, digest_of
from service.engine.process.stall_watch import StallWatch
from service.engine.process.supervision import Loss, LossKind, Supervision
from service.engine.protocol import (
    AdapterLoad,
    EngineInfo,
    EngineLife,
    EngineState,
    EngineStats,
    SequenceDelta,
    SequenceEvent,
    SequenceFailure,
    SequenceRequest,
)
from service.errors import EngineError, EngineLostError

ENGINE_LOST = "engine_lost"
POISON = "poison_request"
MAX_BATCH_SIZES = 1024
"""Batch sizes kept between two readings of the statistics."""

_log = logging.getLogger(__name__)


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
        self._line = PageLine()
        self._leaving: dict[str, tuple[OpenPage, int]] = {}
        """Cancelled pages that the engine may still work on, with its steps at that time."""
        self._quarantine = Quarantine(self._supervision.quarantine_s, time.monotonic)
        self._adapter_calls = AdapterCalls()
        self._stats = EngineStats(EngineState.LOADING)
        self._batch_sizes: deque[int] = deque(maxlen=MAX_BATCH_SIZES)
        self._lost = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._has_broken = False
        """Whether the loop of the engine's process has told of an exception."""
        self._num_progress = 0
        self._progress_s = 0.0
        self._began_s = self._ready_s = 0.0
        self._start_s: float | None = None
        """What the last start took; None before the first."""
        self._expected_s: float | None = None
        """When a lost engine should be ready again, on the loop's clock."""
        self._hold: asyncio.TimerHandle | None = None
        """Ends the waiting of pages for a lost engine."""
        self._failures = 0
        self._is_down = False
        self._losses: Counter[str] = Counter()
        self._num_retried = 0
        self._num_refused = 0

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

    @property
    def life(self) -> EngineLife:
        """How it has fared, and when it is expected to be ready."""
        return EngineLife(dict(self._losses), self._num_retried, self._num_refused, self._is_down, self._ready_in_s())

    def _ready_in_s(self) -> float:
        if self._state is EngineState.READY:
            return 0.0
        now_s = asyncio.get_running_loop().time()
        if self._expected_s is not None and self._expected_s > now_s:
            return self._expected_s - now_s
        # A first start, or one that takes longer than the last: as long again as it has taken, or as it is late.
        since_s = self._expected_s or self._began_s
        return now_s - since_s if since_s else 0.0

    async def submit(self, request: SequenceRequest) -> AsyncIterator[SequenceEvent]:
        """Read one page, whose id must be new: deltas, then one result or failure; closing the iterator cancels.

        A page that is lost with the engine is read once more. The failure is `engine_lost` if the engine is not ready
        and will not be soon, or is lost again, and `poison_request` for a page that was in work at two deaths.
        """
        name = request.sequence_id
        if not self._takes_pages:
            yield SequenceFailure(name, ENGINE_LOST, f"the engine is {self._state}")
            return
        page = OpenPage(request)
        if not self._quarantine.is_empty and not request.is_canary:
            page.digest = await asyncio.to_thread(digest_of, request.pages)
            if self._quarantine.is_refused(page.digest):
                self._num_refused += 1
                yield SequenceFailure(name, POISON, "it was in work at two deaths of the engine")
                return
            page.is_suspect = self._quarantine.is_suspect(page.digest)
        self._line.add(page)
        self._send_due()
        is_final = False
        try:
            # Once more, as the state may have changed while it was hashed.
            if not self._takes_pages:
                page.take(SequenceFailure(name, ENGINE_LOST, f"the engine is {self._state}"))
            while not is_final:
                event = await page.inbox.get()
                is_final = not isinstance(event, SequenceDelta)
                yield event
        finally:
            if self._line.remove(page) and not is_final:
                self._cancel(page)
            self._send_due()

    @property
    def _takes_pages(self) -> bool:
        return self._state is EngineState.READY or self._hold is not None

    def _cancel(self, page: OpenPage) -> None:
        """Tell the engine; until it has made a step since, the page may still be what ends it."""
        if self._connection is not None:
            name = page.request.sequence_id
            self._connection.send(Cancel(name))
            self._leaving[name] = page, self._stats.steps

    def _send_due(self) -> None:
        """Send what may be sent now."""
        if self._connection is None or self._state is not EngineState.READY:
            return
        while page := self._line.next_due():
            self._connection.send(Submit(page.request))

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
        """The engine's latest figures, with the state and the number of waiting pages as this side counts them."""
        now_s = asyncio.get_running_loop().time()
        batch_sizes = tuple(self._batch_sizes)
        self._batch_sizes.clear()
        return dataclasses.replace(
            self._stats,
            state=self._state,
            waiting=max(self._stats.waiting, len(self._line) - self._stats.running),
            batch_sizes=batch_sizes,
            seconds_since_progress=now_s - self._progress_s if self._line.sent else 0.0,
        )

    async def stop(self) -> None:
        """End the engine and free the device; open sequences fail."""
        self._state = EngineState.DRAINING
        self._stop_holding()
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
        self._has_broken = False
        self._began_s = asyncio.get_running_loop().time()
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
        self._ready_s = asyncio.get_running_loop().time()
        self._start_s = self._ready_s - self._began_s
        self._state = EngineState.READY
        self._stop_holding()
        self._send_due()

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
        """Restart the engine whenever it is lost, `max_restarts` times in a row without health at most."""
        while True:
            loss = await self._until_lost()
            self._state = EngineState.FAILED
            self._count(loss)
            _log.error("engine lost: %s; pages in work: %d", loss.reason, len(self._line.sent))
            if self._failures < self._supervision.max_restarts:
                self._expect()
            await self._retry_or_fail(loss)
            await self._disconnect(0.0)
            while self._state is not EngineState.READY:
                if self._failures >= self._supervision.max_restarts:
                    _log.critical("engine stays down after %d restarts", self._failures)
                    self._is_down = True
                    self._fail_open("the engine stays down")
                    return
                await self._restart()

    def _count(self, loss: Loss) -> None:
        self._losses[loss.kind] += 1
        lived_s = asyncio.get_running_loop().time() - self._ready_s - loss.stalled_s
        if lived_s >= self._supervision.healthy_s:
            self._failures = 0

    @property
    def _delay_s(self) -> float:
        return min(self._supervision.backoff_s * 2**self._failures, self._supervision.max_backoff_s)

    def _expect(self) -> None:
        """Estimate when the engine is ready again, and let pages wait for it if that is soon."""
        loop, hold_s = asyncio.get_running_loop(), self._supervision.hold_s
        needed_s = self._delay_s + (self._start_s or 0.0)
        self._expected_s = loop.time() + needed_s
        if self._hold is None and needed_s <= hold_s:
            self._hold = loop.call_later(hold_s, self._fail_open, "the engine was not ready again in time")

    def _stop_holding(self) -> None:
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None

    async def _restart(self) -> None:
        self._expect()
        delay_s = self._delay_s
        self._failures += 1
        await asyncio.sleep(delay_s)
        try:
            await self._connect()
            _log.info("engine ready again")
        except Exception:  # noqa: BLE001 -- whatever it was, the next try must not be lost with it
            self._losses[LossKind.STARTUP] += 1
            self._fail_open("the engine could not be restarted")
            _log.exception("restart %d of the engine failed", self._failures)

    async def _retry_or_fail(self, loss: Loss) -> None:
        """Decide about the pages that were with the lost engine.

        Those that may have ended it are suspects. The engine starts pages in order of arrival, so they are among the
        oldest of a batch. One that was suspect before was alone, so it has ended the engine twice.
        """
        self._adapter_calls.fail_calls(loss.reason)
        self._stats = EngineStats(self._state)
        leaving, self._leaving = [page for page, _ in self._leaving.values()], {}
        lost = self._line.take_back()
        # Stopped from outside: no page does that.
        is_blamed = loss.kind is not LossKind.STOPPED
        batch_size = 1 if self._info is None else self._info.batch_size
        blamed = [page for page in (*lost[:batch_size], *leaving) if is_blamed and not page.request.is_canary]
        poison = [page for page in blamed if page.is_suspect]
        for page in blamed:
            page.is_suspect = True
        for page in lost:
            name = page.request.sequence_id
            if page in poison:
                self._num_refused += 1
                page.take(SequenceFailure(name, POISON, loss.reason))
            elif page.num_losses or page.request.is_canary or not self._takes_pages:
                page.take(SequenceFailure(name, ENGINE_LOST, loss.reason))
            else:
                self._num_retried += 1
                page.begin_again()
        if not self._takes_pages:
            self._fail_open(loss.reason)
        await asyncio.to_thread(_hash, blamed)
        self._quarantine.suspect(page.digest for page in blamed if page.digest is not None)
        for page in poison:
            assert page.digest is not None
            self._quarantine.refuse(page.digest)

    async def _until_lost(self) -> Loss:
        """Check the engine until it is lost."""
        loop, check_s = asyncio.get_running_loop(), self._supervision.check_s
        watch = StallWatch(2 * check_s, loop.time)
        asked_s: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(check_s):
                    await self._lost.wait()
            connection = self._connection
            if connection is None:
                return Loss(LossKind.EXIT, "its process ended")
            if self._lost.is_set():
                return await self._explain_end(connection)
            if connection.is_stopped():
                return Loss(LossKind.STOPPED, "its process was stopped by a signal")
            if asked_s is None or connection.heard_s >= asked_s:
                asked_s = loop.time()
                connection.send(Ping())
            stalled_s = watch.look(self._num_progress)
            if stalled_s > self._supervision.stall_s:
                what = "made no step" if self._line.sent else "silent"
                return Loss(LossKind.STALL, f"{what} for {stalled_s:.1f} s", stalled_s)

    async def _explain_end(self, connection: EngineConnection) -> Loss:
        reason = f"its process ended: {await asyncio.to_thread(connection.describe_exit)}"
        if self._has_broken:
            return Loss(LossKind.EXCEPTION, reason)
        return Loss(LossKind.SIGNAL if connection.was_killed() else LossKind.EXIT, reason)

    def _note_progress(self) -> None:
        self._num_progress += 1
        self._progress_s = asyncio.get_running_loop().time()

    def _on_message(self, connection: EngineConnection, message: Message) -> None:
        if connection is not self._connection:
            return
        if self._greeting and not self._greeting.done():
            self._greeting.set_result(message)
        elif isinstance(message, Broken):
            self._has_broken = True
            _log.error("engine broke: %s", message.detail)
        elif isinstance(message, EngineOutputs):
            self._take_outputs(message)
        elif isinstance(message, AdapterReply):
            self._adapter_calls.take_reply(message)

    def _take_outputs(self, message: EngineOutputs) -> None:
        # While no page waits, an answer to a ping is all that can be asked for.
        is_idle = not self._line.sent and not self._leaving
        if is_idle or message.events or message.stats.steps != self._stats.steps:
            self._note_progress()
        self._stats = message.stats
        self._batch_sizes.extend(message.stats.batch_sizes)
        for event in message.events:
            self._deliver(event)
        if self._leaving:
            # The step during which it was cancelled has ended, and the next one may have begun with it.
            steps, has_pages = message.stats.steps, bool(message.stats.running or message.stats.waiting)
            leaving = self._leaving.items()
            self._leaving = {name: entry for name, entry in leaving if has_pages and steps <= entry[1] + 1}

    def _deliver(self, event: SequenceEvent) -> None:
        page = self._line.find_sent(event.sequence_id)
        if not isinstance(event, SequenceDelta):
            self._failures = 0
            if page and page.digest is not None:
                self._quarantine.acquit(page.digest)
        # Events of a sequence that was cancelled here may still arrive.
        if page and not page.take(event):
            page.take(SequenceFailure(event.sequence_id, ENGINE_LOST, "it reads differently after a restart"))

    def _on_lost(self, connection: EngineConnection) -> None:
        if connection is not self._connection:
            return
        if self._greeting and not self._greeting.done():
            self._greeting.set_result(None)
        self._adapter_calls.fail_calls("the engine's process ended")
        self._lost.set()

    def _fail_open(self, reason: str) -> None:
        self._stop_holding()
        for page in self._line:
            page.take(SequenceFailure(page.request.sequence_id, ENGINE_LOST, reason))
        self._adapter_calls.fail_calls(reason)
        self._stats = EngineStats(self._state)


def _hash(pages: Sequence[OpenPage]) -> None:
    for page in pages:
        page.digest = page.digest or digest_of(page.request.pages)
