from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from opentelemetry.trace import NoOpTracer

from service.admission.deadline import Deadline
from service.admission.gate import Gate
from service.engine.fake import FakeEngine, fake_tokens
from service.engine.protocol import SamplingParams, SequenceEvent, SequenceRequest, SequenceResult, SequenceTimings
from service.errors import (
    DeadlineError,
    DecodeTimeoutError,
    DeepSynthError,
    DocumentTooLongError,
    EngineError,
    EngineLostError,
    ModelNotFoundError,
    TooManyPagesError,
    TooManyPixelsError,
    TooManyVisionTokensError,
    UndecodableError,
)
from service.intake.document import Document
from service.intake.formats import FileFormat
from service.intake.limits import DecodeTask, IntakeLimits
from service.intake.pages import Contents, DecodedPage
from service.intake.print_task import PrintTask
from service.ocr.confidence import Granularity, Wanted
from service.ocr.metrics import TelemetryObserver
from service.ocr.outcome import PageStatus
from service.ocr.reader import MAX_SLOW_PAGES, DocumentReader, DocumentResult, PageResult, PageSink, _share_read
from service.ocr.request import OcrRequest
from service.telemetry.metrics import Metrics
from shared.contract.answer import FinishReason
from shared.contract.calibration import Calibration
from shared.contract.confidence import MonotoneMap
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import Mode, ViewPlan
from shared.deepseek_ocr.nano_config import NANO_GEOMETRY
from shared.deepseek_ocr.reading_layout import ReadingLayout
from shared.images.accounting import Account, account
from shared.images.canvases import EM_PX, LARGE_EM_PX, Strip
from shared.images.page_ink import InkLine, PageInk
from tests.support.fake_engine import SteeredEngine
from tests.support.loop_clock import LoopClock
from tests.support.service import eventually

PLAN = ViewPlan(Mode.TINY, 8, 8, 0, 0, 16)
STRIP = Strip(0, 0, (100, 50, 300, 80), ((100, 50, 300, 80),), np.full((30, 200), 255, np.uint8))


class Source:
    """Pages without files: the document's bytes are its number of pages, each page one colour."""

    def __init__(self, plan: ViewPlan = PLAN) -> None:
        self.plan = plan
        self.num_decoded = 0
        self.held: set[Document] = set()
        self.fail: set[int] = set()
        """Pages that cannot be decoded."""
        self.error: type[DeepSynthError] = UndecodableError
        self.fail_lines = self.fail_larger = False
        self.num_failed = self.num_opened = 0
        self.is_opened = True
        """Whether files turn out to be what they seem."""
        self.orders: list[DecodeTask] = []
        self.ink: dict[int, PageInk] = {}
        """What pages show, where it is not a lot of print."""
        self.ink_of_lines: dict[int, PageInk] = {}
        """The same where a page is read by its lines, of which it has none else."""
        self.sizes: dict[int, tuple[int, int]] = {}
        """Width and height of pages that have others than the usual ones."""
        self.turned: dict[int, PageInk] = {}
        """Pages that are found to lie on their sides, and what they show as they are."""
        self.fail_as_is = False

    async def open(self, document: Document) -> Contents:
        self.num_opened += 1
        self.held.add(document)
        await asyncio.sleep(0)
        return Contents(FileFormat.PDF, document.selection or tuple(range(1, int(document.data) + 1)))

    async def decode(self, document: Document, order: DecodeTask) -> DecodedPage:
        self.held.add(document)
        await asyncio.sleep(0)
        document.is_unopened = document.is_unopened and not self.is_opened
        as_is = order.turn_degrees == 0
        is_failing = [
            order.page in self.fail,
            self.fail_lines and order.lines_from_views == 1,
            self.fail_larger and order.em_px == LARGE_EM_PX,
            self.fail_as_is and as_is,
        ]
        if any(is_failing):
            self.num_failed += 1
            raise self.error
        self.num_decoded += 1
        self.orders.append(order)
        colour = 16 * int(document.data) + order.page - 1
        by_lines = self.ink_of_lines if order.lines_from_views == 1 else {}
        is_on_side = as_is and order.page in self.turned
        ink = self.turned[order.page] if is_on_side else self.ink.get(order.page, PageInk(marks=500, ink_ratio=0.1))
        width_px, height_px = self.sizes.get(order.page, (1000, 500))
        return DecodedPage(
            file_format=FileFormat.PDF,
            page=order.page,
            width_px=height_px if is_on_side else width_px,
            height_px=width_px if is_on_side else height_px,
            ink=by_lines.get(order.page, ink),
            is_damaged=False,
            prepared=PageViews(self.plan, np.full((8, 8, 3), colour, np.uint8), np.zeros((0, 8, 8, 3), np.uint8)),
            turned_degrees=90 if order.page in self.turned and not as_is else 0,
            strips=(STRIP,) if order.page in by_lines else (),
        )

    async def account(self, document: Document, task: PrintTask) -> Account:
        await asyncio.sleep(0)
        return account(task.text, task.lines)

    def close(self, document: Document) -> None:
        self.held.discard(document)


@dataclass
class Bench:
    reader: DocumentReader
    source: Source
    engine: SteeredEngine
    gate: Gate
    metrics: Metrics

    async def read(
        self,
        num_pages: int,
        task: Task = Task.FREE,
        max_new_tokens: int = 100,
        deadline_s: float = 60,
        deadline: Deadline | None = None,
        on_page: PageSink | None = None,
        **options: Any,
    ) -> DocumentResult:
        order = OcrRequest(task, None, Mode.TINY, SamplingParams(max_new_tokens), "fake", None, **options)
        deadline = deadline or Deadline(deadline_s)
        with self.gate.admit() as permit:
            data = str(num_pages).encode()
            return await self.reader.read(data, order, permit, deadline=deadline, on_page=on_page)


