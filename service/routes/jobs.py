"""`/jobs`: documents that are read in the background: submitted, looked at, fetched, erased."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import Response

from service.access.key import Scope
from service.admission.deadline import Deadline
from service.admission.gate import Permit
from service.deps import RecordDep, Services, ServicesDep, require_ready
from service.errors import InvalidFieldError, JobKeyError, JobNotFinishedError, JobsOffError
from service.jobs.answer import to_job_answer, to_job_summary
from service.jobs.job import Job, owner_of
from service.jobs.manager import JobManager
from service.ocr.answer import to_answer
from service.ocr.arrangement import arrange, check_arrangement, check_output
from service.ocr.formats.document import ReadDocument
from service.ocr.formats.output_format import OutputFormat
from service.ocr.formats.registry import DEFAULT, FORMATS
from service.routes.accept import choose_format
from service.routes.auth import SecretDep, require, use_key
from service.routes.consent import MayStoreDep
from service.routes.form import OcrFields, OcrForm, query_options, receive_form
from service.routes.ocr import OUTPUT_HEADERS, arrangement_of, document_response, form_description, or_empty, request_of
from service.routes.openapi import problems
from service.routes.reading import run_for_client
from service.schemas import JobAnswer, JobResult, JobsAnswer

DEFAULT_LIMIT, MAX_LIMIT = 20, 100


class JobFields(OcrFields):
    """The form of a job."""

    webhook_url: str | None = Field(default=None, max_length=2000)
    """Gets a signed POST request when the job has ended; at an origin that the service's operator has listed."""


