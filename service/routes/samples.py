"""`POST /feedback`: a corrected page. `DELETE /samples/ID`: erase it. `GET /samples`: all, for operators.

The id of an answer allows correcting and erasing its pages: only the client that got the answer knows it.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response, StreamingResponse

from service.access.key import Scope
from service.deps import Services, ServicesDep, require_ready
from service.errors import (
    InvalidFieldError,
    MalformedJsonError,
    NotJsonError,
    SampleOptedOutError,
    SamplesOffError,
    TextNotUnicodeError,
    TextTooLongError,
)
from service.routes.auth import require, require_samples
from service.routes.consent import MayStoreDep
from service.routes.form import BoundedBody
from service.routes.json_body import parse_json
from service.routes.openapi import json_body, problems
from service.samples.keeper import SampleKeeper
from service.schemas import ErasedAnswer, FeedbackAnswer, FeedbackRequest
from shared.contract.samples import MAX_TEXT_CHARACTERS

MAX_BODY_BYTES = 12 * MAX_TEXT_CHARACTERS + 4096
"""As many as the longest text takes when each of its characters is written as two escapes."""
TAR = "application/x-tar"

router = APIRouter(tags=["samples"], dependencies=[Depends(require_ready)])
export_router = APIRouter(tags=["samples"], dependencies=[Depends(require_samples), Depends(require_ready)])


async def _require_samples(services: ServicesDep) -> SampleKeeper:
    if services.samples is None:
        raise SamplesOffError
    return services.samples


SamplesDep = Annotated[SampleKeeper, Depends(_require_samples)]


@router.post(
    "/feedback",
    dependencies=[Depends(require(Scope.OCR))],
    responses=problems(400, 404, 408, 409, 413, 415, 422, 503),
    openapi_extra=json_body(FeedbackRequest),
)
async def give_feedback(
    request: Request, services: ServicesDep, samples: SamplesDep, may_store: MayStoreDep
) -> FeedbackAnswer:
    """Store what is printed on a page that was read wrongly, with the page."""
    if not may_store:
        raise SampleOptedOutError
    feedback = await _receive(request, services)
    page = await samples.correct(feedback.id, feedback.page, feedback.text)
    return FeedbackAnswer(id=feedback.id, page=page)


async def _receive(request: Request, services: Services) -> FeedbackRequest:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise NotJsonError
    body = bytearray()
    pieces = BoundedBody(request, services.bounds, MAX_BODY_BYTES).stream()
    try:
        async for piece in pieces:
            body += piece
    finally:
        await pieces.aclose()
    return parse_feedback(body)


def parse_feedback(body: bytes | bytearray) -> FeedbackRequest:
    """Parse and validate a correction.

    Args:
        body: JSON.

    Returns:
        The correction, with line feeds alone.

    Raises:
        TextNotUnicodeError: The text has lone surrogates, or the body is not UTF-8.
        TextTooLongError: The text is longer than any page.
        InvalidFieldError: A field is not valid, or the text has control characters.
    """
    try:
        # Here, since pydantic does not tell half of a surrogate pair from other faults.
        given = json.loads(body.decode())
    except UnicodeDecodeError as error:
        raise TextNotUnicodeError from error
    except (ValueError, RecursionError) as error:
        raise MalformedJsonError from error
    text = given.get("text") if isinstance(given, dict) else None
    if isinstance(text, str):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextNotUnicodeError from error
        if len(text) > MAX_TEXT_CHARACTERS:
            raise TextTooLongError(public={"limit": MAX_TEXT_CHARACTERS})
    feedback = parse_json(body, FeedbackRequest)
    text = feedback.text.replace("\r\n", "\n").replace("\r", "\n")
    if any(unicodedata.category(character) == "Cc" and character not in "\n\t\f" for character in text):
        raise InvalidFieldError(public={"field": "text", "expected": "text without control characters"})
    return feedback.model_copy(update={"text": text})


@router.delete(
    "/samples/{answer_id}",
    dependencies=[Depends(require(Scope.OCR, Scope.SAMPLES))],
    responses=problems(404, 409, 422, 503),
)
async def erase_samples(answer_id: str, samples: SamplesDep) -> ErasedAnswer:
    """Erase every page of an answer that is kept, with all that was read on it and corrected."""
    return ErasedAnswer(id=answer_id, pages=await samples.erase(answer_id))


@export_router.get(
    "/samples",
    response_class=Response,
    responses={
        200: {"content": {TAR: {"schema": {"type": "string", "format": "binary"}}}},
        **problems(409, 422, 503),
    },
    openapi_extra={
        "parameters": [{"name": "only", "in": "query", "schema": {"type": "string", "enum": ["corrected"]}}]
    },
)
async def export_samples(request: Request, samples: SamplesDep) -> Response:
    """Give all samples away as a tar file, which unpacks to a folder that the trainer reads."""
    kinds = request.query_params.getlist("only")
    unknown = set(request.query_params) - {"only"}
    if unknown or kinds not in ([], ["corrected"]):
        raise InvalidFieldError(public={"field": "only", "expected": ["corrected"]})
    headers = {"content-disposition": 'attachment; filename="samples.tar"', "cache-control": "no-store"}
    pieces = samples.export(only_corrected=bool(kinds))
    # Before the status is sent: a later failure can only cut the file off.
    first = await anext(pieces)
    return StreamingResponse(_chained(first, pieces), media_type=TAR, headers=headers)


async def _chained(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece
