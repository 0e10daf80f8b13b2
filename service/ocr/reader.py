"""Reads documents: images are decoded one after another, pages read concurrently and joined in order.

Knows the page source and the engine by their protocols alone, and nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, cast

from service.admission.deadline import Deadline
from service.admission.gate import Gate, Permit
from service.admission.slots import PageSlots
from service.engine.protocol import (
    EngineHandle,
    SequenceDelta,
    SequenceEvent,
    SequenceFailure,
    SequenceRequest,
    SequenceResult,
)
from service.errors import (
    CapacityError,
    DeadlineError,
    DecodeTimeoutError,
    DeepSynthError,
    DocumentTooLongError,
    EngineError,
    EngineLostError,
    InternalError,
    TooManyPagesError,
    TooManyVisionTokensError,
    error_classes,
    let_go,
    whole_seconds,
)
from service.intake.document import Document, contents_by_format
from service.intake.limits import Box, DecodeTask, IntakeLimits
from service.intake.pages import Contents, DecodedPage
from service.intake.print_task import PrintTask
from service.ocr.confidence import PageConfidence, judge
from service.ocr.continuation import joined, parts_to_read, separator
from service.ocr.coverage import print_task
from service.ocr.jpeg import encode_jpeg
from service.ocr.line_reading import read_lines
from service.ocr.metrics import TelemetryObserver
from service.ocr.outcome import HOPELESS_SHARE, JUNK_SHARE, PageStatus, status_of
from service.ocr.request import OcrRequest
from service.ocr.together import PageSplitter, split_result
from shared.contract.answer import FinishReason
from shared.contract.calibration import Calibration
from shared.contract.prompts import PromptSet, Task, prompt_for
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.grounding import Region, parse_grounded
from shared.deepseek_ocr.reading_layout import ReadingLayout, lines_from_views
from shared.deepseek_ocr.second_reading import FEWEST_LINES, SURE, has_lost_text, other_sizes, prefers_second
from shared.images.accounting import Account
from shared.images.canvases import LARGE_EM_PX, LOW_PX, SIDE_PX, Strip
from shared.images.page_ink import MOST_MARKS, Turn

_log = logging.getLogger(__name__)

PAGE_BREAK = "\n\n"
PACE_SMOOTHING = 0.2
"""Weight of the newest page in the time that a page is expected to take."""
MAX_SLOW_PAGES = 3
"""After so many pages that took too long to decode, the rest of a file is not tried: others wait for its process."""
LABELS_ARE_TEXT = {Task.OCR, Task.LOCATE}
_TRANSCRIBES = {Task.FREE, Task.MARKDOWN, Task.OCR}
"""Tasks whose answer is the page's own text, so that it can be held against what the page shows."""
_WITHOUT_TEXT = {PageStatus.BLANK, PageStatus.UNREADABLE}
_WORST_FIRST = (FinishReason.REPETITION, FinishReason.LENGTH, FinishReason.STOP)

DeltaSink = Callable[[int, str], None]
"""Takes a page number and the text a step added to it."""


class PageSource(Protocol):
    """Turns bytes into pages; implemented by `service.intake.pool.ImagePool`."""

    async def open(self, document: Document) -> Contents:
        """Find out which pages to read, or raise the `DeepSynthError` that concerns all of them."""

    async def decode(self, document: Document, task: DecodeTask) -> DecodedPage:
        """Decode one page, or raise the `DeepSynthError` that concerns it."""

    async def account(self, document: Document, task: PrintTask) -> Account:
        """Hold a text against the print of one of its pages."""

    def close(self, document: Document) -> None:
        """Free what is kept of a document between its pages."""


@dataclass(frozen=True, slots=True)
class PageResult:
    """What became of one page; `slot_wait_s` and `decode_s` are the seconds that it took outside the engine."""

    page: int
    status: PageStatus
    width_px: int | None = None
    """None where the page could not be decoded, as is the height."""
    height_px: int | None = None
    text: str = ""
    regions: tuple[Region, ...] = ()
    result: SequenceResult | None = None
    """None where the engine read nothing: a blank page, or one that failed."""
    is_damaged: bool = False
    """Whether a part of it is missing in the file."""
    words: PageConfidence | None = None
    """Confidences of its words; None where the request asks for none and the model has no calibration, or the page has
    no text to show."""
    turned_degrees: Turn = 0
    """By how much it was turned clockwise, after what the file says, to be upright."""
    account: Account | None = None
    """What of its print the text accounts for; None where that is not known."""
    is_partly_read: bool = False
    """Whether that is less than was asked for."""
    error: DeepSynthError | None = None
    """Why it failed."""
    slot_wait_s: float = 0.0
    decode_s: float = 0.0
    model_id: str | None = None
    """What read it; None where nothing did."""
    second_failed: bool = False
    """Whether it should have been read again by a larger model, and could not."""

    @property
    def finish_reason(self) -> FinishReason | None:
        """None where the engine read nothing."""
        return None if self.result is None else self.result.finish_reason

    @property
    def confidence(self) -> float | None:
        """Geometric mean of the chosen tokens' probabilities, times coverage; None where the engine read nothing."""
        return None if self.result is None else self.result.confidence * (self.account.coverage if self.account else 1)