def _in_query(**schemas: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI's description of options in the query string, which `query_options` checks; an empty one is not given."""
    return {
        "parameters": [{"name": name, "in": "query", "schema": or_empty(schema)} for name, schema in schemas.items()]
    }


async def require_jobs(services: ServicesDep) -> JobManager:
    """The jobs of this service; a `JobsOffError` if it takes none."""
    if services.jobs is None:
        raise JobsOffError
    return services.jobs


JobsDep = Annotated[JobManager, Depends(require_jobs)]


async def _owner(
    request: Request, services: ServicesDep, record: RecordDep, secret: SecretDep, jobs: JobsDep
) -> str | None:
    """Whose jobs a request may see. A key by its name, so that a new secret does not lose them."""
    header = jobs.options.owner_header
    if header is not None:
        return owner_of(record.key_name, request.headers.get(header))
    # Where the service has no keys, a client may send one of its own choice.
    return owner_of(record.key_name, None if services.access.needs_key else secret)


OwnerDep = Annotated[str | None, Depends(_owner)]
router = APIRouter(tags=["jobs"])
_VISIBLE = [Depends(require(Scope.OCR))]


@router.post(
    "/jobs",
    status_code=202,
    responses=problems(404, 409, 507, reads=True),
    openapi_extra=form_description(JobFields),
    dependencies=[Depends(use_key), Depends(require_jobs), Depends(require_ready)],
)
async def submit_job(
    request: Request,
    response: Response,
    services: ServicesDep,
    record: RecordDep,
    jobs: JobsDep,
    owner: OwnerDep,
    _: MayStoreDep,
) -> JobAnswer:
    """Read a document in the background; what is wrong with it is said at once."""
    permit = record.resources.enter_context(services.gate.admit(record.client))
    await jobs.check_room(owner)
    with services.observer.receiving() as received:
        start_s = time.monotonic()
        form = await receive_form(request, services.bounds, JobFields)
        received(len(form.data))
        receive_s = time.monotonic() - start_s
    if form.fields.stream:
        raise InvalidFieldError(public={"field": "stream", "expected": "false: a job is not streamed"})
    if form.fields.webhook_url is not None:
        jobs.check_webhook(form.fields.webhook_url)
    job = await run_for_client(request, _submit(services, jobs, permit, form, owner, receive_s))
    # Relative, so that it is right below a proxy's path.
    response.headers["location"] = f"jobs/{job.id}"
    return to_job_answer(job, jobs.options.ttl_s)


async def _submit(
    services: Services, jobs: JobManager, permit: Permit, form: OcrForm[JobFields], owner: str | None, receive_s: float
) -> Job:
    permit.mark_running()
    output = FORMATS[form.fields.format or DEFAULT.name]
    ocr_request = request_of(services, form, jobs.options.limits, output)
    wanted = arrangement_of(form.fields)
    check_arrangement(wanted, ocr_request, services.models.tasks(ocr_request.model_id), output)
    async with Deadline(services.bounds.deadline_s).enforced():
        return await jobs.submit(
            form.data,
            ocr_request,
            owner=owner,
            name=form.name,
            format_name=form.fields.format,
            receive_s=receive_s,
            webhook_url=form.fields.webhook_url,
            wanted=wanted,
        )


@router.get(
    "/jobs",
    responses=problems(404, 409, 422, 429),
    dependencies=_VISIBLE,
    openapi_extra=_in_query(
        limit={"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
        before={"type": "string", "description": "Only jobs that were submitted before this one."},
    ),
)
async def list_jobs(request: Request, jobs: JobsDep, owner: OwnerDep) -> JobsAnswer:
    """List the jobs that were submitted with the key of this request, newest first."""
    options = query_options(request, "limit", "before")
    limit = options.get("limit", str(DEFAULT_LIMIT))
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 4 and 1 <= int(limit) <= MAX_LIMIT):
        raise InvalidFieldError(public={"field": "limit", "expected": f"a number from 1 to {MAX_LIMIT}"})
    if owner is None:
        raise JobKeyError
    found = await jobs.listed(owner, int(limit) + 1, options.get("before"))
    shown = found[: int(limit)]
    return JobsAnswer(
        jobs=[to_job_summary(job, jobs.options.ttl_s) for job in shown],
        next=shown[-1].id if len(found) > len(shown) else None,
    )


@router.get("/jobs/{job_id}", responses=problems(404, 409, 422, 429), dependencies=_VISIBLE)
async def show_job(job_id: str, request: Request, jobs: JobsDep, owner: OwnerDep) -> JobAnswer:
    """Show the state of a job, and what became of each page."""
    query_options(request)
    return to_job_answer(await jobs.find(job_id, owner), jobs.options.ttl_s)


@router.delete("/jobs/{job_id}", status_code=204, responses=problems(404, 409, 422, 429), dependencies=_VISIBLE)
async def erase_job(job_id: str, request: Request, jobs: JobsDep, owner: OwnerDep) -> None:
    """Stop reading a document, and erase it with everything that was read."""
    query_options(request)
    await jobs.erase(await jobs.find(job_id, owner))


@router.get(
    "/jobs/{job_id}/result",
    response_model=JobResult,
    responses={
        200: {
            "headers": OUTPUT_HEADERS,
            "content": {
                each.essence: {"schema": {"type": "string"}} for each in FORMATS.values() if each is not DEFAULT
            },
        },
        **problems(404, 406, 409, 413, 415, 422, 429, 504),
    },
    dependencies=_VISIBLE,
    openapi_extra=_in_query(format={"type": "string", "enum": list(FORMATS)}),
)
async def show_result(
    job_id: str, request: Request, services: ServicesDep, record: RecordDep, jobs: JobsDep, owner: OwnerDep
) -> Response:
    """Show what a job has read: as JSON at any time, in other formats once it is done."""
    options = query_options(request, "format")
    if options.get("format", DEFAULT.name) not in FORMATS:
        raise InvalidFieldError(public={"field": "format", "expected": list(FORMATS)})
    job = await jobs.find(job_id, owner)
    name = options.get("format") or job.format_name
    output = choose_format(request.headers.getlist("accept")) if name is None else FORMATS[name]
    check_output(job.wanted, output)
    if output is not DEFAULT and not job.has_ended:
        raise JobNotFinishedError
    if output is not DEFAULT or (job.wanted.figures and job.has_ended):
        # The document is read into memory, and the result may be made in an image process.
        record.resources.enter_context(services.gate.admit(record.client)).mark_running()
    return await run_for_client(request, _result(services, jobs, job, output))


async def _result(services: Services, jobs: JobManager, job: Job, output: OutputFormat) -> Response:
    read = await jobs.result(job)
    # Figures are cut once, out of a document that is whole.
    wanted = job.wanted if job.has_ended else replace(job.wanted, figures=False)
    data = await jobs.document(job) if output is not DEFAULT or wanted.figures else b""
    async with Deadline(services.bounds.deadline_s).enforced():
        arranged = await arrange(read, wanted, data, jobs.cutter)
    # The clock may have been set back.
    latency_s = max((time.time() if job.ended_s is None else job.ended_s) - job.created_s, 0.0)
    answer = to_answer(read, job.id, receive_s=job.receive_s, latency_s=latency_s, arranged=arranged)
    changes = {} if job.has_ended else {"status": "incomplete"}
    result = JobResult.model_construct(**{**dict(answer), **changes})
    document = ReadDocument(result, job.request.task, data, job.name, jobs.options.limits)
    return await document_response(services, document, output)
