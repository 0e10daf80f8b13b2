"""`/documentintelligence`: documents as clients of Azure's Document Intelligence send them. Translates to jobs.

An analysis is a job, and its result has the job's id. paperless-ngx, LangChain and Open WebUI have such clients.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from service.access.key import Scope
from service.admission.deadline import Deadline
from service.admission.gate import Permit
from service.deps import RecordDep, Services, ServicesDep, require_ready
from service.errors import (
    DeepSynthError,
    InvalidFieldError,
    JobNotFinishedError,
    RemoteUrlError,
    UnsupportedParameterError,
)
from service.jobs.job import Job, JobState
from service.jobs.manager import JobManager
from service.ocr.answer import to_answer
from service.ocr.confidence import Granularity
from service.ocr.formats.document import ReadDocument
from service.ocr.formats.layout import BoxPx, blocks_of
from service.ocr.formats.registry import FORMATS
from service.ocr.outcome import PageStatus
from service.ocr.reader import PAGE_BREAK
from service.ocr.request import OcrRequest, parse_request
from service.routes.auth import require, use_key
from service.routes.consent import MayStoreDep
from service.routes.data_url import FileBudget
from service.routes.form import query_options, receive_raw
from service.routes.jobs import JobsDep, OwnerDep, require_jobs
from service.routes.json_body import receive_json
from service.routes.ocr import OUTPUT_HEADERS, document_response
from service.routes.openapi import problems
from service.routes.problems import DOCUMENT_INTELLIGENCE_PATH, error_message
from service.routes.reading import run_for_client
from service.schemas import (
    AnalyzedDocument,
    AnalyzedLine,
    AnalyzedPage,
    AnalyzedSpan,
    AnalyzedWord,
    AnalyzeFault,
    AnalyzeOperation,
    AnalyzeProblem,
    AnalyzeWarning,
    OcrAnswer,
    PageAnswer,
)
from shared.contract.prompts import Task

API_VERSION = "2024-11-30"
DEFAULT_MODELS = frozenset({"prebuilt-read", "prebuilt-layout"})
"""Azure's models that mean the default model here; any other name is that of a model or adapter."""
POLL_HEADERS = {"retry-after": "1"}
"""How many seconds clients wait before they look again; 30, if they are not told."""
_REACH = 400
"""Code points in which a line's word is looked for in the page's text: marks between two words are shorter."""
_STATES: dict[JobState, Literal["notStarted", "running", "succeeded", "failed"]] = {
    JobState.WAITING: "notStarted",
    JobState.RUNNING: "running",
    JobState.DONE: "succeeded",
    JobState.FAILED: "failed",
}
_FORMATS = {"text": Task.FREE, "markdown": Task.MARKDOWN}
_OPTIONS: dict[str, dict[str, Any]] = {
    "api-version": {"type": "string", "description": f"Not looked at; answers are those of {API_VERSION}."},
    "pages": {"type": "string", "example": "1-3,7"},
    "outputContentFormat": {"type": "string", "enum": list(_FORMATS), "default": "text"},
    "output": {"type": "string", "enum": ["pdf"], "description": "The PDF can be fetched without it, too."},
    "stringIndexType": {"type": "string", "enum": ["unicodeCodePoint"]},
    "locale": {"type": "string", "description": "A hint; not needed here."},
    "_overload": {"type": "string", "description": "Sent by clients; not looked at."},
}
_UNSUPPORTED = ("features", "queryFields")

_MODEL_PATH = f"{DOCUMENT_INTELLIGENCE_PATH}/documentModels/{{model_id}}"
_RESULT_PATH = f"{_MODEL_PATH}/analyzeResults/{{result_id}}"


async def _takes_the_version_alone(request: Request) -> None:
    query_options(request, "api-version")


_VISIBLE = [Depends(require(Scope.OCR)), Depends(require_jobs), Depends(_takes_the_version_alone)]
_RESPONSES = problems(404, 409, 422, 429, shape=AnalyzeProblem)

router = APIRouter(tags=["clients"])


