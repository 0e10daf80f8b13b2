"""`PUT /process`, as Open WebUI's external document loader sends files. Translates alone.

The body is the file, whatever its declared type; the answer is a list with the text of each page that has any.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Request

from service.admission.deadline import Deadline
from service.admission.gate import Permit
from service.deps import RecordDep, Services, ServicesDep, require_ready
from service.errors import NoTextError, UnreadableError
from service.ocr.answer import to_page_answer
from service.ocr.outcome import PageStatus
from service.ocr.reader import DocumentResult, PageResult
from service.ocr.request import OcrRequest, parse_request
from service.routes.auth import use_key
from service.routes.consent import Consent, MayStoreDep, new_consent
from service.routes.form import receive_raw, refuse_query
from service.routes.openapi import problems
from service.routes.reading import read_leased, run_for_client
from service.schemas import LoadedMetadata, LoadedPage

PATH = "/process"
MAX_NAME_CHARS = 255

router = APIRouter(tags=["clients"], dependencies=[Depends(use_key), Depends(require_ready), Depends(refuse_query)])


def file_name(header: str) -> str:
    """The last part of a URL-encoded path, without control characters; a name for people alone."""
    name = re.split(r"[/\\]", unquote(header, errors="replace"))[-1]
    return "".join(sign for sign in name if sign.isprintable())[:MAX_NAME_CHARS]


_RESPONSES = problems(404, reads=True)
_OPENAPI = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        "description": "An image or a PDF; the content decides, never the declared type.",
    },
    "parameters": [
        {
            "name": "X-Filename",
            "in": "header",
            "required": False,
            "schema": {"type": "string"},
            "description": "The file's name, URL-encoded; comes back as `metadata.source`.",
        }
    ],
}


@router.put(PATH, responses=_RESPONSES, openapi_extra=_OPENAPI)
async def load_document(
    request: Request, services: ServicesDep, record: RecordDep, may_store: MayStoreDep
) -> list[LoadedPage]:
    """Read a file for Open WebUI."""
    permit = record.resources.enter_context(services.gate.admit(record.client))
    with services.observer.receiving() as received:
        data = await receive_raw(request, services.bounds)
        received(len(data))
    ocr_request = parse_request(
        data=data,
        info=services.engine.info,
        models=services.models,
        limits=services.reader.limits,
        max_new_tokens_cap=services.bounds.max_new_tokens,
        blank_pages=services.bounds.blank_pages,
        min_confidence=services.bounds.min_confidence,
        min_coverage=services.bounds.min_coverage,
        orientation=services.bounds.orientation,
    )
    name = file_name(request.headers.get("x-filename", ""))
    deadline = Deadline(services.bounds.deadline_s, services.bounds.document_deadline_s)
    consent = new_consent(may_store)
    return await run_for_client(request, _read(services, permit, data, ocr_request, deadline, consent, name))


async def _read(
    services: Services,
    permit: Permit,
    data: bytes,
    ocr_request: OcrRequest,
    deadline: Deadline,
    consent: Consent,
    name: str,
) -> list[LoadedPage]:
    document = await read_leased(services, permit, data, ocr_request, deadline, consent)
    failed = next((page for page in document.pages if page.error is not None), None)
    if failed is not None and failed.error is not None:
        # The client could not tell that a page is missing, and would store the rest as the whole document.
        failed.error.public["page"] = failed.page
        raise failed.error
    pages = [page for page in document.pages if page.text.strip()]
    if not pages:
        unreadable = [str(page.page) for page in document.pages if page.status is PageStatus.UNREADABLE]
        raise UnreadableError(public={"pages": unreadable}) if unreadable else NoTextError
    return [LoadedPage(page_content=page.text, metadata=_metadata(page, document, consent, name)) for page in pages]


def _metadata(page: PageResult, document: DocumentResult, consent: Consent, name: str) -> LoadedMetadata:
    said = to_page_answer(page)
    return LoadedMetadata(
        source=name,
        page=page.page - 1,
        page_label=str(page.page),
        total_pages=len(document.pages),
        answer_id=consent.answer_id,
        model_id=document.model_id,
        finish_reason=said.finish_reason,
        confidence=said.confidence,
    )
