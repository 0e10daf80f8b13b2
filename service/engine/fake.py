"""A deterministic engine without a model: its answer is a function of the page's pixels, the prompt and the adapter.

For tests and for trying clients (`DEEPSYNTH_ENGINE=fake`). `FakeEngine` is the device side, `FakeEngineHandle` drives
it on the event loop; both keep to the protocols, so whatever works with them works with the real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass, field
from pathlib import Path

from service.engine.lora.registry import NO_ADAPTER, AdapterError, AdapterRegistry
from service.engine.protocol import (
    AdapterLoad,
    EngineInfo,
    EngineState,
    EngineStats,
    FinishReason,
    SequenceDelta,
    SequenceEvent,
    SequenceFailure,
    SequenceRequest,
    SequenceResult,
    SequenceTimings,
)
from service.errors import EngineLostError
from shared.deepseek_ocr.geometry import GeometryConfig

WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty", "knoll", "larch")
MAX_REMEMBERED_BATCHES = 256


def fake_tokens(request: SequenceRequest, adapter: bytes = b"") -> list[str]:
    """What the fake reads on a page: words chosen by a hash of pixels, prompt, adapter and, where it draws, its seed.

    Args:
        request: The page and what is asked of it.
        adapter: Weights of the adapter that reads it; empty for the base.

    Returns:
        Pieces of text; with a grounding prompt or a query, the first are a labelled box.
    """
    seed = hashlib.sha256()
    for array in request.page.arrays:
        seed.update(array.tobytes())
    seed.update(request.prompt.encode())
    seed.update(adapter)
    if request.params.temperature > 0:
        seed.update(f"{request.params.temperature} {request.params.seed}".encode())
    digest = seed.digest()
    words = [WORDS[byte % len(WORDS)] for byte in digest[: 4 + digest[-1] % 8]]
    tokens = [words[0], *(f" {word}" for word in words[1:])]
    if "<|grounding|>" in request.prompt or "<|ref|>" in request.prompt:
        left, top = digest[0], digest[1]
        box = f"[[{left}, {top}, {left + digest[2] + 1}, {top + digest[3] + 1}]]"
        tokens = ["<|ref|>", "text", "<|/ref|>", "<|det|>", box, "<|/det|>", "\n", *tokens]
    return tokens


@dataclass(slots=True)
class _Sequence:
    request: SequenceRequest
    tokens: list[str]
    adapter: int = NO_ADAPTER
    done: list[str] = field(default_factory=list)
    queued_steps: int = 0


class FakeEngine:
    """Reads one word of every running page per step.

    Args:
        batch_size: Pages at once.
        geometry: Of its views.
        fail_with: Maps a prompt, or an adapter's name, to the failure code that its pages meet.
        adapter_slots: Adapters at once.
        refuse_with: Maps an adapter to the reason for which it is refused.
    """

    def __init__(
        self,
        *,
        batch_size: int = 8,
        geometry: GeometryConfig | None = None,
        fail_with: dict[str, str] | None = None,
        adapter_slots: int = 0,
        refuse_with: dict[str, str] | None = None,
    ) -> None:
        self._info = EngineInfo(
            model_id="fake",
            device="cpu",
            dtype="none",
            geometry=geometry or GeometryConfig(),
            max_new_tokens=4096,
            max_sequence_tokens=8192,
            batch_size=batch_size,
            adapter_slots=adapter_slots,
            adapter_max_rank=64 if adapter_slots else 0,
        )
        self._refuse_with = refuse_with or {}
        self._adapters = AdapterRegistry(adapter_slots)
        self._weights: dict[int, bytes] = {}
        self._refused: list[SequenceEvent] = []
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._fail_with = fail_with or {}
        self._steps = 0
        self._batch_sizes: deque[int] = deque(maxlen=MAX_REMEMBERED_BATCHES)

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        return self._info

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs, or an event is to be fetched."""
        return bool(self._waiting or self._running or self._refused)

    def warm_up(self) -> None:
        """Nothing to warm."""

    def submit(self, request: SequenceRequest) -> None:
        """Queue a sequence; one for an adapter that is not resident is answered with a failure."""
        slot = NO_ADAPTER if request.model_id == self._info.model_id else self._adapters.find(request.model_id)
        if slot is None:
            self._refused.append(SequenceFailure(request.sequence_id, "model_not_found", "not resident"))
            return
        self._waiting.append(_Sequence(request, fake_tokens(request, self._weights.get(slot, b"")), slot))

    def cancel(self, sequence_id: str) -> None:
        """Forget a sequence."""
        self._waiting = deque(entry for entry in self._waiting if entry.request.sequence_id != sequence_id)
        self._running = [entry for entry in self._running if entry.request.sequence_id != sequence_id]

    def step(self) -> list[SequenceEvent]:
        """Admit in order of arrival, then one word each."""
        events, self._refused = self._refused, []
        while self._waiting and len(self._running) < self._info.batch_size:
            self._running.append(self._waiting.popleft())
        self._steps += 1
        self._batch_sizes.append(len(self._running))
        for entry in list(self._running):
            events.extend(self._advance(entry))
        self._adapters.sweep(self._slots_in_use())
        return events

    def _advance(self, entry: _Sequence) -> list[SequenceEvent]:
        request = entry.request
        for told in (request.prompt, request.model_id):
            if told in self._fail_with:
                self._running.remove(entry)
                return [SequenceFailure(request.sequence_id, self._fail_with[told], "told to fail")]
        token = entry.tokens[len(entry.done)]
        entry.done.append(token)
        events: list[SequenceEvent] = [SequenceDelta(request.sequence_id, token)]
        complete = len(entry.done) == len(entry.tokens)
        if complete or len(entry.done) == request.params.max_new_tokens:
            self._running.remove(entry)
            events.append(_result(entry, FinishReason.STOP if complete else FinishReason.LENGTH))
        return events

    def stats(self) -> EngineStats:
        """Current counts; the batch sizes are handed out once."""
        sizes = tuple(self._batch_sizes)
        self._batch_sizes.clear()
        return EngineStats(EngineState.READY, len(self._waiting), len(self._running), self._steps, sizes)

    @property
    def adapters(self) -> AdapterRegistry:
        """Which adapters are resident; for reading."""
        return self._adapters

    def read_adapter(self, folder: Path) -> bytes:
        """Read an adapter's weights.

        Args:
            folder: With `adapter_model.safetensors`.

        Returns:
            Their bytes.

        Raises:
            AdapterError: They are not there.
        """
        try:
            return (folder / "adapter_model.safetensors").read_bytes()
        except OSError as error:
            raise AdapterError("file_missing", str(error)) from error

    def load_adapter(self, model_id: str, source: bytes) -> None:
        """Make an adapter resident.

        Args:
            model_id: `name@version`.
            source: Its weights.

        Raises:
            AdapterError: There is no slot, the name is taken, or the fake was told to refuse it.
        """
        if model_id in self._refuse_with:
            raise AdapterError(self._refuse_with[model_id], "told to refuse")
        self._adapters.sweep(self._slots_in_use())
        slot = self._adapters.offer_slot(model_id)
        self._weights[slot] = source
        self._adapters.add(model_id, slot)

    def unload_adapter(self, model_id: str) -> bool:
        """Take an adapter out of service; whether its slot is free."""
        self._adapters.drain(model_id)
        self._adapters.sweep(self._slots_in_use())
        return model_id not in self._adapters.draining

    def _slots_in_use(self) -> set[int]:
        return {entry.adapter for entry in (*self._waiting, *self._running)}


