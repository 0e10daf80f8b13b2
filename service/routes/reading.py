"""What every route that reads a document does the same way, whatever protocol it speaks."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from fastapi import Request

from service.admission.deadline import Deadline, run_to_outcome
from service.admission.gate import Permit
from service.deps import Services
from service.errors import DeadlineError, DeepSynthError, DocumentTooLongError, TooManyPagesError
from service.ocr.reader import DeltaSink, DocumentResult, PageResult, PageSink
from service.ocr.request import OcrRequest
from service.routes.stream import until_disconnect

Result = TypeVar("Result")


async def read_leased(
    services: Services,
    permit: Permit,
    data: bytes | Sequence[bytes],
    ocr_request: OcrRequest,
    deadline: Deadline,
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
        on_delta: As `DocumentReader.read` has it.
        on_page: As `DocumentReader.read` has it.
        on_model: Called with the model's name once it is known, before any text.

    Returns:
        The document.
    """

    def finish(page: PageResult) -> None:
        if isinstance(page.error, DeadlineError):
            point_to_jobs(services, page.error)
        if on_page is not None:
            on_page(page)

    try:
        async with AsyncExitStack() as stack:
            async with deadline.enforced():
                lease = await stack.enter_async_context(services.models.lease(ocr_request.model_id))
            if on_model is not None:
                on_model(lease.model_id)
            leased = replace(ocr_request, model_id=lease.model_id)
            document = await services.reader.read(
                data, leased, permit, deadline=deadline, on_delta=on_delta, on_page=finish
            )
            lease.finished(result.finish_reason for result in document.results)
    except (DeadlineError, DocumentTooLongError, TooManyPagesError) as error:
        point_to_jobs(services, error)
        raise
    permit.mark_finished()
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


async def run_for_client(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Run a request's work while its client is there; the body must have been read."""
    return await run_to_outcome(work, disconnected=partial(until_disconnect, request.receive))
