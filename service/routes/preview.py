"""`POST /preview`: one page of a document as a picture, for clients that cannot show PDF, TIFF or HEIC files."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service.access.key import Scope
from service.admission.deadline import Deadline, run_to_outcome
from service.admission.gate import Permit
from service.deps import RecordDep, Services, ServicesDep, require_ready
from service.errors import InvalidFieldError
from service.intake.document import Document
from service.intake.preview import MAX_SIDE_PX, Preview, PreviewTask
from service.intake.selection import parse_pages
from service.ocr.outcome import Orientation
from service.routes.auth import require
from service.routes.consent import MayStoreDep
from service.routes.form import FILE_FIELD, OcrFields, receive_form
from service.routes.ocr import or_empty
from service.routes.openapi import problems
from service.routes.stream import until_disconnect

router = APIRouter(tags=["ocr"], dependencies=[Depends(require(Scope.OCR)), Depends(require_ready)])

MEDIA_TYPE = "image/jpeg"
PAGES_HEADER = "x-page-count"
SIZE_HEADER = "x-page-size"
TURN_HEADER = "x-page-turn"
_NUMBER = {"type": "integer", "minimum": 1}
_HEADERS = {
    "X-Page-Count": {"description": "Pages of the document; 1 for an animation.", "schema": _NUMBER},
    "X-Page-Size": {
        "description": "Width and height of the upright page in pixels, such as 1240x1754; boxes are in these pixels.",
        "schema": {"type": "string", "pattern": "^[0-9]+x[0-9]+$"},
    },
    "X-Page-Turn": {
        "description": "By how many degrees the page was turned clockwise to be upright, after what the file says.",
        "schema": {"type": "integer", "enum": [0, 90, 180, 270]},
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": f"The page as JPEG, no side longer than {MAX_SIDE_PX} pixels.",
        "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        "headers": _HEADERS,
    },
    **problems(reads=True),
}
_FORM = {
    "type": "object",
    "required": [FILE_FIELD],
    "properties": {
        FILE_FIELD: {"type": "string", "format": "binary", "description": "A file that POST /ocr reads."},
        "pages": {"type": "string", "description": "The number of one page; the first when not given."},
        "orientation": or_empty(
            {"type": "string", "enum": [str(each) for each in Orientation], "description": "As POST /ocr has it."}
        ),
    },
}
_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}


@router.post("/preview", response_class=Response, responses=_RESPONSES, openapi_extra=_BODY)
async def preview_page(request: Request, services: ServicesDep, record: RecordDep, _: MayStoreDep) -> Response:
    """Show one page of a document as it will be read: upright, at most 1600 pixels wide and high."""
    permit = record.resources.enter_context(services.gate.admit(record.client))
    form = await receive_form(request, services.bounds, OcrFields)
    preview = await run_to_outcome(
        _preview(services, permit, form.data, _task(form.fields, services.bounds.orientation)),
        disconnected=partial(until_disconnect, request.receive),
    )
    headers = {
        PAGES_HEADER: str(preview.num_pages),
        SIZE_HEADER: f"{preview.width_px}x{preview.height_px}",
        TURN_HEADER: str(preview.turned_degrees),
        "cache-control": "no-store",
        # What an image process sends is not looked into: a browser may show it as a picture, and do nothing else.
        "content-security-policy": "default-src 'none'; sandbox",
        "cross-origin-resource-policy": "same-origin",
    }
    return Response(bytes(preview.jpeg), media_type=MEDIA_TYPE, headers=headers)


def _task(fields: OcrFields, default: Orientation) -> PreviewTask:
    """The page to show; an `InvalidFieldError` for more than one, and for options of reading."""
    others = sorted(fields.model_fields_set - {"pages", "orientation"})
    if others:
        raise InvalidFieldError(public={"field": others[0], "expected": "not to be sent to this route"})
    is_as_is = (fields.orientation or default) is Orientation.AS_IS
    return PreviewTask(parse_pages(fields.pages or "1", 1)[0], 0 if is_as_is else None)


async def _preview(services: Services, permit: Permit, data: bytes, task: PreviewTask) -> Preview:
    document = Document(data, services.reader.limits, (task.page,), client=permit.client)
    permit.mark_running()
    try:
        async with Deadline(services.bounds.deadline_s).enforced():
            return await services.images.preview(document, task)
    finally:
        services.images.close(document)