@contextlib.asynccontextmanager
async def bench(page_slots: int = 4, engine: FakeEngine | None = None, plan: ViewPlan = PLAN) -> AsyncIterator[Bench]:
    handle = SteeredEngine(engine)
    await handle.start()
    gate = Gate(capacity=8, page_slots=page_slots, clock=time.monotonic)
    source, metrics = Source(plan), Metrics()
    observer = TelemetryObserver(metrics, NoOpTracer())
    reader = DocumentReader(source=source, engine=handle, gate=gate, limits=IntakeLimits(), observer=observer)
    try:
        yield Bench(reader, source, handle, gate, metrics)
    finally:
        await handle.stop()
        assert not source.held
        assert gate.page_slots.num_free == page_slots


def expected_text(num_pages: int, page: int) -> str:
    view = np.full((8, 8, 3), 16 * num_pages + page - 1, np.uint8)
    prepared = PageViews(PLAN, view, np.zeros((0, 8, 8, 3), np.uint8))
    request = SequenceRequest("", prepared, prompt_for(Task.FREE), SamplingParams(100), "fake")
    return "".join(fake_tokens(request))


def with_result(page: PageResult, **changes: Any) -> PageResult:
    assert page.result is not None
    return replace(page, result=replace(page.result, **changes))


async def test_pages_are_joined_in_order_by_a_blank_line() -> None:
    async with bench() as it:
        reading = await it.read(3)
    assert reading.text == "\n\n".join(expected_text(3, page) for page in (1, 2, 3))
    assert [page.page for page in reading.pages] == [1, 2, 3]


async def test_pages_of_one_document_run_together() -> None:
    async with bench() as it:
        it.engine.hold()
        task = asyncio.create_task(it.read(3))
        await eventually(lambda: len(it.engine.submitted) == 3)
        it.engine.release()
        await task


async def test_a_page_is_alone_when_no_other_page_and_no_other_request_is_on_its_way() -> None:
    async with bench() as it:
        await it.read(1)
        await it.read(2)
        with it.gate.admit():
            await it.read(1)
        await it.read(1)
    assert [each.is_alone for each in it.engine.submitted] == [True, False, False, False, True]


async def test_text_is_streamed_to_those_who_take_it() -> None:
    async with bench() as it:
        await it.read(1)
        order = OcrRequest(Task.FREE, None, Mode.TINY, SamplingParams(100), "fake", None)
        with it.gate.admit() as permit:
            deltas: list[str] = []
            reading = await it.reader.read(
                b"1", order, permit, deadline=Deadline(60), on_delta=lambda _, text: deltas.append(text)
            )
    assert [each.is_streamed for each in it.engine.submitted] == [False, True]
    assert len(deltas) > 1
    assert "".join(deltas) == reading.pages[0].text


async def test_no_more_pages_are_decoded_ahead_than_there_are_slots() -> None:
    async with bench(page_slots=2) as it:
        it.engine.hold()
        task = asyncio.create_task(it.read(7))
        await eventually(lambda: len(it.engine.submitted) == 2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert it.source.num_decoded == 2
        it.engine.release()
        assert len((await task).pages) == 7


async def test_document_is_closed_with_its_last_page_and_when_the_reader_gives_up() -> None:
    async with bench(page_slots=2) as it:
        it.engine.hold()
        short = asyncio.create_task(it.read(2))
        await eventually(lambda: len(it.engine.submitted) == 2)
        assert not it.source.held
        long = asyncio.create_task(it.read(7))
        await eventually(lambda: it.gate.num_waiting == 1)
        it.engine.release()
        await short
        it.engine.hold()
        await eventually(lambda: bool(it.source.held))
        long.cancel()
        await asyncio.wait({long})
        assert not it.source.held


async def test_short_document_takes_its_turn_before_a_long_one_ends() -> None:
    async with bench(page_slots=1) as it:
        it.engine.hold()
        long = asyncio.create_task(it.read(7))
        await eventually(lambda: it.source.num_decoded == 1)
        short = asyncio.create_task(it.read(1))
        await eventually(lambda: it.gate.num_waiting == 1)
        it.engine.release()
        await short
        assert not long.done()
        await long


async def test_many_documents_at_once_never_swap_answers() -> None:
    async with bench(page_slots=3) as it:
        counts = [1 + number % 4 for number in range(8)]
        readings = await asyncio.gather(*(it.read(count) for count in counts))
    for count, reading in zip(counts, readings, strict=True):
        assert reading.text == "\n\n".join(expected_text(count, page) for page in range(1, count + 1))


async def test_boxes_stand_in_the_pages_own_pixels() -> None:
    async with bench() as it:
        page = (await it.read(1, Task.OCR)).pages[0]
    assert len(page.regions) == 1
    left, top, right, bottom = page.regions[0].box_px
    assert 0 <= left < right <= 1000
    assert 0 <= top < bottom <= 500
    assert "<|" not in page.text


async def test_worst_finish_reason_speaks_for_the_document() -> None:
    async with bench() as it:
        reading = await it.read(2, max_new_tokens=2)
    assert reading.finish_reason is FinishReason.LENGTH
    stopped = with_result(reading.pages[0], finish_reason=FinishReason.STOP)
    looped = with_result(stopped, finish_reason=FinishReason.REPETITION)
    assert DocumentResult("m", [stopped, reading.pages[1], looped]).finish_reason is FinishReason.REPETITION
    assert DocumentResult("m", [stopped]).finish_reason is FinishReason.STOP


async def test_confidence_is_the_mean_over_tokens_not_pages() -> None:
    async with bench() as it:
        page = (await it.read(1)).pages[0]
    sure = with_result(page, confidence=1.0, completion_tokens=3)
    unsure = with_result(page, confidence=0.0625, completion_tokens=1)
    silent = with_result(page, confidence=0.25, completion_tokens=0)
    assert DocumentResult("m", [sure, unsure, silent]).confidence == pytest.approx(0.5)
    assert DocumentResult("m", [silent]).confidence == 0.25


@pytest.mark.parametrize("failing", [{1}, {2}, {3}, {1, 3}])
async def test_page_that_cannot_be_decoded_costs_that_page(failing: set[int]) -> None:
    async with bench() as it:
        it.source.fail = failing
        reading = await it.read(3)
    assert [page.page for page in reading.pages] == [1, 2, 3]
    assert {page.page for page in reading.pages if page.status is PageStatus.FAILED} == failing
    assert all(isinstance(page.error, UndecodableError) for page in reading.pages if page.page in failing)
    assert reading.text == "\n\n".join(expected_text(3, page) for page in sorted({1, 2, 3} - failing))
    assert reading.is_partial


@pytest.mark.parametrize("is_opened", [False, True])
async def test_an_image_that_cannot_be_opened_is_refused_and_is_no_failed_page(is_opened: bool) -> None:
    async with bench() as it:
        order = OcrRequest(Task.FREE, None, Mode.TINY, SamplingParams(9), "fake", None)
        it.source.fail = {1}
        it.source.is_opened = is_opened
        with it.gate.admit() as permit, pytest.raises(UndecodableError):
            await it.reader.read(b"\x89PNG\r\n\x1a\n", order, permit)
        failed = it.metrics.registry.get_sample_value("deepsynth_page_outcomes_total", {"status": "failed"})
        assert (failed, it.source.num_opened) == (int(is_opened), 0)


async def test_after_some_pages_that_took_too_long_the_rest_is_not_tried() -> None:
    async with bench() as it:
        it.source.fail = set(range(2, 10))
        it.source.error = DecodeTimeoutError
        reading = await it.read(10)
    assert it.source.num_failed == MAX_SLOW_PAGES
    assert it.source.num_decoded == 1
    assert [type(page.error) for page in reading.pages[1:]] == [DecodeTimeoutError] * 9


async def test_document_of_failed_pages_alone_fails_with_the_first_error() -> None:
    async with bench() as it:
        it.source.fail = {1, 2}
        with pytest.raises(UndecodableError):
            await it.read(2)
        assert it.engine.submitted == []


async def test_page_without_print_is_blank_and_not_read_unless_asked_for() -> None:
    async with bench() as it:
        it.source.ink = {2: PageInk(marks=0, ink_ratio=0.0)}
        reading = await it.read(3)
        assert [page.status for page in reading.pages] == [PageStatus.OK, PageStatus.BLANK, PageStatus.OK]
        assert len(it.engine.submitted) == 2
        assert reading.text == "\n\n".join(expected_text(3, page) for page in (1, 3))
        assert not reading.is_partial
        reading = await it.read(3, reads_blank_pages=True)
        assert [page.status for page in reading.pages] == [PageStatus.OK] * 3


async def test_document_of_blank_pages_is_an_answer_without_confidence() -> None:
    async with bench() as it:
        it.source.ink = dict.fromkeys((1, 2), PageInk(marks=0, ink_ratio=0.0))
        reading = await it.read(2)
    assert (reading.text, reading.confidence, reading.finish_reason) == ("", None, FinishReason.STOP)


async def test_text_that_the_page_cannot_hold_is_not_given() -> None:
    async with bench() as it:
        it.source.ink = {1: PageInk(marks=1, ink_ratio=0.01)}
        page = (await it.read(1)).pages[0]
    assert len(expected_text(1, 1)) > 24
    assert (page.status, page.text, page.regions) == (PageStatus.UNREADABLE, "", ())
    assert page.result is not None


async def test_uncertain_answer_for_a_page_with_little_print_is_not_given() -> None:
    async with bench() as it:
        it.source.ink = {1: PageInk(marks=11, ink_ratio=0.01)}
        page = (await it.read(1)).pages[0]
        assert page.result is not None
        assert page.status is PageStatus.OK
        above = page.result.confidence + 0.001
        assert (await it.read(1, min_confidence=above)).pages[0].status is PageStatus.UNREADABLE
        # A task whose answer is not the page's text says nothing of the page.
        it.source.ink = {1: PageInk(marks=1, ink_ratio=0.01)}
        assert (await it.read(1, Task.DESCRIBE)).pages[0].status is PageStatus.OK


def engine_of_lines() -> FakeEngine:
    return FakeEngine(geometry=NANO_GEOMETRY)


async def test_a_page_of_which_nothing_could_be_made_is_read_by_its_lines_too() -> None:
    few, more = PageInk(marks=1, ink_ratio=0.01), PageInk(marks=40, ink_ratio=0.01)
    async with bench(engine=engine_of_lines()) as it:
        it.source.ink = {1: few, 2: few, 3: replace(few, marks=500)}
        it.source.ink_of_lines = {1: more}
        pages = (await it.read(3)).pages
        chosen = (await it.read(3, layout=ReadingLayout.PAGE)).pages
        asked = [order.lines_from_views for order in it.source.orders]
    assert [page.status for page in pages] == [PageStatus.OK, PageStatus.UNREADABLE, PageStatus.OK]
    assert [region.box_px for region in pages[0].regions] == [STRIP.box_px]
    # Only those with little print, and never where the client has chosen how.
    assert [page.status for page in chosen] == [PageStatus.UNREADABLE, PageStatus.UNREADABLE, PageStatus.OK]
    assert (sorted(asked[:5]), asked[5:]) == ([1, 1, 2, 2, 2], [0, 0, 0])


async def test_a_page_by_lines_that_was_not_read_surely_is_decoded_once_more_for_larger_print(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Its words have all probabilities, most of them too low.
    monkeypatch.setattr("shared.deepseek_ocr.read_strips.LEAST_SURE", 0.0)
    async with bench(engine=engine_of_lines()) as it:
        it.source.ink_of_lines = {1: PageInk(marks=500, ink_ratio=0.1), 2: PageInk(marks=500, ink_ratio=0.1)}
        deadline = Deadline(60)
        renewed: list[int] = []
        monkeypatch.setattr(deadline, "renew", lambda: renewed.append(len(it.source.orders)))
        (page,) = (await it.read(1, layout=ReadingLayout.LINES, deadline=deadline)).pages
        # Before the page is decoded once more, and when it is finished.
        assert renewed == [1, 2]
        orders = [(order.lines_from_views, order.em_px, order.turn_degrees) for order in it.source.orders]
        assert orders == [(1, EM_PX, None), (1, LARGE_EM_PX, 0)]
        assert page.status is PageStatus.OK
        it.source.fail_larger = True
        (page,) = (await it.read(1, layout=ReadingLayout.LINES)).pages
        assert (page.status, it.source.num_failed) == (PageStatus.OK, 1)
        assert not it.source.held


FEW, MANY = PageInk(marks=1, ink_ratio=0.01), PageInk(marks=500, ink_ratio=0.1)
HALF_READ = replace(
    MANY, lines=tuple(InkLine((520, y, 860, y + 24), (45, 93, 45, 60), 14.0) for y in range(40, 400, 40))
)
"""Print of which the fake's text accounts for a part."""


class UnevenEngine(FakeEngine):
    """Gives each answer the next confidence, and no text where that is 0."""

    def __init__(self, confidences: Iterable[float], **options: Any) -> None:
        super().__init__(**options)
        self._confidences = iter(confidences)

    def step(self) -> list[SequenceEvent]:
        return [self._judged(event) if isinstance(event, SequenceResult) else event for event in super().step()]

    def _judged(self, result: SequenceResult) -> SequenceResult:
        confidence = next(self._confidences)
        return replace(result, confidence=confidence, text=result.text if confidence else "")


class ShorteningEngine(UnevenEngine):
    """As above, and leaves out the second half of each text but the first."""

    num_judged = 0

    def _judged(self, result: SequenceResult) -> SequenceResult:
        judged = super()._judged(result)
        self.num_judged += 1
        return replace(judged, text=judged.text[: len(judged.text) // 2]) if self.num_judged > 1 else judged


@pytest.mark.parametrize(
    ("turned", "as_is", "confidences", "status"),
    [
        pytest.param(FEW, MANY, [0.9, 0.9], PageStatus.OK, id="readable as it is"),
        pytest.param(FEW, HALF_READ, [0.9, 0.9], PageStatus.OK, id="partly readable as it is"),
        pytest.param(FEW, MANY, [0.0, 0.7], PageStatus.OK, id="nothing seen when turned"),
        pytest.param(FEW, FEW, [0.9, 0.9], PageStatus.UNREADABLE, id="not readable either way"),
        pytest.param(FEW, MANY, [0.9, 0.8], PageStatus.UNREADABLE, id="less sure as it is"),
        pytest.param(MANY, MANY, [0.9], PageStatus.OK, id="readable turned"),
    ],
)
async def test_a_page_that_was_turned_in_vain_is_read_once_more_as_it_is(
    turned: PageInk, as_is: PageInk, confidences: list[float], status: PageStatus
) -> None:
    async with bench(engine=UnevenEngine(confidences)) as it:
        it.source.ink, it.source.turned = {1: turned}, {1: as_is}
        (page,) = (await it.read(1, finds_turned_pages=True)).pages
    assert [order.turn_degrees for order in it.source.orders] == [None, 0][: len(confidences)]
    assert len(it.engine.submitted) == len(confidences)
    is_kept_as_is = status is PageStatus.OK and len(confidences) == 2
    shape = (0, 500, 1000) if is_kept_as_is else (90, 1000, 500)
    assert (page.status, page.turned_degrees, page.width_px, page.height_px) == (status, *shape)
    assert bool(page.text) is (status is PageStatus.OK)


async def test_a_page_that_was_not_turned_is_not_read_again_as_it_is() -> None:
    async with bench() as it:
        it.source.ink = {1: FEW}
        (page,) = (await it.read(1, finds_turned_pages=True)).pages
    assert (page.status, len(it.engine.submitted)) == (PageStatus.UNREADABLE, 1)


async def test_a_turned_page_that_cannot_be_decoded_as_it_is_stays_as_it_was() -> None:
    async with bench() as it:
        it.source.ink, it.source.turned, it.source.fail_as_is = {1: FEW}, {1: MANY}, True
        (page,) = (await it.read(1, finds_turned_pages=True)).pages
    assert (page.status, page.turned_degrees, page.error) == (PageStatus.UNREADABLE, 90, None)
    assert it.source.num_failed == 1


async def test_a_line_in_a_shadow_is_blank_where_nothing_sure_is_read_and_its_text_is_not_streamed() -> None:
    deltas: list[str] = []
    async with bench() as it:
        order = OcrRequest(Task.FREE, None, Mode.TINY, SamplingParams(100), "fake", None)
        pages = {}
        for marks in (1, 500):
            it.source.ink = {1: PageInk(marks, 0.6, is_in_shadow=True)}
            with it.gate.admit() as permit:
                reading = await it.reader.read(b"1", order, permit, on_delta=lambda _, text: deltas.append(text))
            pages[marks] = reading.pages[0]
    assert (pages[1].status, pages[1].text) == (PageStatus.BLANK, "")
    assert (pages[500].status, pages[500].text) == (PageStatus.OK, expected_text(1, 1))
    assert deltas == []


@pytest.mark.parametrize("ink", [FEW, MANY], ids=["little print", "turned"])
@pytest.mark.parametrize("blank_pages", [False, True])
async def test_text_that_another_reading_may_replace_is_not_streamed(ink: PageInk, blank_pages: bool) -> None:
    deltas: list[str] = []
    order = OcrRequest(Task.FREE, None, Mode.SMALL, SamplingParams(100), "fake", None, reads_blank_pages=blank_pages)
    async with bench(engine=engine_of_lines()) as it:
        it.source.ink, it.source.turned = {1: ink, 2: MANY}, {1: MANY} if ink is MANY else {}
        with it.gate.admit() as permit:
            await it.reader.read(b"2", order, permit, on_delta=lambda page, _: deltas.append(page))
    # Where every answer is given as it is, none is replaced.
    assert set(deltas) == ({1, 2} if blank_pages else {2})


@pytest.mark.parametrize(
    ("confidences", "lines_read", "is_by_lines"),
    [
        pytest.param([0.4, 0.9], 1, True, id="lines are surer"),
        pytest.param([0.96, 0.9], 1, False, id="lines are not surer"),
        pytest.param([0.9, 0.0], 1, False, id="nothing seen by lines"),
        pytest.param([0.98], 0, False, id="sure"),
    ],
)
async def test_what_was_read_whole_and_not_surely_is_read_by_its_lines_too(
    confidences: list[float], lines_read: int, is_by_lines: bool
) -> None:
    async with bench(engine=UnevenEngine(confidences, geometry=NANO_GEOMETRY)) as it:
        it.source.ink, it.source.ink_of_lines = {1: HALF_READ}, {1: MANY}
        page = (await it.read(1)).pages[0]
        asked = [order.lines_from_views for order in it.source.orders]
    assert (page.status, asked) == (PageStatus.OK, [2, *[1] * lines_read])
    assert [region.box_px for region in page.regions] == ([STRIP.box_px] if is_by_lines else [])


@pytest.mark.parametrize(
    ("confidences", "scales", "chosen"),
    [
        pytest.param([0.98], [1.0], 0.98, id="sure"),
        pytest.param([0.9, 0.97], [1.0, 1.25], 0.97, id="sure of the second"),
        pytest.param([0.9, 0.91, 0.94, 0.93], [1.0, 1.25, 0.8, 0.7], 0.94, id="surest of four"),
        pytest.param([0.9, 0.89, 0.0, 0.88], [1.0, 1.25, 0.8, 0.7], 0.9, id="less sure, or nothing seen"),
    ],
)
async def test_few_lines_that_were_not_read_surely_are_read_at_other_sizes_too(
    confidences: list[float], scales: list[float], chosen: float
) -> None:
    async with bench(engine=UnevenEngine(confidences, geometry=NANO_GEOMETRY)) as it:
        it.source.ink, it.source.sizes = {1: replace(HALF_READ, lines=HALF_READ.lines[:3])}, {1: (6, 4)}
        page = (await it.read(1)).pages[0]
        assert [order.scale for order in it.source.orders] == scales
    assert page.result is not None
    assert (page.status, page.result.confidence, page.width_px) == (PageStatus.OK, chosen, 6)


async def test_a_reading_at_another_size_that_leaves_text_out_is_not_taken() -> None:
    async with bench(engine=ShorteningEngine([0.9, 0.99, 0.99, 0.99], geometry=NANO_GEOMETRY)) as it:
        it.source.ink, it.source.sizes = {1: replace(HALF_READ, lines=HALF_READ.lines[:3])}, {1: (6, 4)}
        page = (await it.read(1)).pages[0]
        assert len(it.source.orders) == 4
    assert (page.status, page.text) == (PageStatus.OK, expected_text(1, 1))


@pytest.mark.parametrize(
    ("confidences", "scales", "chosen"),
    [
        pytest.param([0.3, 0.9, 0.98], [1.0, 1.0, 1.25, 0.8], 0.98, id="readable"),
        pytest.param([0.3, 0.9, 0.3, 0.3], [1.0, 1.0, 1.25, 0.8, 0.7], 0.9, id="readable once"),
        pytest.param([0.3] * 4, [1.0, 1.0, 1.25, 0.8, 0.7], None, id="unreadable"),
    ],
)
async def test_a_small_image_of_which_nothing_could_be_made_is_read_at_other_sizes_too(
    confidences: list[float], scales: list[float], chosen: float | None
) -> None:
    async with bench(engine=UnevenEngine(confidences, geometry=NANO_GEOMETRY)) as it:
        it.source.ink, it.source.sizes = {1: replace(FEW, marks=20)}, {1: (6, 4)}
        page = (await it.read(1)).pages[0]
        assert [order.scale for order in it.source.orders] == scales
    assert page.status is (PageStatus.UNREADABLE if chosen is None else PageStatus.OK)
    assert bool(page.text) == (chosen is not None)
    if chosen is not None:
        assert page.result is not None
        assert page.result.confidence == chosen


@pytest.mark.parametrize(("marks", "status"), [(2, PageStatus.OK), (0, PageStatus.BLANK)])
async def test_a_page_with_marks_on_which_nothing_was_seen_is_read_by_its_lines(marks: int, status: PageStatus) -> None:
    async with bench(engine=UnevenEngine([0.0, 0.9], geometry=NANO_GEOMETRY)) as it:
        it.source.ink, it.source.ink_of_lines = {1: PageInk(marks, 0.01, noise=20.0)}, {1: MANY}
        page = (await it.read(1)).pages[0]
        asked = [order.lines_from_views for order in it.source.orders]
    assert (page.status, bool(page.text)) == (status, status is PageStatus.OK)
    assert asked == ([2, 1] if marks else [2])


@pytest.mark.parametrize("given", [{"layout": ReadingLayout.PAGE}, {"reads_blank_pages": True}])
async def test_a_page_is_read_once_where_the_client_wants_the_answer_as_it_is(given: dict[str, Any]) -> None:
    few_lines = replace(HALF_READ, lines=HALF_READ.lines[:3])
    async with bench(engine=UnevenEngine([0.9, 0.9, 0.9, 0.9], geometry=NANO_GEOMETRY)) as it:
        it.source.ink, it.source.ink_of_lines = {1: HALF_READ}, {1: MANY}
        await it.read(1, **given)
        # Few lines of a large page are read well whole.
        it.source.ink = {1: few_lines}
        await it.read(1)
        assert len(it.source.orders) == 2


async def test_a_second_decoding_that_fails_leaves_the_page_as_it_was() -> None:
    async with bench(engine=engine_of_lines()) as it:
        it.source.ink = {1: PageInk(marks=1, ink_ratio=0.01)}
        it.source.fail_lines = True
        page = (await it.read(1)).pages[0]
    assert (page.status, page.error) == (PageStatus.UNREADABLE, None)


@pytest.mark.parametrize(
    ("reason", "num_lines", "share"),
    [(FinishReason.STOP, 1, 0.25), (FinishReason.LENGTH, 1, 1.0), (FinishReason.STOP, 0, 1.0)],
)
def test_a_page_that_a_token_limit_cut_is_not_taken_for_a_photograph(
    reason: FinishReason, num_lines: int, share: float
) -> None:
    page = SimpleNamespace(strips=[replace(STRIP, row=row) for row in (0, 0, 1, 2, 3)])
    result = SimpleNamespace(finish_reason=reason)
    assert _share_read(page, result, [None] * num_lines) == share  # type: ignore[arg-type, list-item]


async def test_print_that_nothing_answers_to_is_told_and_lowers_the_confidence() -> None:
    line = InkLine((40, 40, 360, 70), (45, 93, 45, 60), 14.0)
    column = tuple(replace(line, box_px=(520, y, 860, y + 24)) for y in range(40, 400, 40))
    async with bench() as it:
        it.source.ink = {1: PageInk(500, 0.1, lines=column)}
        page, other = (await it.read(2)).pages
        assert page.result is not None
        assert page.account is not None
        assert page.account.coverage < 0.6
        assert all(box[0] == 520 for box in page.account.unread)
        assert page.is_partly_read
        assert page.confidence == pytest.approx(page.result.confidence * page.account.coverage)
        assert (other.account, other.is_partly_read) == (None, False)
        assert not (await it.read(1, min_coverage=0.0)).pages[0].is_partly_read
        assert (await it.read(1, Task.DESCRIBE)).pages[0].account is None


class LoopingEngine(FakeEngine):
    """Reads every first page as a loop that was cut."""

    def step(self) -> list[SequenceEvent]:
        events = super().step()
        return [
            replace(event, finish_reason=FinishReason.REPETITION)
            if isinstance(event, SequenceResult) and self.num_results < 1
            else event
            for event in events
        ]

    @property
    def num_results(self) -> int:
        self._results = getattr(self, "_results", -1) + 1
        return self._results


async def test_reading_goes_on_in_what_a_loop_left_unread() -> None:
    line = InkLine((40, 40, 360, 70), (45, 93, 45, 60), 14.0)
    column = tuple(replace(line, box_px=(520, y, 860, y + 24)) for y in range(40, 400, 40))
    deltas: list[str] = []
    async with bench(engine=LoopingEngine()) as it:
        it.source.ink = {1: PageInk(500, 0.1, lines=column)}
        order = OcrRequest(Task.FREE, None, Mode.TINY, SamplingParams(100), "fake", None)
        with it.gate.admit() as permit:
            reading = await it.reader.read(b"1", order, permit, on_delta=lambda _, text: deltas.append(text))
        (page,) = reading.pages
        whole, part = it.engine.submitted
    assert page.result is not None
    assert page.finish_reason is FinishReason.STOP
    assert "".join(deltas) == page.text == "\n".join("".join(fake_tokens(each)) for each in (whole, part))
    assert page.result.completion_tokens == len(fake_tokens(whole)) + len(fake_tokens(part))
    ((_, box_px),) = [(order.page, order.cut_px) for order in it.source.orders if order.cut_px]
    assert box_px is not None
    assert box_px[0] < 520 < 860 < box_px[2]


async def test_each_finished_page_renews_the_deadline() -> None:
    async with bench(page_slots=1) as it:
        clock = LoopClock()
        reading = await it.read(12, deadline_s=60, on_page=lambda _: clock.forward(50))
    assert [page.status for page in reading.pages] == [PageStatus.OK] * 12


async def test_deadline_gives_the_finished_pages_and_names_the_others() -> None:
    async with bench(page_slots=1) as it:
        finished: list[int] = []
        clock = LoopClock()

        def note(page: PageResult) -> None:
            finished.append(page.page)
            it.engine.hold()
            clock.forward(61)

        reading = await it.read(3, deadline_s=60, on_page=note)
    assert [page.status for page in reading.pages] == [PageStatus.OK, PageStatus.FAILED, PageStatus.FAILED]
    assert all(isinstance(page.error, DeadlineError) and page.error.retryable for page in reading.pages[1:])
    assert finished == [1, 2, 3]


async def test_deadline_without_any_page_is_an_error() -> None:
    async with bench() as it:
        it.engine.hold()
        with pytest.raises(DeadlineError):
            await it.read(3, deadline_s=0.05)
        assert sorted(it.engine.cancelled) == sorted(request.sequence_id for request in it.engine.submitted)


def shows_what_is_read_again(source: Source, kind: str) -> None:
    """Let the first page be one that is read once more in the given way."""
    if kind == "sizes":
        source.ink, source.sizes = {1: replace(HALF_READ, lines=HALF_READ.lines[:3])}, {1: (6, 4)}
    elif kind == "lines":
        source.ink, source.ink_of_lines = {1: HALF_READ}, {1: MANY}
    else:
        source.ink, source.turned = {1: FEW}, {1: MANY}


READ_AGAIN = [("sizes", PageStatus.OK), ("lines", PageStatus.OK), ("turned", PageStatus.UNREADABLE)]
"""Ways of reading a page again, and what the first reading gives."""


@pytest.mark.parametrize(("kind", "status"), READ_AGAIN)
async def test_a_deadline_that_strikes_while_a_page_is_read_again_leaves_what_was_read(
    kind: str, status: PageStatus
) -> None:
    async with bench(engine=UnevenEngine([0.9] * 2, geometry=NANO_GEOMETRY)) as it:
        shows_what_is_read_again(it.source, kind)
        it.engine.hold(after=1)
        (page,) = (await it.read(1, deadline_s=0.2)).pages
        assert len(it.engine.submitted) == 2
        assert it.engine.cancelled == [it.engine.submitted[1].sequence_id]
    assert (page.status, page.error, bool(page.text)) == (status, None, status is PageStatus.OK)


@pytest.mark.parametrize(("kind", "status"), READ_AGAIN)
async def test_a_page_is_not_read_again_where_the_document_has_less_time_left_than_it_took(
    kind: str, status: PageStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deadline, "total_left_s", 1e-6)
    async with bench(engine=UnevenEngine([0.9] * 2, geometry=NANO_GEOMETRY)) as it:
        shows_what_is_read_again(it.source, kind)
        (page,) = (await it.read(1)).pages
        assert len(it.engine.submitted) == len(it.source.orders) == 1
    assert page.status is status


async def test_a_client_that_leaves_while_a_page_is_read_again_gets_nothing() -> None:
    finished: list[PageResult] = []
    async with bench(engine=UnevenEngine([0.9] * 2, geometry=NANO_GEOMETRY)) as it:
        shows_what_is_read_again(it.source, "sizes")
        it.engine.hold(after=1)
        reading = asyncio.create_task(it.read(1, on_page=finished.append))
        await eventually(lambda: len(it.engine.submitted) == 2)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert not finished


async def test_trying_again_after_the_deadline_helps_only_who_was_not_alone() -> None:
    async with bench(page_slots=8) as it:
        it.engine.hold()
        with pytest.raises(DeadlineError) as alone:
            await it.read(3, deadline_s=0.05)
        other = asyncio.create_task(it.read(1))
        with pytest.raises(DeadlineError) as among_others:
            await it.read(3, deadline_s=0.05)
        it.engine.release()
        await other
    assert not alone.value.retryable
    assert among_others.value.retryable


async def test_a_document_that_certainly_takes_too_long_is_refused_with_the_pages_that_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.engine.fake.SequenceTimings", lambda **_: SequenceTimings(0, 1, 2, 7))
    async with bench(engine=FakeEngine(batch_size=2)) as it:

        async def read(num_pages: int, total_s: float | None) -> DocumentResult:
            return await it.read(num_pages, deadline=Deadline(60, total_s))

        # Nothing is known yet.
        assert len((await read(9, 25)).pages) == 9
        num_decoded = it.source.num_decoded
        with pytest.raises(DocumentTooLongError) as refused:
            await read(5, 25)
        # Two batches of two pages, ten seconds each.
        assert refused.value.public == {"limit": 4}
        assert it.source.num_decoded == num_decoded
        assert len((await read(4, 25)).pages) == 4
        # A page may be quicker than those before it, and a batch is always tried.
        assert len((await read(2, 5)).pages) == 2
        assert len((await read(9, None)).pages) == 9


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("engine_failed", EngineError),
        ("engine_lost", EngineLostError),
        ("model_not_found", ModelNotFoundError),
        ("too_many_vision_tokens", TooManyVisionTokensError),
        ("never heard of", EngineError),
    ],
)
async def test_engines_failure_keeps_its_code(code: str, error: type[Exception]) -> None:
    async with bench(engine=FakeEngine(fail_with={prompt_for(Task.FREE): code})) as it:
        with pytest.raises(error):
            await it.read(2)


async def test_lost_engine_is_never_silence() -> None:
    async with bench() as it:
        it.engine.hold()
        task = asyncio.create_task(it.read(1))
        await eventually(lambda: it.engine.submitted)
        it.engine.lose()
        with pytest.raises(EngineLostError):
            await task


async def test_cancelled_request_leaves_nothing_in_the_engine() -> None:
    async with bench() as it:
        it.engine.hold()
        task = asyncio.create_task(it.read(3))
        await eventually(lambda: len(it.engine.submitted) == 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(it.engine.cancelled) == sorted(request.sequence_id for request in it.engine.submitted)
        assert it.metrics.counter("inference_total").labels("fake", "cancelled")._value.get() == 3


async def test_page_that_no_sequence_could_hold_is_refused_at_once() -> None:
    async with bench(plan=replace(PLAN, num_vision_tokens=8192)) as it:
        with pytest.raises(TooManyVisionTokensError) as refusal:
            await it.read(1)
        assert it.engine.submitted == []
        assert refusal.value.public == {"vision_tokens": 8192, "limit": 8192}


async def test_error_of_a_known_kind_wins_over_what_it_caused() -> None:
    async with bench() as it:
        it.source.fail = {1}
        with pytest.raises(UndecodableError) as failure:
            await it.read(1)
    assert not isinstance(failure.value, TooManyPixelsError)


async def test_counts_add_up() -> None:
    async with bench() as it:
        reading = await it.read(3)
        count = it.metrics.registry.get_sample_value
        assert count("deepsynth_pages_total") == 3
        assert count("deepsynth_inference_total", {"model_id": "fake", "status": "ok"}) == 3
        assert count("deepsynth_output_tokens_total") == sum(result.completion_tokens for result in reading.results)
        assert count("deepsynth_finished_total", {"finish_reason": "stop"}) == 3
        assert count("deepsynth_stage_duration_seconds_count", {"stage": "decode"}) == 3


async def test_several_files_are_the_pages_of_one_document() -> None:
    ended: list[int] = []
    deltas: dict[int, str] = {}
    async with bench(page_slots=2) as it:
        request = OcrRequest(Task.FREE, None, Mode.TINY, SamplingParams(100, 1.0, 7), "fake", None)
        with it.gate.admit() as permit:
            document = await it.reader.read(
                [b"2", b"1", b"3"],
                request,
                permit,
                on_delta=lambda page, text: deltas.__setitem__(page, deltas.get(page, "") + text),
                on_page=lambda page: ended.append(page.page),
            )
        seeds = {request.params.seed for request in it.engine.submitted}
    assert [page.page for page in document.pages] == [1, 2, 3, 4, 5, 6]
    assert sorted(ended) == [1, 2, 3, 4, 5, 6]
    assert [deltas[page.page] for page in document.pages] == [page.text for page in document.pages]
    assert seeds == {request.params.for_page(page).seed for page in range(1, 7)}


async def test_several_files_have_no_more_pages_than_one_may() -> None:
    limits = IntakeLimits()
    request = OcrRequest(Task.FREE, None, Mode.TINY, SamplingParams(100), "fake", None)
    files = [b"9"] * (limits.max_pdf_pages // 9 + 1)
    async with bench() as it:
        with it.gate.admit() as permit, pytest.raises(TooManyPagesError) as caught:
            await it.reader.read(files, request, permit)
        assert it.gate.num_running == 0
    assert caught.value.public == {"limit": limits.max_pdf_pages}


@pytest.mark.parametrize(("accuracy", "status"), [(0.38, PageStatus.UNREADABLE), (0.40, PageStatus.OK)])
async def test_text_of_which_hardly_a_word_is_right_is_not_given(accuracy: float, status: PageStatus) -> None:
    known = Calibration(*2 * (MonotoneMap(0.0, (0.0,), (accuracy,)),))
    async with bench(engine=FakeEngine(calibration=known)) as it:
        page = (await it.read(1)).pages[0]
        (whole,) = (await it.read(1, reads_blank_pages=True)).pages
        (wanted,) = (await it.read(1, min_confidence=0.0)).pages
        (described,) = (await it.read(1, Task.DESCRIBE)).pages
    assert (page.status, bool(page.text), page.words is None) == (
        status,
        status is PageStatus.OK,
        status is not PageStatus.OK,
    )
    assert whole.words is not None
    assert whole.words.has_low_accuracy
    assert {whole.status, wanted.status, described.status} == {PageStatus.OK}


async def test_calibration_is_not_used_for_adapters_and_samples() -> None:
    half = Calibration(*2 * (MonotoneMap(0.0, (0.0,), (0.5,)),))
    async with bench(engine=FakeEngine(adapter_slots=1, calibration=half)) as it:
        it.engine.fake.load_adapter("letters@1", b"weights")
        with it.gate.admit() as permit:
            found = {}
            for model_id, temperature in (("fake", 0.0), ("letters@1", 0.0), ("fake", 1.0)):
                params, wanted = SamplingParams(100, temperature, 1), Wanted(Granularity.WORD)
                request = OcrRequest(Task.FREE, None, Mode.TINY, params, model_id, None, confidence=wanted)
                found[model_id, temperature] = (await it.reader.read(b"1", request, permit)).pages[0].words
    assert found["fake", 0.0].is_calibrated
    assert {word.confidence for word in found["fake", 0.0].words} == {0.5}
    for other in (("letters@1", 0.0), ("fake", 1.0)):
        assert not found[other].is_calibrated
        assert {word.confidence for word in found[other].words} != {0.5}