PageSink = Callable[[PageResult], None]
"""Takes a finished page."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the pages of one file share."""

    document: Document
    pages: Sequence[int]
    """Those to read, by their numbers in the file."""
    num_before: int
    """Pages of the files before this one."""
    request: OcrRequest
    permit: Permit | None
    finish: PageSink
    on_delta: DeltaSink | None
    deadline: Deadline | None
    slow: list[int] = field(default_factory=list)
    """Pages that took too long to decode."""

    def renew(self) -> None:
        """Renew the deadline, if there is one."""
        if self.deadline is not None:
            self.deadline.renew()

    def has_time(self, seconds: float) -> bool:
        """Whether the deadline leaves the document more than this."""
        return self.deadline is None or (not self.deadline.has_passed and self.deadline.total_left_s > seconds)

    @contextlib.contextmanager
    def keeping_first(self) -> Iterator[None]:
        """Read a page once more: a deadline that passes meanwhile ends that reading, and does not fail the page.

        Nothing may be awaited after that, as `has_time` tells.
        """
        self.renew()
        try:
            yield
        except asyncio.CancelledError:
            if self.deadline is None or not self.deadline.has_passed:
                raise


@dataclass(frozen=True, slots=True)
class _Decoded:
    """A page that is to be read, and what is known of its result."""

    page: DecodedPage
    result: PageResult
    began_s: float
    """When it was begun, by the reader's clock."""


@dataclass(frozen=True, slots=True)
class DocumentResult:
    """A whole document; pages in the order of their numbers, none missing."""

    model_id: str
    pages: Sequence[PageResult]
    seed: int | None = None
    """Of sampling; None if greedy."""
    page_counts: tuple[int, ...] = ()
    """Pages of each of its files."""

    def place_of(self, page: int) -> tuple[int, int]:
        """Index of a page's file, and its number there."""
        file = 0
        # Pages of one file keep their numbers, whatever is selected; several files are read whole.
        while file < len(self.page_counts) - 1 and page > self.page_counts[file]:
            page -= self.page_counts[file]
            file += 1
        return file, page

    @property
    def results(self) -> list[SequenceResult]:
        """What the engine read, page by page."""
        return [page.result for page in self.pages if page.result is not None]

    @property
    def is_partial(self) -> bool:
        """Whether a page failed."""
        return any(page.status is PageStatus.FAILED for page in self.pages)

    @property
    def text(self) -> str:
        """Pages with text, joined by a blank line."""
        return PAGE_BREAK.join(page.text for page in self.pages if page.text)

    @property
    def finish_reason(self) -> FinishReason:
        """The worst of the pages'."""
        reasons = {result.finish_reason for result in self.results}
        return next((reason for reason in _WORST_FIRST if reason in reasons), FinishReason.STOP)

    @property
    def confidence(self) -> float | None:
        """Geometric mean of the pages', weighted by their tokens; None where the engine read none."""
        read = [
            (page.result.completion_tokens, page.confidence)
            for page in self.pages
            if page.result is not None and page.confidence is not None
        ]
        tokens = sum(count for count, _ in read)
        if not tokens:
            return min((confidence for _, confidence in read), default=None)
        return math.exp(sum(count * math.log(max(confidence, 1e-9)) for count, confidence in read) / tokens)