def _result(entry: _Sequence, reason: FinishReason) -> SequenceResult:
    return SequenceResult(
        sequence_id=entry.request.sequence_id,
        text="".join(entry.done),
        finish_reason=reason,
        confidence=0.875,
        vision_tokens=entry.request.page.plan.num_vision_tokens,
        prompt_tokens=len(entry.request.prompt.split()),
        completion_tokens=len(entry.done),
        timings=SequenceTimings(queue_s=0.0, encode_s=0.001, prefill_s=0.001, generate_s=0.001 * len(entry.done)),
    )


class FakeEngineHandle:
    """Drives a `FakeEngine` on the event loop.

    Tests steer it: while `hold` is set it takes sequences but does not step; `lose` plays the engine's death,
    and `submitted` and `cancelled` are what it was asked to do, pages and all, unless it is told to remember nothing.
    """

    def __init__(self, engine: FakeEngine | None = None, *, step_s: float = 0.0, remembers: bool = True) -> None:
        self._engine = engine or FakeEngine()
        self._step_s = step_s
        self._remembers = remembers
        self._state = EngineState.LOADING
        self._inboxes: dict[str, asyncio.Queue[SequenceEvent]] = {}
        self._go = asyncio.Event()
        self._work = asyncio.Event()
        self._go.set()
        self._driver: asyncio.Task[None] | None = None
        self.submitted: list[SequenceRequest] = []
        self.cancelled: list[str] = []

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        return self._engine.info

    @property
    def state(self) -> EngineState:
        """Life of the engine."""
        return self._state

    @property
    def adapters(self) -> Collection[str]:
        """Adapters that sequences may name."""
        return self._engine.adapters.names

    async def load_adapter(self, model_id: str, folder: Path) -> AdapterLoad:
        """Make an adapter resident.

        Args:
            model_id: `name@version`.
            folder: Its files.

        Returns:
            What it cost.

        Raises:
            EngineLostError: The fake has died.
        """
        if self._state is not EngineState.READY:
            raise EngineLostError("died before")
        began_s = time.monotonic()
        self._engine.load_adapter(model_id, self._engine.read_adapter(folder))
        return AdapterLoad(0.0, time.monotonic() - began_s)

    async def unload_adapter(self, model_id: str) -> None:
        """Take an adapter out of service, and return when its slot is free."""
        if model_id in self._engine.adapters.names and not self._engine.unload_adapter(model_id):
            while model_id in self._engine.adapters.draining:  # noqa: ASYNC110 -- a fake may look again and again
                await asyncio.sleep(self._step_s)

    def hold(self) -> None:
        """Stop stepping."""
        self._go.clear()

    def release(self) -> None:
        """Step again."""
        self._go.set()

    def lose(self) -> None:
        """Die: every open sequence fails with `engine_lost`, and so does every later one."""
        self._state = EngineState.FAILED
        for sequence_id, inbox in self._inboxes.items():
            inbox.put_nowait(SequenceFailure(sequence_id, "engine_lost", "told to die"))

    async def start(self) -> None:
        """Be ready at once."""
        self._engine.warm_up()
        self._driver = asyncio.create_task(self._drive(), name="fake-engine")
        self._state = EngineState.READY

    async def submit(self, request: SequenceRequest) -> AsyncGenerator[SequenceEvent, None]:
        """Read one page; closing the iterator cancels."""
        if self._state is EngineState.FAILED:
            yield SequenceFailure(request.sequence_id, "engine_lost", "died before")
            return
        inbox: asyncio.Queue[SequenceEvent] = asyncio.Queue()
        self._inboxes[request.sequence_id] = inbox
        if self._remembers:
            self.submitted.append(request)
        self._engine.submit(request)
        self._work.set()
        finished = False
        try:
            while not finished:
                event = await inbox.get()
                finished = not isinstance(event, SequenceDelta)
                yield event
        finally:
            del self._inboxes[request.sequence_id]
            if not finished:
                if self._remembers:
                    self.cancelled.append(request.sequence_id)
                self._engine.cancel(request.sequence_id)

    async def _drive(self) -> None:
        while True:
            await self._work.wait()
            await self._go.wait()
            for event in self._engine.step():
                if event.sequence_id in self._inboxes:
                    self._inboxes[event.sequence_id].put_nowait(event)
            if not self._engine.has_work:
                self._work.clear()
            await asyncio.sleep(self._step_s)

    async def stats(self) -> EngineStats:
        """Current counts."""
        stats = self._engine.stats()
        return EngineStats(self._state, stats.waiting, stats.running, stats.steps, stats.batch_sizes)

    async def stop(self) -> None:
        """End the driver."""
        if self._driver is not None:
            self._driver.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._driver