class AnalyzeRequest(BaseModel):
    """A document in a JSON body."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    base64Source: str | None = None
    """The file."""
    urlSource: str | None = None
    """Refused: no URL is fetched."""


def _in_query(*names: str) -> dict[str, Any]:
    return {"parameters": [{"name": name, "in": "query", "schema": _may_be_empty(_OPTIONS[name])} for name in names]}


def _may_be_empty(schema: dict[str, Any]) -> dict[str, Any]:
    """An option without a value counts as one that is not given."""
    return {**schema, "enum": [*schema["enum"], ""]} if "enum" in schema else schema


_FILE = {"type": "string", "format": "binary"}
_OPENAPI = {
    **_in_query(*_OPTIONS),
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": AnalyzeRequest.model_json_schema()},
            "application/octet-stream": {"schema": _FILE},
        },
    },
}


@router.post(
    f"{_MODEL_PATH}:analyze",
    status_code=202,
    response_class=Response,
    responses=problems(404, 409, 507, reads=True, shape=AnalyzeProblem),
    openapi_extra=_OPENAPI,
    dependencies=[Depends(use_key), Depends(require_jobs), Depends(require_ready)],
)
async def analyze(
    model_id: str,
    request: Request,
    services: ServicesDep,
    record: RecordDep,
    jobs: JobsDep,
    owner: OwnerDep,
    _: MayStoreDep,
) -> Response:
    """Read a document in the background, as clients of Azure's Document Intelligence send it."""
    permit = record.resources.enter_context(services.gate.admit(record.client))
    await jobs.check_room(owner)
    options = _read_options(request)
    with services.observer.receiving() as received:
        start_s = time.monotonic()
        data = await _receive(request, services)
        received(len(data))
        receive_s = time.monotonic() - start_s
    job = await run_for_client(request, _submit(services, jobs, permit, model_id, options, data, owner, receive_s))
    url = request.url_for("show_analysis", model_id=model_id, result_id=job.id)
    if request.headers.get("x-forwarded-proto", "").strip().lower() == "https":
        # A proxy speaks TLS. Clients follow this address with their key, which must not leave them unencrypted.
        url = url.replace(scheme="https")
    location = url.include_query_params(**{"api-version": API_VERSION})
    return Response(status_code=202, headers={**POLL_HEADERS, "operation-location": str(location)})


def _read_options(request: Request) -> dict[str, str]:
    for name in _UNSUPPORTED:
        if name in request.query_params:
            raise UnsupportedParameterError(public={"field": name, "expected": "nothing: leave it out"})
    given = query_options(request, *_OPTIONS)
    for name in ("output", "outputContentFormat", "stringIndexType"):
        if name in given and given[name] not in _OPTIONS[name]["enum"]:
            raise UnsupportedParameterError(public={"field": name, "expected": _OPTIONS[name]["enum"]})
    return given


async def _receive(request: Request, services: Services) -> bytes:
    if not request.headers.get("content-type", "").lower().startswith("application/json"):
        return await receive_raw(request, services.bounds)
    asked = await receive_json(request, services.bounds, AnalyzeRequest)
    if asked.urlSource is not None:
        raise RemoteUrlError(public={"field": "urlSource"})
    if asked.base64Source is None:
        raise InvalidFieldError(public={"field": "base64Source", "expected": "a file in base64"})
    budget = FileBudget(services.bounds.max_upload_bytes)
    return await asyncio.to_thread(budget.decode, asked.base64Source, "base64Source", may_be_bare=True)


async def _submit(
    services: Services,
    jobs: JobManager,
    permit: Permit,
    model_id: str,
    options: dict[str, str],
    data: bytes,
    owner: str | None,
    receive_s: float,
) -> Job:
    permit.mark_running()
    async with Deadline(services.bounds.deadline_s).enforced():
        return await jobs.submit(
            data,
            _request_of(services, jobs, model_id, options, data),
            owner=owner,
            name="document",
            format_name=None,
            receive_s=receive_s,
            webhook_url=None,
        )


def _request_of(
    services: Services, jobs: JobManager, model_id: str, options: dict[str, str], data: bytes
) -> OcrRequest:
    bounds = services.bounds
    return parse_request(
        data=data,
        info=services.engine.info,
        models=services.models,
        limits=jobs.options.limits,
        max_new_tokens_cap=bounds.max_new_tokens,
        task=_FORMATS[options.get("outputContentFormat", "text")],
        model_id=None if model_id in DEFAULT_MODELS else model_id,
        pages=options.get("pages"),
        blank_pages=bounds.blank_pages,
        min_confidence=bounds.min_confidence,
        confidence=Granularity.WORD,
        min_coverage=bounds.min_coverage,
        orientation=bounds.orientation,
    )


@router.get(
    _RESULT_PATH,
    responses=_RESPONSES,
    dependencies=_VISIBLE,
    openapi_extra=_in_query("api-version"),
    response_model_exclude_none=True,
)
async def show_analysis(
    model_id: str, result_id: str, response: Response, jobs: JobsDep, owner: OwnerDep
) -> AnalyzeOperation:
    """Show how far an analysis is, and what it has read."""
    job = await jobs.find(result_id, owner)
    if not job.has_ended:
        response.headers.update(POLL_HEADERS)
    fault = document = None
    if job.error is not None:
        fault = _fault(job.error)
    elif job.has_ended:
        answer = await _answer(jobs, job)
        fault = _fault_of_page(answer)
        document = None if fault else await asyncio.to_thread(to_document, answer, job.request.task)
    return AnalyzeOperation(
        status="failed" if fault else _STATES[job.state],
        created_date_time=_time(job.created_s),
        last_updated_date_time=_time(job.ended_s or job.started_s or job.created_s),
        error=fault,
        analyze_result=document,
    )


@router.delete(
    _RESULT_PATH,
    status_code=204,
    responses=_RESPONSES,
    dependencies=_VISIBLE,
    openapi_extra=_in_query("api-version"),
)
async def erase_analysis(model_id: str, result_id: str, jobs: JobsDep, owner: OwnerDep) -> None:
    """Stop an analysis, and erase the document with everything that was read."""
    await jobs.erase(await jobs.find(result_id, owner))