class DocumentReader:
    """Reads documents; holds no state of any of them.

    Args:
        source: Turns files into pages.
        engine: Reads pages.
        gate: Of the requests.
        limits: Bounds on documents.
        observer: Counts pages and times.
        slots: Where each page takes a slot; None for the gate's own.
        clock: In seconds.
    """

    def __init__(
        self,
        *,
        source: PageSource,
        engine: EngineHandle,
        gate: Gate,
        limits: IntakeLimits,
        observer: TelemetryObserver,
        slots: PageSlots | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._engine = engine
        self._gate = gate
        self._slots = slots or gate.page_slots
        self._page_s = 0.0
        self.limits = limits
        self._observer = observer
        self._clock = clock

    async def read(
        self,
        data: bytes | Sequence[bytes],
        request: OcrRequest,
        permit: Permit | None,
        *,
        deadline: Deadline | None = None,
        on_delta: DeltaSink | None = None,
        on_page: PageSink | None = None,
    ) -> DocumentResult:
        """Read a document. A page that fails costs that page; the rest is read.

        Args:
            data: The file, or several whose pages are numbered as those of one document.
            request: A checked request; its selection is of one file.
            permit: The request's place, marked running with the first page; None: it has none.
            deadline: Renewed by each finished page, and by each that is begun where pages are read together; when it
                passes, the pages that are missing have failed. None: none.
            on_delta: Called with each piece of text as it arrives, pages interleaved.
            on_page: Called with each page when it is finished, in the order in which they finish.

        Returns:
            The result of every page.

        Raises:
            DeepSynthError: A file could not be opened, or no page could be read.
        """
        files = [data] if isinstance(data, bytes) else data
        client = permit.client if permit is not None else ""
        documents = [Document(file, self.limits, request.selection, client=client) for file in files]
        finished: dict[int, PageResult] = {}

        def finish(page: PageResult) -> None:
            # Its frames hold the page, and this document.
            let_go(page.error)
            finished[page.page] = page
            if deadline is not None:
                deadline.renew()
            self._observer.page_finished(page.status)
            if on_page is not None:
                on_page(page)

        readings: list[_Reading] = []

        def begin(document: Document, pages: Sequence[int]) -> _Reading:
            num_before = sum(len(reading.pages) for reading in readings)
            self._check_total(num_before + len(pages))
            if deadline is not None:
                self._check_time(num_before + len(pages) - len(finished), deadline)
            readings.append(_Reading(document, pages, num_before, request, permit, finish, on_delta, deadline))
            return readings[-1]

        late: DeadlineError | None = None
        try:
            async with deadline.enforced() if deadline is not None else contextlib.nullcontext():
                read = self._read_together if request.pages_together else self._read_files
                await read(documents, begin)
        except DeadlineError as error:
            late = error
            # Alone, and without one page in all that time: the same again would end the same way.
            late.retryable = bool(finished) or self._gate.num_waiting + self._gate.num_running > 1
        finally:
            for document in documents:
                self._source.close(document)
        if late is not None and (not finished or len(readings) < len(documents)):
            raise late
        numbers = [reading.num_before + page for reading in readings for page in reading.pages]
        for number in numbers:
            if number not in finished:
                finish(PageResult(number, PageStatus.FAILED, error=late))
        pages = [finished[number] for number in numbers]
        errors = [page.error for page in pages if page.error is not None]
        if len(errors) == len(pages):
            raise errors[0]
        counts = tuple(len(reading.pages) for reading in readings)
        return DocumentResult(request.model_id, pages, request.params.seed, counts)

    async def _read_files(
        self, documents: Sequence[Document], begin: Callable[[Document, Sequence[int]], _Reading]
    ) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for document in documents:
                    reading = begin(document, await self._open(document))
                    for page in reading.pages:
                        await self._start_page(group, page, reading)
                    self._source.close(document)
        except BaseExceptionGroup as failures:
            # What a page may fail with is its result, so this is a file that cannot be opened, or a bug; it keeps its
            # own traceback.
            raise _first_reason(failures) from failures

    async def _open(self, document: Document) -> Sequence[int]:
        """The pages to read of a file."""
        with self._observer.opening() as opened:
            contents = contents_by_format(document)
            # Opened with its page: a call of its own would take a turn more.
            document.is_unopened = contents is not None
            pages = (contents or await self._source.open(document)).pages
            opened(len(pages))
        return pages

    async def _read_together(
        self, documents: Sequence[Document], begin: Callable[[Document, Sequence[int]], _Reading]
    ) -> None:
        """Decode all pages, then read those with print in one pass, which takes one page slot."""
        readings = [begin(document, await self._open(document)) for document in documents]
        most = self._engine.info.max_pages_together
        if sum(len(reading.pages) for reading in readings) > most:
            raise TooManyPagesError(public={"field": "pages_together", "limit": most})
        slot_wait_s = await self._take_slot(readings[0])
        try:
            pages = []
            for reading in readings:
                for page in reading.pages:
                    decoded = await self._decode_page(page, reading, slot_wait_s)
                    slot_wait_s = 0.0
                    if decoded is not None:
                        pages.append(decoded)
            if pages:
                await self._read_pass(pages, readings[0])
        finally:
            self._slots.release()

    def _check_total(self, num_pages: int) -> None:
        """One file cannot exceed its own limit; several together may."""
        most = max(self.limits.max_frames, self.limits.max_pdf_pages)
        if num_pages > most:
            raise TooManyPagesError(public={"limit": most})

    def _check_time(self, num_pages: int, deadline: Deadline) -> None:
        """Refuse what would certainly be late: pages are taken to be read in full batches, as quickly as lately."""
        if not self._page_s or math.isinf(deadline.total_left_s):
            return
        batch_size = self._engine.info.batch_size
        # One batch is always tried: times of pages differ.
        most = max(int(deadline.total_left_s / self._page_s), 1) * batch_size
        if num_pages > most:
            raise DocumentTooLongError(public={"limit": most})

    async def cut(self, data: bytes, places: Sequence[tuple[int, Box]], turns: Mapping[int, Turn]) -> list[bytes]:
        """Cut figures out of a document, each from its page decoded once more.

        Args:
            data: The file.
            places: Page numbers, and x1, y1, x2, y2 on the upright page, as `Region.box_px`.
            turns: `PageResult.turned_degrees` of these pages.

        Returns:
            A JPEG file for each place.
        """
        geometry = self._engine.info.geometry
        pages = tuple(sorted({page for page, _ in places}))
        document = Document(data, self.limits, pages)
        cut: list[bytes] = []
        if not pages:
            return cut
        try:
            await self._source.open(document)
            for page, box_px in places:
                task = DecodeTask(
                    page,
                    geometry.default_mode,
                    geometry,
                    wants_image=True,
                    cut_px=box_px,
                    turn_degrees=turns.get(page, 0),
                )
                figure = (await self._source.decode(document, task)).prepared
                cut.append(await asyncio.to_thread(encode_jpeg, figure.arrays[0]))
        finally:
            self._source.close(document)
        return cut

    async def _start_page(self, group: asyncio.TaskGroup, page_of_file: int, reading: _Reading) -> None:
        """Decode a page, then let it be read while the next one is decoded."""
        if self._gives_up(page_of_file, reading):
            return
        slot_wait_s = await self._take_slot(reading)
        is_handed_over = False
        try:
            decoded = await self._decode_page(page_of_file, reading, slot_wait_s)
            if decoded is not None:
                task = group.create_task(self._read_page(decoded, reading))
                # Not in the coroutine: a task that is cancelled before it starts never runs its body.
                task.add_done_callback(lambda _: self._slots.release())
                is_handed_over = True
        finally:
            if not is_handed_over:
                self._slots.release()

    async def _take_slot(self, reading: _Reading) -> float:
        """Seconds that it took."""
        start_s = self._clock()
        with self._observer.waiting():
            await self._slots.acquire(reading.document.client)
        return self._clock() - start_s

    def _gives_up(self, page_of_file: int, reading: _Reading) -> bool:
        """Whether a page is not tried, as too many before it were slow; it has failed then."""
        if len(reading.slow) < MAX_SLOW_PAGES:
            return False
        number = reading.num_before + page_of_file
        reading.finish(PageResult(number, PageStatus.FAILED, error=DecodeTimeoutError("so did pages before it")))
        return True

    async def _decode_page(self, page_of_file: int, reading: _Reading, slot_wait_s: float) -> _Decoded | None:
        """Decode a page; None if it is finished by that: it is blank, or has failed."""
        number = reading.num_before + page_of_file
        if self._gives_up(page_of_file, reading):
            return None
        try:
            if reading.permit is not None:
                reading.permit.mark_running()
            page, decode_s = await self._decode(reading.document, self._decode_task(page_of_file, reading.request))
        except DeepSynthError as error:
            if reading.document.is_unopened:
                raise
            if isinstance(error, DecodeTimeoutError):
                reading.slow.append(number)
            reading.finish(PageResult(number, PageStatus.FAILED, error=error, slot_wait_s=slot_wait_s))
            return None
        result = PageResult(
            number,
            PageStatus.BLANK,
            page.width_px,
            page.height_px,
            is_damaged=page.is_damaged,
            turned_degrees=page.turned_degrees,
            slot_wait_s=slot_wait_s,
            decode_s=decode_s,
        )
        if page.ink.is_blank and not reading.request.reads_blank_pages:
            reading.finish(result)
            return None
        return _Decoded(page, result, self._clock() - decode_s)

    def _decode_task(self, page_of_file: int, request: OcrRequest) -> DecodeTask:
        info = self._engine.info
        is_base = request.model_id == info.model_id
        # Tokens that are given one by one must join to the text, and those between lines have none.
        layout = ReadingLayout.PAGE if request.wants_token_scores else request.layout
        return DecodeTask(
            page_of_file,
            request.mode,
            info.geometry,
            # Many images at once would be too large; all their views are small.
            wants_image=info.prepares_views and not request.pages_together,
            turn_degrees=None if request.finds_turned_pages else 0,
            lines_from_views=0 if request.pages_together else lines_from_views(layout, info.geometry, is_base=is_base),
        )

    async def _decode(self, document: Document, task: DecodeTask) -> tuple[DecodedPage, float]:
        start_s = self._clock()
        with self._observer.decoding() as decoded:
            page = await self._source.decode(document, task)
            decoded(page)
        self._check_tokens(page)
        return page, self._clock() - start_s

    def _check_tokens(self, page: DecodedPage) -> None:
        vision_tokens, limit = page.prepared.plan.num_vision_tokens, self._engine.info.max_sequence_tokens
        if vision_tokens >= limit:
            # Such a sequence could never be admitted by the engine and would wait for ever.
            raise TooManyVisionTokensError(public={"vision_tokens": vision_tokens, "limit": limit})

    async def _decode_again(self, decoded: _Decoded, reading: _Reading, task: DecodeTask) -> DecodedPage | None:
        """Decode a page that was read already in another way; None, and a line in the log, if that fails."""
        document = Document(reading.document.data, self.limits, (task.page,), client=reading.document.client)
        try:
            page = await self._source.decode(document, task)
            self._check_tokens(page)
        except DeepSynthError:
            _log.warning("page %d could not be decoded once more", decoded.result.page, exc_info=True)
            return None
        finally:
            self._source.close(document)
        return page

    async def _read_page(self, decoded: _Decoded, reading: _Reading) -> None:
        page, request = decoded.page, reading.request
        # A line in a shadow is likely to be none; the others are read again if they give no text.
        may_change = (
            page.ink.is_in_shadow
            or page.turned_degrees
            or self._has_other_form(page, request)
            or self._may_be_surer(page, request)
        )
        is_judged = request.task in _TRANSCRIBES and not request.reads_blank_pages
        # The text of a chat cannot be taken back.
        on_delta = None if may_change and is_judged else reading.on_delta
        on_text = None if on_delta is None else partial(on_delta, decoded.result.page)
        result = await self._read_once(decoded, reading, on_text)
        if page.turned_degrees and result.status in _WITHOUT_TEXT:
            result = await self._read_unturned(decoded, reading, result)
        # Print that was misread may be read in another form, and of a number alone on a page a model may see nothing.
        if result.status is PageStatus.UNREADABLE or (result.status is PageStatus.BLANK and page.ink.marks):
            result = await self._read_otherwise(decoded, reading, result)
            if result.status is not PageStatus.OK and self._may_be_surer(page, request):
                result = await self._read_at_other_sizes(decoded, reading, result)
        elif self._may_be_surer(page, request):
            result = await self._read_unsure(decoded, reading, result)
        if result.status is PageStatus.UNREADABLE and page.ink.is_in_shadow:
            result = replace(result, status=PageStatus.BLANK)
        reading.finish(result)

    async def _read_once(
        self, decoded: _Decoded, reading: _Reading, on_text: Callable[[str], None] | None
    ) -> PageResult:
        """Read a page whole, or by its lines if it has come so; a fault is its result."""
        request = reading.request
        try:
            if decoded.page.strips:
                return await self._read_by_lines(decoded, reading, on_text)
            sequence = self._sequence([decoded.page], request, decoded.result.page, is_alone=self._is_alone(reading))
            result = await self._infer(sequence, on_text)
        except DeepSynthError as error:
            return replace(decoded.result, status=PageStatus.FAILED, error=error)
        if result.finish_reason is FinishReason.REPETITION and request.task in _TRANSCRIBES:
            result = await self._read_on(decoded, result, reading, on_text)
        return await self._outcome(decoded, reading, result)

    async def _read_unturned(self, decoded: _Decoded, reading: _Reading, first: PageResult) -> PageResult:
        """Read a page as the file has it, of which nothing could be made once it was turned.

        Unfamiliar signs may look upright in another turn; a text that is at least as sure shows that they are not.
        """
        task = replace(self._decode_task(decoded.page.page, reading.request), turn_degrees=0)
        second: PageResult | None = None
        if self._has_time(decoded, reading):
            with reading.keeping_first():
                other = await self._decode_again(decoded, reading, task)
                if other is None:
                    return first
                result = replace(
                    decoded.result,
                    width_px=other.width_px,
                    height_px=other.height_px,
                    turned_degrees=other.turned_degrees,
                )
                second = await self._read_once(replace(decoded, page=other, result=result), reading, None)
        if second is None or second.status is not PageStatus.OK or second.result is None:
            return first
        # That nothing was read says nothing for the turn, however sure of it a model is.
        least = first.result.confidence if first.result is not None and first.result.text.strip() else 0.0
        return second if second.result.confidence >= least else first

    async def _read_otherwise(self, decoded: _Decoded, reading: _Reading, first: PageResult) -> PageResult:
        """Read a page with little print, of which nothing could be made, by its lines instead of whole, or whole.

        Of a single word a model may see nothing in one form and be sure of it in the other.
        """
        if not self._has_other_form(decoded.page, reading.request):
            return first
        second = await self._read_in_other_form(decoded, reading)
        return second if second is not None and second.status is PageStatus.OK else first

    async def _read_unsure(self, decoded: _Decoded, reading: _Reading, first: PageResult) -> PageResult:
        """Read an image once more that was read whole, but not surely: by its lines, or at other sizes if it has few.

        In a block of many small lines a model may lose its place, which it cannot in a line. The surest text is taken.
        """
        if first.status is not PageStatus.OK or first.result is None or first.result.confidence >= SURE:
            return first
        if len(decoded.page.ink.lines) < FEWEST_LINES:
            return await self._read_at_other_sizes(decoded, reading, first)
        second = await self._read_in_other_form(decoded, reading)
        return second if second is not None and _is_surer(second, first, is_by_lines=True) else first

    async def _read_at_other_sizes(self, decoded: _Decoded, reading: _Reading, first: PageResult) -> PageResult:
        """Read a small image at other sizes until it is read surely."""
        page, best = decoded.page, first
        for size in other_sizes(page.width_px, page.height_px, page.prepared.plan):
            if not self._has_time(decoded, reading):
                break
            task = replace(self._decode_task(page.page, reading.request), turn_degrees=page.turned_degrees, scale=size)
            with reading.keeping_first():
                other = await self._decode_again(decoded, reading, task)
                if other is None:
                    break
                result = await self._read_once(replace(decoded, page=other), reading, None)
                is_complete = best.status is not PageStatus.OK or not has_lost_text(best.text, result.text)
                if is_complete and _is_surer(result, best):
                    best = result
            if best.status is PageStatus.OK and best.result is not None and best.result.confidence >= SURE:
                break
        return best

    async def _read_in_other_form(self, decoded: _Decoded, reading: _Reading) -> PageResult | None:
        """Read a page by its lines that was read whole, or whole; None if it cannot be, or not in time."""
        page = decoded.page
        if not self._has_time(decoded, reading):
            return None
        task = replace(
            self._decode_task(page.page, reading.request),
            turn_degrees=page.turned_degrees,
            lines_from_views=0 if page.strips else 1,
        )
        with reading.keeping_first():
            other = await self._decode_again(decoded, reading, task)
            if other is not None and bool(other.strips) != bool(page.strips):
                return await self._read_once(replace(decoded, page=other), reading, None)
        return None

    def _has_time(self, decoded: _Decoded, reading: _Reading) -> bool:
        """Whether a page may be read once more: the document has more time left than the page has taken so far."""
        return reading.has_time(self._clock() - decoded.began_s)

    def _has_other_form(self, page: DecodedPage, request: OcrRequest) -> bool:
        """Whether a page is read otherwise if nothing could be made of it."""
        return page.ink.marks < MOST_MARKS and self._may_choose_form(request)

    def _may_be_surer(self, page: DecodedPage, request: OcrRequest) -> bool:
        """Whether a page that is read whole is read once more if its text is not sure."""
        has_lines = len(page.ink.lines) >= FEWEST_LINES
        has_form = has_lines or bool(other_sizes(page.width_px, page.height_px, page.prepared.plan))
        # Where every answer is given as it is, none is replaced.
        return not page.strips and has_form and not request.reads_blank_pages and self._may_choose_form(request)

    def _may_choose_form(self, request: OcrRequest) -> bool:
        """Whether a page may be read whole and by its lines, as nothing says how."""
        info = self._engine.info
        is_chosen = request.layout is ReadingLayout.PAGE or request.wants_token_scores
        reads_lines = lines_from_views(request.layout, info.geometry, is_base=request.model_id == info.model_id) > 0
        return not is_chosen and reads_lines

    async def _read_by_lines(
        self, decoded: _Decoded, reading: _Reading, on_text: Callable[[str], None] | None
    ) -> PageResult:
        """Read a page's lines, several canvases of them at once."""
        request, number, strips = reading.request, decoded.result.page, decoded.page.strips

        async def read(canvas: PageViews, max_new_tokens: int) -> SequenceResult:
            page = replace(decoded.page, prepared=canvas, ink=replace(decoded.page.ink, lines=()))
            sequence = self._sequence([page], request, number)
            params = replace(sequence.params, max_new_tokens=min(max_new_tokens, sequence.params.max_new_tokens))
            # They tell whether the page is read once more, so its text must not depend on what else asks for them.
            return await self._infer(replace(sequence, params=params, wants_token_scores=True), None, notes_pace=False)

        async def enlarge() -> Sequence[Strip]:
            if not self._has_time(decoded, reading):
                return ()
            # The page has been read, which a deadline must not take back.
            reading.renew()
            task = replace(
                self._decode_task(decoded.page.page, request),
                turn_degrees=decoded.page.turned_degrees,
                lines_from_views=1,
                em_px=LARGE_EM_PX,
            )
            page = await self._decode_again(decoded, reading, task)
            return page.strips if page else ()

        try:
            most = request.params.max_new_tokens if request.is_limited else None
            info = self._engine.info
            most_px = LOW_PX if info.skips_padding else SIDE_PX
            least = 0.0 if request.reads_blank_pages else HOPELESS_SHARE * request.min_confidence
            lines = await read_lines(
                strips,
                info.geometry,
                most,
                read,
                on_text,
                enlarge=enlarge,
                most_px=most_px,
                least_confidence=least,
            )
        except BaseExceptionGroup as failures:
            reason = _first_reason(failures)
            raise reason from failures
        self._note_pace(lines.busy_s)
        return await self._outcome(decoded, reading, lines.result, lines.regions)

    async def _read_pass(self, pages: Sequence[_Decoded], reading: _Reading) -> None:
        """Read several pages as one sequence."""
        numbers = [decoded.result.page for decoded in pages]
        splitter = PageSplitter(len(pages))

        def show(pieces: Sequence[tuple[int, str]]) -> None:
            for index, piece in pieces:
                if reading.on_delta is not None:
                    reading.on_delta(numbers[index], piece)

        def on_text(text: str) -> None:
            before = splitter.page
            show(splitter.push(text))
            if splitter.page != before:
                reading.renew()

        sequence = self._sequence([decoded.page for decoded in pages], reading.request, numbers[0])
        try:
            result = await self._infer(sequence, on_text)
        except DeepSynthError as error:
            for decoded in pages:
                reading.finish(replace(decoded.result, status=PageStatus.FAILED, error=error))
            return
        show(splitter.finish())
        vision_tokens = [decoded.page.prepared.plan.num_vision_tokens for decoded in pages]
        for decoded, part in zip(pages, split_result(result, vision_tokens), strict=True):
            reading.finish(await self._outcome(decoded, reading, part))

    async def _outcome(
        self,
        decoded: _Decoded,
        reading: _Reading,
        result: SequenceResult | None,
        lines: tuple[Region, ...] = (),
    ) -> PageResult:
        """What becomes of a page with this answer; None if the pass that it was part of ended before it.

        `lines` are boxes in its text that were known before it was read.
        """
        page, request, document = decoded.page, reading.request, reading.document
        is_transcribed = request.task in _TRANSCRIBES
        if result is None:
            is_missing = not request.reads_blank_pages
            return replace(decoded.result, status=PageStatus.UNREADABLE if is_missing else PageStatus.OK)
        grounded = parse_grounded(
            result.text,
            page.width_px,
            page.height_px,
            labels_are_text=labels_are_text(request.task, self._engine.info.prompts),
        )
        if lines and grounded.text == result.text and not grounded.regions:
            grounded = replace(grounded, regions=lines)
        wants_words, calibration = self._wants_words(request), self._calibration(request)
        words = judge(result, grounded, request.confidence, calibration) if wants_words else None
        status = PageStatus.OK
        if is_transcribed and not request.reads_blank_pages:
            is_junk = words is not None and words.is_junk(JUNK_SHARE * request.min_confidence)
            status = status_of(
                page.ink,
                grounded.text,
                result.confidence,
                request.min_confidence,
                is_by_lines=bool(lines),
                share_of_lines=_share_read(page, result, lines),
                is_junk=is_junk,
            )
        # Words that the page cannot hold would be taken for what is printed on it.
        is_shown = status is PageStatus.OK
        account = None
        if is_shown and is_transcribed and page.ink.lines:
            task = print_task(grounded, page.ink.lines, is_by_lines=bool(lines))
            account = await self._source.account(document, task)
        return replace(
            decoded.result,
            status=status,
            text=grounded.text if is_shown else "",
            regions=grounded.regions if is_shown else (),
            words=words if is_shown else None,
            account=account,
            is_partly_read=account is not None and account.coverage < request.min_coverage,
            result=result,
            model_id=request.model_id,
        )

    async def _read_on(
        self, decoded: _Decoded, result: SequenceResult, reading: _Reading, on_text: Callable[[str], None] | None
    ) -> SequenceResult:
        """Read the parts of the page that an answer left when it was cut for repeating itself; a fault costs them."""
        page, number = decoded.page, decoded.result.page
        grounded = parse_grounded(result.text, page.width_px, page.height_px)
        if grounded.regions or not page.ink.lines:
            # Boxes in the answer for a part would be those of the part.
            return result
        account = await self._source.account(reading.document, print_task(grounded, page.ink.lines))
        request, text = reading.request, result.text
        document = Document(reading.document.data, self.limits, (page.page,), client=reading.document.client)
        rest: list[SequenceResult] = []
        try:
            for box_px in parts_to_read(account, page.width_px, page.height_px):
                info = self._engine.info
                part = await self._source.decode(
                    document,
                    DecodeTask(
                        page.page, request.mode, info.geometry, info.prepares_views, box_px, page.turned_degrees
                    ),
                )
                if on_text is not None:
                    on_text(separator(text))
                rest.append(await self._infer(self._sequence([part], request, number), on_text))
                text += separator(text) + rest[-1].text
        except DeepSynthError:
            _log.warning("page %d could not be read on", number, exc_info=True)
        finally:
            self._source.close(document)
        return joined(result, rest)

    def _is_alone(self, reading: _Reading) -> bool:
        """Whether no other page is on its way to the engine, apart from those of jobs, which can wait."""
        num_requests = self._gate.num_waiting + self._gate.num_running
        return reading.permit is not None and num_requests == 1 and len(reading.pages) == 1

    def _sequence(
        self, pages: Sequence[DecodedPage], request: OcrRequest, number: int, *, is_alone: bool = False
    ) -> SequenceRequest:
        """What is asked of the engine for a page, or for all pages of a pass; `number` is the first one's."""
        prompts, is_together = self._engine.info.prompts, request.pages_together
        params = replace(request.params, max_new_tokens=request.params.max_new_tokens * len(pages))
        return SequenceRequest(
            sequence_id=uuid.uuid4().hex,
            page=pages[0].prepared,
            prompt=prompt_for(request.task, request.query, prompts, is_together=is_together),
            params=params.for_page(number),
            model_id=request.model_id,
            # A pass is split by them.
            wants_token_scores=is_together or request.wants_token_scores or self._wants_words(request),
            # The loop rule cannot tell in which of several pages an answer is.
            lines=() if is_together else pages[0].ink.lines,
            more_pages=tuple(page.prepared for page in pages[1:]),
            is_alone=is_alone,
        )

    def _wants_words(self, request: OcrRequest) -> bool:
        """Whether words are scored: the request asks for it, or a calibration makes them tell of the whole page."""
        is_measured = request.task in _TRANSCRIBES and self._calibration(request) is not None
        return request.confidence.needs_words or is_measured

    def _calibration(self, request: OcrRequest) -> Calibration | None:
        """The model's calibration, which was measured on the base model's most probable tokens."""
        info = self._engine.info
        is_measured = request.model_id == info.model_id and not request.params.temperature
        return info.calibration if is_measured else None

    async def _infer(
        self, sequence: SequenceRequest, on_text: Callable[[str], None] | None, *, notes_pace: bool = True
    ) -> SequenceResult:
        sequence = replace(sequence, is_streamed=on_text is not None)
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
                            if on_text is not None:
                                on_text(text)
                        case SequenceResult():
                            inference.finished(event)
                            timings = event.timings
                            busy_s = timings.encode_s + timings.prefill_s + timings.generate_s
                            if notes_pace:
                                self._note_pace(busy_s / len(sequence.pages))
                            return event
                        case SequenceFailure(code=code, detail=detail):
                            raise _failure(code, detail, self._engine.life.ready_in_s)
        raise EngineLostError("the engine's events ended without a result")

    def _note_pace(self, page_s: float) -> None:
        """Seconds that a page kept its slots of the engine busy, those of its canvases together."""
        self._page_s += (PACE_SMOOTHING if self._page_s else 1.0) * (page_s - self._page_s)


def labels_are_text(task: Task, prompts: PromptSet) -> bool:
    """Whether a model writes the text that it reads as the labels of boxes."""
    return prompts is PromptSet.DEEPSEEK and task in LABELS_ARE_TEXT


def _failure(code: str, detail: str, ready_in_s: float) -> DeepSynthError:
    """The engine speaks in the codes of our own tree; one it invents is a fault of its own."""
    kind, detail = error_classes().get(code, EngineError), f"{code}: {detail}"
    return kind(detail, retry_after_s=whole_seconds(ready_in_s)) if issubclass(kind, CapacityError) else kind(detail)


def _first_reason(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The known error in a task group's collection, or an unknown one as it is."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            return _first_reason(error)
        if isinstance(error, DeepSynthError):
            return error
    return group.exceptions[0] if group.exceptions else InternalError()


def _is_surer(second: PageResult, first: PageResult, *, is_by_lines: bool = False) -> bool:
    """Whether another reading of a page has text that is to be preferred, as it is to none."""
    if second.status is not PageStatus.OK or second.result is None:
        return False
    if first.status is not PageStatus.OK or first.result is None:
        return True
    return prefers_second(first.result.confidence, second.result.confidence, is_by_lines=is_by_lines)


def _share_read(page: DecodedPage, result: SequenceResult, lines: Sequence[Region]) -> float:
    """Share of a page's rows that have text; 1 if it was read whole, or if a token limit ended it."""
    if not lines or result.finish_reason is FinishReason.LENGTH:
        return 1.0
    return len(lines) / len({strip.row for strip in page.strips})
