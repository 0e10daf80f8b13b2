"""`POST /ocr` and, under the specification's name, `POST /api/ocr/run`: parse, read, answer."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service.admission.deadline import Deadline, run_to_outcome
from service.admission.gate import Permit
from service.admission.request import RequestRecord
from service.deps import RecordDep, RequestBounds, Services, ServicesDep, require_ready
from service.errors import InvalidFieldError, TooManyPagesError
from service.intake.limits import IntakeLimits
from service.ocr.answer import to_answer
from service.ocr.arrangement import Arrangement, arrange, arrange_page, check_arrangement, parse_omit
from service.ocr.confidence import Granularity
from service.ocr.formats.document import ReadDocument
from service.ocr.formats.output_format import OutputFormat
from service.ocr.formats.registry import DEFAULT, FORMATS
from service.ocr.page_notes import MOST_NOTED, NOTES_HEADER, notes_of, to_header
from service.ocr.reader import DeltaSink, PageResult, PageSink
from service.ocr.request import OcrRequest, parse_request
from service.routes import stream
from service.routes.accept import choose_format
from service.routes.auth import use_key
from service.routes.consent import Consent, MayStoreDep, new_consent
from service.routes.disposition import content_disposition
from service.routes.form import FILE_FIELD, FieldsT, OcrFields, OcrForm, receive_form
from service.routes.openapi import problems
from service.routes.reading import point_to_jobs, read_leased
from service.routes.stream import ReadingStream, until_disconnect
from service.schemas import STATUS_HEADER, OcrAnswer
from shared.contract.prompts import Task

router = APIRouter(tags=["ocr"], dependencies=[Depends(use_key), Depends(require_ready)])


_FORMATS = "PNG, JPEG, WebP, TIFF, GIF, BMP, JPEG 2000, AVIF, HEIC or PDF."


def form_description(kind: type[OcrFields]) -> dict[str, Any]:
    """OpenAPI's description of the options and the form, which the handler parses itself, after admission."""
    schema = kind.model_json_schema()
    definitions = schema.pop("$defs", {})
    for field in schema["properties"].values():
        reference = field.pop("$ref", "").rpartition("/")[2]
        field.update(definitions.get(reference, {}))
        field["anyOf"] = [
            definitions.get(each.get("$ref", "").rpartition("/")[2], each)
            for each in field.pop("anyOf", [])
            if each.get("type") != "null"
        ]
        if not field["anyOf"]:
            del field["anyOf"]
        elif len(field["anyOf"]) == 1:
            field.update(field.pop("anyOf")[0])
        if field.get("default", "") is None:
            del field["default"]
    options = {name: or_empty(option) for name, option in schema["properties"].items()}
    file = {"type": "string", "format": "binary", "description": _FORMATS}
    schema["properties"] = {FILE_FIELD: file, **options}
    schema["required"] = [FILE_FIELD]
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}},
        "parameters": [{"name": name, "in": "query", "schema": option} for name, option in options.items()],
    }


def or_empty(option: dict[str, Any]) -> dict[str, Any]:
    """An option that may also be empty, which counts as not given."""
    if "enum" in option:
        return {**option, "enum": [*option["enum"], ""]}
    if option.get("type") == "string":
        return option
    said: dict[str, Any] = {name: option[name] for name in ("description", "default") if name in option}
    return {**said, "anyOf": [{name: value for name, value in option.items() if name not in said}, {"const": ""}]}


_BODY = {"schema": {"type": "string"}}
_NOT_JSON = "Not sent with JSON."
OUTPUT_HEADERS = {
    STATUS_HEADER: {
        "description": f"The member `status` of the JSON answer. {_NOT_JSON}",
        "schema": {"type": "string", "enum": ["ok", "partial"]},
    },
    NOTES_HEADER: {
        "description": f"Pages that are not simply read or blank, at most {MOST_NOTED} and then `...`: number, status, "
        "and the code of the error, warnings, or why the text was cut, such as `3 failed undecodable_file`. "
        f"{_NOT_JSON}",
        "schema": {"type": "string"},
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": OUTPUT_HEADERS,
        "content": {
            **{each.essence: _BODY for each in FORMATS.values() if each is not DEFAULT},
            stream.MEDIA_TYPE: _BODY,
        },
    },
    **problems(404, 406, reads=True),
}


@router.post("/api/ocr/run", response_model=OcrAnswer, responses=_RESPONSES, openapi_extra=form_description(OcrFields))
@router.post("/ocr", response_model=OcrAnswer, responses=_RESPONSES, openapi_extra=form_description(OcrFields))
async def read_document(request: Request, services: ServicesDep, record: RecordDep, may_store: MayStoreDep) -> Response:
    """Read the text of a document."""
    # Admission before the body: a request that is rejected has not uploaded for nothing.
    permit = record.resources.enter_context(services.gate.admit(record.client))
    with services.observer.receiving() as received:
        start_s = time.monotonic()
        form = await receive_form(request, services.bounds, OcrFields)
        received(len(form.data))
        receive_s = time.monotonic() - start_s
    fields = form.fields
    output = _output(request, fields)
    try:
        ocr_request = request_of(services, form, services.reader.limits, output)
    except TooManyPagesError as error:
        point_to_jobs(services, error)
        raise
    wanted = arrangement_of(fields)
    check_arrangement(wanted, ocr_request, services.models.tasks(ocr_request.model_id), output)
    # From the end of the upload.
    deadline = Deadline(services.bounds.deadline_s, services.bounds.document_deadline_s)
    consent = new_consent(may_store)
    work = partial(_answer, services, record, permit, form.data, ocr_request, wanted, receive_s, deadline, consent)
    if fields.stream:
        return ReadingStream(work, record=record)
    return await run_to_outcome(
        _respond(services, form, ocr_request.task, output, work),
        disconnected=partial(until_disconnect, request.receive),
    )


def request_of(
    services: Services, form: OcrForm[FieldsT], limits: IntakeLimits, output: OutputFormat = DEFAULT
) -> OcrRequest:
    """The checked request of a form, to be answered in a format; a `DeepSynthError` says what is wrong with it."""
    fields = form.fields
    return parse_request(
        data=form.data,
        info=services.engine.info,
        models=services.models,
        limits=limits,
        max_new_tokens_cap=services.bounds.max_new_tokens,
        task=fields.task,
        query=fields.query,
        mode=fields.mode,
        model_id=fields.model_id,
        max_new_tokens=fields.max_new_tokens,
        pages=fields.pages,
        temperature=fields.temperature,
        seed=fields.seed,
        blank_pages=fields.blank_pages or services.bounds.blank_pages,
        min_confidence=services.bounds.min_confidence if fields.min_confidence is None else fields.min_confidence,
        min_coverage=services.bounds.min_coverage if fields.min_coverage is None else fields.min_coverage,
        orientation=fields.orientation or services.bounds.orientation,
        **_confidence(fields, output, services.bounds),
        pages_together=fields.pages_together,
        layout=fields.layout,
    )


def arrangement_of(fields: OcrFields) -> Arrangement:
    """How a form's client wants the text; an `InvalidFieldError` if it cannot be read."""
    return Arrangement(fields.table_format, parse_omit(fields.omit), fields.figures, fields.join_pages)


def _output(request: Request, fields: OcrFields) -> OutputFormat:
    """The format to answer in; a `DeepSynthError` if the client accepts none, or a stream in another than JSON."""
    if fields.stream:
        # As before there were formats: clients of streams accept whatever they like.
        if fields.format not in (None, DEFAULT.name):
            raise InvalidFieldError(public={"field": "format", "expected": f"{DEFAULT.name}, with a stream"})
        return DEFAULT
    return choose_format(request.headers.getlist("accept")) if fields.format is None else FORMATS[fields.format]


def _confidence(fields: OcrFields, output: OutputFormat, bounds: RequestBounds) -> dict[str, Any]:
    """How fine confidences are scored; an `InvalidFieldError` if the format has no place for what was asked for."""
    if output is DEFAULT:
        threshold = bounds.review_threshold if fields.review_threshold is None else fields.review_threshold
        return {"confidence": fields.confidence, "review_threshold": threshold}
    if fields.review_threshold is not None:
        raise InvalidFieldError(public={"field": "review_threshold", "expected": f"the format {DEFAULT.name}"})
    if output.has_word_confidences:
        return {"confidence": fields.confidence or Granularity.WORD}
    if fields.confidence not in (None, Granularity.PAGE):
        formats = [DEFAULT.name, *(name for name, each in FORMATS.items() if each.has_word_confidences)]
        raise InvalidFieldError(public={"field": "confidence", "expected": f"one of the formats {', '.join(formats)}"})
    return {}


async def _respond(
    services: Services,
    form: OcrForm[OcrFields],
    task: Task,
    output: OutputFormat,
    work: Callable[[], Awaitable[OcrAnswer]],
) -> Response:
    document = ReadDocument(await work(), task, form.data, form.name, services.reader.limits)
    return await document_response(services, document, output)


async def document_response(services: Services, document: ReadDocument, output: OutputFormat) -> Response:
    """A document in an output format."""
    with services.observer.rendering(output.name):
        body = await output.render(document, services.pdf_maker)
    headers = {}
    if output is not DEFAULT:
        headers["content-disposition"] = content_disposition(document.name, output.extension)
        headers[STATUS_HEADER] = document.answer.status
        if notes := notes_of(document.answer.pages):
            headers[NOTES_HEADER] = to_header(notes)
    return Response(body, media_type=output.media_type, headers=headers)


async def _answer(
    services: Services,
    record: RequestRecord,
    permit: Permit,
    data: bytes,
    ocr_request: OcrRequest,
    wanted: Arrangement,
    receive_s: float,
    deadline: Deadline,
    consent: Consent,
    on_delta: DeltaSink | None = None,
    on_page: PageSink | None = None,
) -> OcrAnswer:
    def show(page: PageResult) -> None:
        if on_page is not None:
            on_page(arrange_page(page, wanted))

    document = await read_leased(services, permit, data, ocr_request, deadline, consent, on_delta, on_page and show)
    deadline.renew()
    async with deadline.enforced():
        arranged = await arrange(document, wanted, data, services.reader)
    latency_s = time.monotonic() - record.started_s
    return to_answer(document, consent.answer_id, receive_s=receive_s, latency_s=latency_s, arranged=arranged)