@router.get(
    f"{_RESULT_PATH}/pdf",
    response_class=Response,
    responses={
        200: {"headers": OUTPUT_HEADERS, "content": {"application/pdf": {"schema": _FILE}}},
        **problems(404, 409, 413, 415, 422, 429, 504, shape=AnalyzeProblem),
    },
    dependencies=_VISIBLE,
    openapi_extra=_in_query("api-version"),
)
async def show_pdf(
    model_id: str,
    result_id: str,
    request: Request,
    services: ServicesDep,
    record: RecordDep,
    jobs: JobsDep,
    owner: OwnerDep,
) -> Response:
    """The document as a searchable PDF, once the analysis has ended."""
    job = await jobs.find(result_id, owner)
    if not job.has_ended:
        raise JobNotFinishedError
    # The document is read into memory, and the PDF is made in an image process.
    record.resources.enter_context(services.gate.admit(record.client)).mark_running()
    return await run_for_client(request, _pdf(services, jobs, job))


async def _pdf(services: Services, jobs: JobManager, job: Job) -> Response:
    answer, data = await _answer(jobs, job), await jobs.document(job)
    document = ReadDocument(answer, job.request.task, data, job.name, jobs.options.limits)
    async with Deadline(services.bounds.deadline_s).enforced():
        return await document_response(services, document, FORMATS["searchable-pdf"])


async def _answer(jobs: JobManager, job: Job) -> OcrAnswer:
    """What was read; the error of a job that failed."""
    latency_s = max((job.ended_s or time.time()) - job.created_s, 0.0)
    return to_answer(await jobs.result(job), job.id, receive_s=job.receive_s, latency_s=latency_s)


def _fault(error: DeepSynthError) -> AnalyzeFault:
    return AnalyzeFault(code=error.code, message=error_message(error))


def _fault_of_page(answer: OcrAnswer) -> AnalyzeFault | None:
    """Why the document is not whole: the error of the first page that could not be read."""
    failed = next((page for page in answer.pages if page.error is not None), None)
    if failed is None or failed.error is None:
        return None
    rest = f"GET /jobs/{answer.id}/result has the pages that could be read."
    return AnalyzeFault(code=failed.error.code, message=f"Page {failed.page}: {failed.error.title} {rest}")


def to_document(answer: OcrAnswer, task: Task) -> AnalyzedDocument:
    """A document as Azure's API has it.

    Args:
        answer: To a document whose pages were all read, with confidences of words.
        task: How it was read.

    Returns:
        Its text, and where the lines and words of each page are in it.
    """
    is_markdown, pages, at = task is Task.MARKDOWN, [], 0
    for page in answer.pages:
        pages.append(_page(page, at, is_markdown=is_markdown))
        if page.text:
            at += len(page.text) + len(PAGE_BREAK)
    return AnalyzedDocument(
        api_version=API_VERSION,
        model_id=answer.model_id,
        content_format="markdown" if is_markdown else "text",
        content=answer.text,
        pages=pages,
        warnings=[warning for page in answer.pages for warning in _warnings(page)],
    )


def _page(page: PageAnswer, offset: int, *, is_markdown: bool) -> AnalyzedPage:
    words: list[AnalyzedWord] = []
    lines: list[AnalyzedLine] = []
    at = 0
    for block in blocks_of(page, is_markdown=is_markdown):
        for line in block.lines:
            found: list[AnalyzedWord] = []
            for word in line.words:
                start = page.text.find(word.text, at, at + _REACH + len(word.text))
                if start < 0:
                    continue
                at = start + len(word.text)
                span = AnalyzedSpan(offset=offset + start, length=len(word.text))
                # Words of a layout that are not words of the text, such as cells, are as sure as the page.
                confidence = page.confidence if word.confidence is None else word.confidence
                found.append(
                    AnalyzedWord(
                        content=word.text, polygon=_corners(word.box_px), span=span, confidence=confidence or 0.0
                    )
                )
            if found:
                first, last = found[0].span, found[-1].span
                span = AnalyzedSpan(offset=first.offset, length=last.offset + last.length - first.offset)
                lines.append(AnalyzedLine(content=line.text, polygon=_corners(line.box_px), spans=[span]))
                words += found
    return AnalyzedPage(
        page_number=page.page,
        angle=0.0,
        width=page.width_px or 0,
        height=page.height_px or 0,
        spans=[AnalyzedSpan(offset=offset, length=len(page.text))] if page.text else [],
        words=words,
        lines=lines,
    )


def _corners(box_px: BoxPx) -> list[int]:
    left, top, right, bottom = box_px
    return [left, top, right, top, right, bottom, left, bottom]


def _warnings(page: PageAnswer) -> Iterator[AnalyzeWarning]:
    target = f"#/pages/{page.page}"
    if page.status == PageStatus.UNREADABLE.value:
        message = "The page shows something, but no text that could be trusted."
        yield AnalyzeWarning(code=page.status, message=message, target=target)
    for warning in page.warnings:
        yield AnalyzeWarning(code=warning, message=f"docs/api.md says what {warning} means.", target=target)


def _time(at_s: float) -> datetime:
    return datetime.fromtimestamp(at_s, UTC)
