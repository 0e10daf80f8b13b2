"""Reads documents: images are decoded one after another, pages read concurrently and joined in order.

Knows the page source and the engine by their protocols alone, and nothing of HTTP.
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
from service.intake.document import Document
from service.intake.limits import DecodeTask, IntakeLimits
from service.ocr.metrics import TelemetryObserver
from service.ocr.request import OcrRequest
from shared.contract.answer import FinishReason
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.grounding import Region, parse_grounded

PAGE_BREAK = "\n\n"
_LABELS_ARE_TEXT = {Task.OCR, Task.LOCATE}
_WORST_FIRST = (FinishReason.REPETITION, FinishReason.LENGTH, FinishReason.STOP)

DeltaSink = Callable[[int, str], None]
"""Takes a page number and the text a step added to it."""


class PageSource(Protocol):
    """Turns bytes into pages; implemented by `service.intake.pool.ImagePool`."""

    async def decode(self, document: Document, task: DecodeTask) -> DecodedPage:
        """Decode one page, or raise a `DeepSynthError`."""

    def close(self, document: Document) -> None:
        """Free what is kept of a document between its pages."""


@dataclass(frozen=True, slots=True)
class PageResult:
    """One page; `slot_wait_s` and `decode_s` are the seconds that it took outside the engine."""

    page: int
    width_px: int
    height_px: int
    text: str
    regions: tuple[Region, ...]
    result: SequenceResult
    slot_wait_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class DocumentResult:
    """A whole document; pages in the order of their numbers."""

    model_id: str
    pages: Sequence[PageResult]
    seed: int | None = None
    """Of sampling; None if greedy."""

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
        observer: TelemetryObserver,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._engine = engine
        self._gate = gate
        self.limits = limits
        self._observer = observer
        self._clock = clock

    async def read(
        self, data: bytes, request: OcrRequest, permit: Permit, on_delta: DeltaSink | None = None
    ) -> DocumentResult:
        """Read a document.

        Args:
            data: The file.
            request: A checked request.
            permit: The request's place; marked running with the first page.
            on_delta: Called with each piece of text as it arrives, pages interleaved.

        Returns:
            The result of every page.

        Raises:
            DeepSynthError: A page could not be read; work on the others has been cancelled.
        """
        try:
            async with asyncio.TaskGroup() as group:
                tasks = await self._start_pages(group, data, request, permit, on_delta)
        except BaseExceptionGroup as failures:
            # Siblings are cancelled by then, so one reason is left; it keeps its own traceback.
            raise _first_reason(failures) from failures
        return DocumentResult(request.model_id, [task.result() for task in tasks], request.params.seed)

    async def _start_pages(
        self, group: asyncio.TaskGroup, data: bytes, request: OcrRequest, permit: Permit, on_delta: DeltaSink | None
    ) -> list[asyncio.Task[PageResult]]:
        tasks: list[asyncio.Task[PageResult]] = []
        num_pages = 1
        document = Document(data)
        try:
            while len(tasks) < num_pages:
                start_s = self._clock()
                with self._observer.waiting():
                    await self._gate.page_slots.acquire()
                slot_wait_s = self._clock() - start_s
                permit.mark_running()
                try:
                    page, decode_s = await self._decode(document, request, len(tasks))
                except BaseException:
                    self._gate.page_slots.release()
                    raise
                num_pages = len(page.pages)
                task = group.create_task(self._read_page(page, request, slot_wait_s, decode_s, on_delta))
                # Not in the coroutine: a task that is cancelled before it starts never runs its body.
                task.add_done_callback(lambda _: self._gate.page_slots.release())
                tasks.append(task)
        finally:
            self._source.close(document)
        return tasks

    async def _decode(self, document: Document, request: OcrRequest, position: int) -> tuple[DecodedPage, float]:
        start_s = self._clock()
        info = self._engine.info
        task = DecodeTask(
            request.selection, position, request.mode, info.geometry, self.limits, wants_image=info.prepares_views
        )
        with self._observer.decoding() as decoded:
            page = await self._source.decode(document, task)
            decoded(page)
        vision_tokens = page.prepared.plan.num_vision_tokens
        if vision_tokens >= info.max_sequence_tokens:
            # Such a sequence could never be admitted by the engine and would wait for ever.
            raise TooManyVisionTokensError(public={"vision_tokens": vision_tokens, "limit": info.max_sequence_tokens})
        return page, self._clock() - start_s

    async def _read_page(
        self, page: DecodedPage, request: OcrRequest, slot_wait_s: float, decode_s: float, on_delta: DeltaSink | None
    ) -> PageResult:
        sequence = SequenceRequest(
            sequence_id=uuid.uuid4().hex,
            page=page.prepared,
            prompt=prompt_for(request.task, request.query),
            params=request.params.for_page(page.page),
            model_id=request.model_id,
        )
        result = await self._infer(sequence, page.page, on_delta)
        grounded = parse_grounded(
            result.text, page.width_px, page.height_px, labels_are_text=request.task in _LABELS_ARE_TEXT
        )
        return PageResult(
            page=page.page,
            width_px=page.width_px,
            height_px=page.height_px,
            text=grounded.text,
            regions=grounded.regions,
            result=result,
            slot_wait_s=slot_wait_s,
            decode_s=decode_s,
        )

    async def _infer(self, sequence: SequenceRequest, page: int, on_delta: DeltaSink | None) -> SequenceResult:
        events = cast("AsyncGenerator[SequenceEvent, None]", self._engine.submit(sequence))
        is_first = True
        async with contextlib.aclosing(events):
            with self._observer.inference(sequence.model_id) as inference:
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
