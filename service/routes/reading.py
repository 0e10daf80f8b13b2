"""What every route that reads a document does the same way, whatever protocol it speaks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from fastapi import Request

from service.admission.deadline import Deadline, run_to_outcome
from service.admission.gate import Permit
from service.deps import Services
from service.errors import DeadlineError, DeepSynthError, DocumentTooLongError, TooManyPagesError
from service.ocr.answer import to_page_answer
from service.ocr.cascade import AUTO
from service.ocr.outcome import PageStatus
from service.ocr.reader import DeltaSink, DocumentResult, PageResult, PageSink
from service.ocr.request import OcrRequest
from service.routes.consent import Consent
from service.routes.stream import until_disconnect
from service.samples.answered import AnsweredDocument
from shared.contract.samples import SampleReading

Result = TypeVar("Result")


async def read_leased(
    services: Services,
    permit: Permit,
    data: bytes | Sequence[bytes],
    ocr_request: OcrRequest,
    deadline: Deadline,
    consent: Consent,
    on_delta: DeltaSink | None = None,
    on_page: PageSink | None = None,
    on_model: Callable[[str], None] | None = None,
) -> DocumentResult:
    """Read a whole document with one version of its model, whatever is published meanwhile.

    Args:
        services: What the route uses.
        permit: The request's place.
        data: The file, or several in order.
        ocr_request: How to read it.
        deadline: Runs from the end of the upload.
        consent: Whether the pages may be kept.
        on_delta: As `DocumentReader.read` has it.
        on_page: As `DocumentReader.read` has it.
        on_model: Called with the model's name once it is known, before any text.

    Returns:
        The document.
    """
    cascade = services.cascade if ocr_request.model_id == AUTO else None
    sink = on_page if cascade is None or on_page is None else cascade.settled(on_page)

    def finish(page: PageResult) -> None:
        if isinstance(page.error, DeadlineError):
            point_to_jobs(services, page.error)
        if sink is not None:
            sink(page)

    files = [data] if isinstance(data, bytes) else data
    with _erasable(services, consent):
        try:
            async with contextlib.AsyncExitStack() as stack:
                async with deadline.enforced():
                    lease = await stack.enter_async_context(services.models.lease(ocr_request.model_id))
                if on_model is not None:
                    on_model(lease.model_id if cascade is None else AUTO)
                leased = replace(ocr_request, model_id=lease.model_id)
                document = await services.reader.read(
                    data, leased, permit, deadline=deadline, on_delta=on_delta, on_page=finish
                )
                lease.finished(result.finish_reason for result in document.results)
            if cascade is not None:
                document = await cascade.read_again(
                    document, files, leased, permit, deadline, on_page, may_store=consent.may_store
                )
        except (DeadlineError, DocumentTooLongError, TooManyPagesError) as error:
            point_to_jobs(services, error)
            raise
        permit.mark_finished()
        _offer_samples(services, files, leased, document, consent)
    return document


def point_to_jobs(services: Services, error: DeepSynthError) -> None:
    """Tell a client whose document is too long for a request that jobs have no deadline, if this service takes them."""
    if services.jobs is None:
        return
    most = services.jobs.options.limits.max_pdf_pages
    error.public["advice"] = f"POST /jobs reads up to {most} pages without a deadline"
    if isinstance(error, DeadlineError) and services.jobs.is_reading:
        # The request was not alone with the engine, so that it may be in time without the job.
        error.retryable = True


def _erasable(services: Services, consent: Consent) -> contextlib.AbstractContextManager[None]:
    """Around reading an answer and offering its pages: from now on its client may erase it."""
    if services.samples is None or not consent.may_store:
        return contextlib.nullcontext()
    return services.samples.reading(consent.answer_id)


def _offer_samples(
    services: Services, files: Sequence[bytes], ocr_request: OcrRequest, document: DocumentResult, consent: Consent
) -> None:
    """Keep the pages, where the service does and the client allows it."""
    if services.samples is None:
        return
    if not consent.may_store:
        services.samples.opt_out(consent.answer_id)
        return
    read = [page for page in document.pages if page.status is not PageStatus.FAILED]
    services.samples.offer(
        AnsweredDocument(
            consent.answer_id,
            files,
            ocr_request.selection,
            ocr_request.task,
            len(document.pages),
            {page.page: _reading(page, ocr_request) for page in read},
        )
    )


def _reading(page: PageResult, ocr_request: OcrRequest) -> SampleReading:
    said = to_page_answer(page)
    assert said.status != "failed"
    timings_s = {"decode": page.decode_s, "slot_wait": page.slot_wait_s}
    if page.result is not None:
        timings = page.result.timings
        timings_s |= {
            "queue": timings.queue_s,
            "encode": timings.encode_s,
            "prefill": timings.prefill_s,
            "generate": timings.generate_s,
        }
    return SampleReading(
        model_id=page.model_id or ocr_request.model_id,
        mode=str(ocr_request.mode),
        status=said.status,
        text=said.text,
        confidence=said.confidence,
        finish_reason=said.finish_reason,
        timings_ms={stage: round(seconds * 1000, 2) for stage, seconds in timings_s.items()},
        read_at=datetime.now(UTC),
    )


async def run_for_client(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Run a request's work while its client is there; the body must have been read."""
    return await run_to_outcome(work, disconnected=partial(until_disconnect, request.receive))
