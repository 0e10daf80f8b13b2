"""Errors as clients see them: RFC 9457 problem+json, without any text of an exception."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.admission.request import RequestRecord, record_of
from service.errors import (
    CapacityError,
    DeepSynthError,
    InternalError,
    MalformedBodyError,
    MethodNotAllowedError,
    NotFoundError,
)

MEDIA_TYPE = "application/problem+json"


def problem(error: DeepSynthError, request_id: str) -> dict[str, Any]:
    """The body of an error, as members of a JSON object; public members never replace a standard one."""
    return {
        **error.public,
        "type": f"urn:deepsynth:error:{error.code}",
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "retryable": error.retryable,
        "request_id": request_id,
    }


def problem_response(error: DeepSynthError, record: RequestRecord) -> Response:
    """The response of an error, which is also recorded as the request's outcome."""
    record.fail(error)
    headers = {"cache-control": "no-store"}
    if isinstance(error, CapacityError):
        headers["retry-after"] = str(error.retry_after_s)
    body = json.dumps(problem(error, record.request_id))
    return Response(body, status_code=error.status, media_type=MEDIA_TYPE, headers=headers)


async def on_known_error(request: Request, error: Exception) -> Response:
    """Handler for errors of the tree."""
    if not isinstance(error, DeepSynthError):
        error = InternalError()
    return problem_response(error, record_of(request.scope))


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Handler for errors of the framework: unknown paths and methods."""
    if not isinstance(error, HTTPException):
        return problem_response(InternalError(), record_of(request.scope))
    known: dict[int, type[DeepSynthError]] = {404: NotFoundError, 405: MethodNotAllowedError, 400: MalformedBodyError}
    response = problem_response(known.get(error.status_code, InternalError)(), record_of(request.scope))
    if error.headers and "Allow" in error.headers:
        response.headers["allow"] = error.headers["Allow"]
    return response
