"""From a document's bytes to its reading: pages decoded one after another, read concurrently, joined in order.

Knows the page source and the engine by their protocols only, and nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from service.admission.gate import Gate, Permit
from service.engine.protocol import (
    EngineHandle,
    FinishReason,
    SamplingParams,
    SequenceDelta,
    SequenceEvent,
    SequenceFailure,
    SequenceRequest,
    SequenceResult,
)
from service.errors import (
    DeepSynthError,
    EngineError,
    EngineLostError,
    InternalError,
    TooManyVisionTokensError,
    error_classes,
)
from service.intake.decoding import DecodedPage
from service.intake.limits import DecodeOrder, IntakeLimits
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.geometry import Mode
from shared.deepseek_ocr.grounding import Region, parse_grounded

PAGE_BREAK = "\n\n"
_LABELS_ARE_TEXT = {Task.OCR, Task.LOCATE}
_WORST_FIRST = (FinishReason.REPETITION, FinishReason.LENGTH, FinishReason.STOP)

DeltaSink = Callable[[int, str], None]
"""Takes a page number and the text a step added to it."""


class PageSource(Protocol):
    """Whoever turns bytes into pages; `service.intake.pool.DecoderPool` does."""

    async def decode(self, data: bytes, order: DecodeOrder) -> DecodedPage:
        """Decode one page, or raise a `DeepSynthError`."""


class ReadingObserver(Protocol):
    """Whoever counts and traces; telemetry does. Every method is cheap and raises nothing."""

    def decoding(self) -> contextlib.AbstractContextManager[Callable[[DecodedPage], None]]:
        """Around one decode; the value is called with the page when there is one."""

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        """Around the wait for a page slot."""

    def inference(self, model_id: str) -> contextlib.AbstractContextManager[InferenceObserver]:
        """Around one sequence."""


class InferenceObserver(Protocol):
    """Watches one sequence."""

    def first_text(self) -> None:
        """The first text arrived."""

    def finished(self, result: SequenceResult) -> None:
        """It ended well."""


@dataclass(frozen=True, slots=True)
class ReadOrder:
    """What a client wants of a document; every field is checked."""

    task: Task
    query: str | None
    mode: Mode
    params: SamplingParams
    model_id: str
    selection: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class PageReading:
    """One page's answer; `slot_wait_s` and `decode_s` are what it cost outside the engine, in seconds."""

    page: int
    width_px: int
    height_px: int
    text: str
    regions: tuple[Region, ...]
    result: SequenceResult
    slot_wait_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class DocumentReading:
    """A document's answer; pages in the order of their numbers."""

    model_id: str
    pages: Sequence[PageReading]
    seed: int | None = None
    """Of what was drawn; None: nothing was."""

    @property
    def text(self) -> str:
        """All pages, joined by a blank line."""
        return PAGE_BREAK.join(page.text for page in self.pages)

    @property
    def finish_reason(self) -> FinishReason:
        """The worst of the pages'."""
        reasons = {page.result.finish_reason for page in self.pages}
        return next(reason for reason in _WORST_FIRST if reason in reasons)

    @property
    def confidence(self) -> float:
        """Geometric mean over all tokens of all pages."""
        tokens = sum(page.result.completion_tokens for page in self.pages)
        if not tokens:
            return min(page.result.confidence for page in self.pages)
        logs = [
            page.result.completion_tokens * math.log(max(page.result.confidence, 1e-9))
            for page in self.pages
            if page.result.completion_tokens
        ]
        return math.exp(sum(logs) / tokens)


