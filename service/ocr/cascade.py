"""The model `auto`: pages that the first model is unsure of are read again by a larger one, here or in another service.

A second reading that fails costs nothing but its time: the page keeps the first one, with a warning.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import httpx
from pydantic import ValidationError

from service.admission.deadline import Deadline
from service.admission.gate import Permit
from service.engine.protocol import SequenceResult, SequenceTimings
from service.errors import DeadlineError, DeepSynthError, EngineError
from service.ocr.metrics import TelemetryObserver
from service.ocr.outcome import Orientation, PageStatus
from service.ocr.reader import DocumentResult, PageResult, PageSink
from service.ocr.request import OcrRequest
from service.schemas import NO_STORE_HEADER, OcrAnswer, PageAnswer
from shared.contract.answer import FinishReason
from shared.deepseek_ocr.grounding import Region
from shared.images.accounting import Account

AUTO = "auto"
"""Name of the model that chooses the reader page by page."""
MAX_PAGES_AT_ONCE = 4
"""Of one document that are read again together."""

logger = logging.getLogger(__name__)


class SecondReader(Protocol):
    """Reads single pages with a larger model."""

    async def read(
        self, data: bytes, request: OcrRequest, page: int, permit: Permit | None, *, may_store: bool
    ) -> PageResult:
        """Read one page, by its number in the file; raises a `DeepSynthError` if that fails."""


class RemoteReader:
    """Another service as the second reader.

    Args:
        client: Knows the service's address and key; follows no redirects.
        model_id: What it is asked for; None for its default.
    """

    def __init__(self, client: httpx.AsyncClient, model_id: str | None) -> None:
        self._client = client
        self._model_id = model_id

    async def read(
        self, data: bytes, request: OcrRequest, page: int, permit: Permit | None, *, may_store: bool
    ) -> PageResult:
        """See `SecondReader`."""
        del permit
        fields = {
            "task": str(request.task),
            "query": request.query,
            "model_id": self._model_id,
            "pages": str(page),
            "blank_pages": "read" if request.reads_blank_pages else None,
            "min_confidence": str(request.min_confidence),
            "min_coverage": str(request.min_coverage),
            "orientation": str(Orientation.AUTO if request.finds_turned_pages else Orientation.AS_IS),
            "temperature": str(request.params.temperature) if request.params.temperature else None,
            "seed": None if request.params.seed is None else str(request.params.seed),
        }
        try:
            response = await self._client.post(
                "ocr",
                files={"file": ("page", data)},
                data={name: value for name, value in fields.items() if value is not None},
                # The client's wish goes with its page.
                headers={} if may_store else {NO_STORE_HEADER: "1"},
            )
            response.raise_for_status()
            answer = OcrAnswer.model_validate_json(response.content)
        except (httpx.HTTPError, ValidationError) as error:
            raise EngineError(f"the second reader failed: {_reason(error)}") from error
        if len(answer.pages) != 1:
            raise EngineError("the second reader answered with other pages")
        return _from_answer(answer, answer.pages[0])


def _reason(error: httpx.HTTPError | ValidationError) -> str:
    """Why, for the log: operators mend a wrong key or address by its status and code."""
    if not isinstance(error, httpx.HTTPStatusError):
        return type(error).__name__
    code = re.search(r'"code": ?"([a-z_]{1,40})"', error.response.text)
    return f"status {error.response.status_code}" + (f" {code[1]}" if code else "")


def _from_answer(answer: OcrAnswer, page: PageAnswer) -> PageResult:
    stages_s = {name: value / 1000 for name, value in answer.timings_ms.model_dump().items()}
    account = None if page.coverage is None else Account(page.coverage, tuple(page.unread))
    result = None
    if page.finish_reason is not None and page.confidence is not None:
        # That of the page is the model's times its coverage.
        confidence = page.confidence / (page.coverage or 1.0)
        result = SequenceResult(
            sequence_id=answer.id,
            text=page.text,
            finish_reason=FinishReason(page.finish_reason),
            confidence=confidence,
            # Of the page as a whole; an answer has no lower one.
            min_confidence=confidence,
            vision_tokens=answer.usage.vision_tokens,
            prompt_tokens=answer.usage.prompt_tokens,
            completion_tokens=answer.usage.completion_tokens,
            timings=SequenceTimings(
                queue_s=stages_s["queue"],
                encode_s=stages_s["encode"],
                prefill_s=stages_s["prefill"],
                generate_s=stages_s["generate"],
            ),
        )
    regions, at = [], 0
    for region in page.regions:
        found = page.text.find(region.text, at)
        at = found if found >= 0 else at
        regions.append(Region(region.label, region.box_px, region.text, at))
        at += len(region.text) if found >= 0 else 0
    return PageResult(
        page.page,
        PageStatus(page.status),
        page.width_px,
        page.height_px,
        page.text,
        tuple(regions),
        result,
        is_damaged="damaged_image" in page.warnings,
        turned_degrees=page.turned_degrees,
        account=account,
        is_partly_read="partly_read" in page.warnings,
        decode_s=stages_s["decode"],
        model_id=page.model_id or answer.model_id,
    )


class Cascade:
    """Decides which pages are read again, and replaces them.

    Args:
        second: Reads them.
        min_confidence: Pages below it are read again; so are those that looped, or whose text was withheld.
        observer: Counts.
    """

    def __init__(self, second: SecondReader, min_confidence: float, observer: TelemetryObserver) -> None:
        self._second = second
        self._min_confidence = min_confidence
        self._observer = observer

    def is_doubtful(self, page: PageResult) -> bool:
        """Whether a page is to be read again."""
        if page.status is PageStatus.UNREADABLE or page.finish_reason is FinishReason.REPETITION:
            return True
        return page.status is PageStatus.OK and page.confidence is not None and page.confidence < self._min_confidence

    def settled(self, on_page: PageSink) -> PageSink:
        """Takes the pages of the first reading, and passes on those that stay as they are."""
        return lambda page: None if self.is_doubtful(page) else on_page(page)

    async def read_again(
        self,
        document: DocumentResult,
        files: Sequence[bytes],
        request: OcrRequest,
        permit: Permit | None,
        deadline: Deadline | None,
        on_page: PageSink | None,
        *,
        may_store: bool,
    ) -> DocumentResult:
        """Read the doubtful pages of a document again.

        Args:
            document: As the first model read it.
            files: Its files.
            request: As it was read.
            permit: The request's place; None: it has none.
            deadline: Renewed by each page; pages that are not read by then stay as they are. None: none.
            on_page: Called with each of these pages.
            may_store: Whether the client allows that its pages are kept.

        Returns:
            The document, under the name `auto`; each page says who read it.
        """
        again: dict[int, PageResult] = {}
        places = asyncio.Semaphore(MAX_PAGES_AT_ONCE)

        async def read(page: PageResult) -> None:
            file, number = document.place_of(page.page)
            async with places:
                with self._observer.reading_again():
                    result = await self._result(page, files[file], request, number, permit, may_store=may_store)
            finish(result)
            if deadline is not None:
                deadline.renew()

        def finish(page: PageResult) -> None:
            again[page.page] = page
            self._observer.read_again(has_failed=page.second_failed)
            if on_page is not None:
                on_page(page)

        doubtful = [page for page in document.pages if self.is_doubtful(page)]
        if deadline is not None:
            deadline.renew()
        with contextlib.suppress(DeadlineError):
            async with deadline.enforced() if deadline else contextlib.nullcontext(), asyncio.TaskGroup() as group:
                for page in doubtful:
                    group.create_task(read(page))
        if num_late := sum(page.page not in again for page in doubtful):
            logger.warning("pages were not read again in time", extra={"fields": {"pages": num_late}})
        for page in doubtful:
            if page.page not in again:
                finish(replace(page, second_failed=True))
        return replace(document, model_id=AUTO, pages=[again.get(page.page, page) for page in document.pages])

    async def _result(
        self,
        first: PageResult,
        data: bytes,
        request: OcrRequest,
        number: int,
        permit: Permit | None,
        *,
        may_store: bool,
    ) -> PageResult:
        """The second reading; the first where that fails or has no text."""
        try:
            second = await self._second.read(data, request, number, permit, may_store=may_store)
        except DeepSynthError as error:
            logger.warning("a page was not read again", extra={"fields": {"code": error.code, "detail": str(error)}})
            return replace(first, second_failed=True)
        if second.status is PageStatus.FAILED:
            return replace(first, second_failed=True)
        is_better = second.status is PageStatus.OK or first.status is not PageStatus.OK
        return replace(second, page=first.page) if is_better else first