class DocumentReader:
    """Reads documents; holds no state of any of them."""

    def __init__(
        self,
        *,
        source: PageSource,
        engine: EngineHandle,
        gate: Gate,
        limits: IntakeLimits,
        observer: ReadingObserver,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._engine = engine
        self._gate = gate
        self.limits = limits
        self._observer = observer
        self._clock = clock

    async def read(
        self, data: bytes, order: ReadOrder, permit: Permit, on_delta: DeltaSink | None = None
    ) -> DocumentReading:
        """Read a document.

        Args:
            data: The file.
            order: What is wanted.
            permit: The request's place; marked running with the first page.
            on_delta: Told every piece of text as it comes, pages interleaved.

        Returns:
            The reading of every page.

        Raises:
            DeepSynthError: Why there is none; whatever was under way has ended.
        """
        try:
            async with asyncio.TaskGroup() as group:
                tasks = await self._start_pages(group, data, order, permit, on_delta)
        except BaseExceptionGroup as failures:
            # Siblings are cancelled by then, so one reason is left; it keeps its own traceback.
            raise _first_reason(failures) from failures
        return DocumentReading(order.model_id, [task.result() for task in tasks], order.params.seed)

    async def _start_pages(
        self, group: asyncio.TaskGroup, data: bytes, order: ReadOrder, permit: Permit, on_delta: DeltaSink | None
    ) -> list[asyncio.Task[PageReading]]:
        tasks: list[asyncio.Task[PageReading]] = []
        num_pages = 1
        while len(tasks) < num_pages:
            start_s = self._clock()
            with self._observer.waiting():
                await self._gate.page_slots.acquire()
            slot_wait_s = self._clock() - start_s
            permit.mark_running()
            try:
                page, decode_s = await self._decode(data, order, len(tasks))
            except BaseException:
                self._gate.page_slots.release()
                raise
            num_pages = len(page.pages)
            task = group.create_task(self._read_page(page, order, slot_wait_s, decode_s, on_delta))
            # Not in the coroutine: a task that is cancelled before it starts never runs its body.
            task.add_done_callback(lambda _: self._gate.page_slots.release())
            tasks.append(task)
        return tasks

    async def _decode(self, data: bytes, order: ReadOrder, position: int) -> tuple[DecodedPage, float]:
        start_s = self._clock()
        info = self._engine.info
        decode_order = DecodeOrder(
            order.selection, position, order.mode, info.geometry, self.limits, wants_image=info.prepares_views
        )
        with self._observer.decoding() as decoded:
            page = await self._source.decode(data, decode_order)
            decoded(page)
        vision_tokens = page.prepared.plan.num_vision_tokens
        if vision_tokens >= info.max_sequence_tokens:
            # Such a sequence could never be admitted by the engine and would wait for ever.
            raise TooManyVisionTokensError(public={"vision_tokens": vision_tokens, "limit": info.max_sequence_tokens})
        return page, self._clock() - start_s

    async def _read_page(
        self, page: DecodedPage, order: ReadOrder, slot_wait_s: float, decode_s: float, on_delta: DeltaSink | None
    ) -> PageReading:
        request = SequenceRequest(
            sequence_id=uuid.uuid4().hex,
            page=page.prepared,
            prompt=prompt_for(order.task, order.query),
            params=order.params.for_page(page.page),
            model_id=order.model_id,
        )
        result = await self._infer(request, page.page, on_delta)
        grounded = parse_grounded(
            result.text, page.width_px, page.height_px, labels_are_text=order.task in _LABELS_ARE_TEXT
        )
        return PageReading(
            page=page.page,
            width_px=page.width_px,
            height_px=page.height_px,
            text=grounded.text,
            regions=grounded.regions,
            result=result,
            slot_wait_s=slot_wait_s,
            decode_s=decode_s,
        )

    async def _infer(self, request: SequenceRequest, page: int, on_delta: DeltaSink | None) -> SequenceResult:
        events = cast("AsyncGenerator[SequenceEvent, None]", self._engine.submit(request))
        is_first = True
        async with contextlib.aclosing(events):
            with self._observer.inference(request.model_id) as inference:
                async for event in events:
                    match event:
                        case SequenceDelta(text=text):
                            if is_first:
                                inference.first_text()
                                is_first = False
                            if on_delta is not None:
                                on_delta(page, text)
                        case SequenceResult():
                            inference.finished(event)
                            return event
                        case SequenceFailure(code=code, detail=detail):
                            raise _failure(code, detail)
        raise EngineLostError("the engine's events ended without a result")


def _failure(code: str, detail: str) -> DeepSynthError:
    """The engine speaks in the codes of our own tree; one it invents is a fault of its own."""
    return error_classes().get(code, EngineError)(f"{code}: {detail}")


def _first_reason(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The known error in a task group's collection, or an unknown one as it is."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return _first_reason(error)
        if isinstance(error, DeepSynthError):
            return error
    return group.exceptions[0] if group.exceptions else InternalError()
