"""Errors as clients see them: RFC 9457 problem+json, without any text of an exception.

Routes that speak another service's protocol send that service's shape, with the same codes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import compile_path

from service.admission.request import record_of
from service.errors import (
    CapacityError,
    DeepSynthError,
    InternalError,
    InvalidFieldError,
    MalformedBodyError,
    MethodNotAllowedError,
    ModelNotFoundError,
    NotFoundError,
    PageOutOfRangeError,
)
from service.telemetry import logs

CHAT_PATH = "/v1/chat/completions"
MISTRAL_PATH = "/v1/ocr"
DOCUMENT_INTELLIGENCE_PATH = "/documentintelligence"
_ADVICE = {
    "/chat/completions": "The base URL of OpenAI's clients ends with /v1.",
    "/models": "The base URL of OpenAI's clients ends with /v1.",
    "/v1/v1/ocr": "The address that Mistral's clients are given has no /v1 at its end.",
    "/v1/responses": "Send pages to POST /v1/chat/completions.",
    "/v1/completions": "Send pages to POST /v1/chat/completions.",
    "/v1/files": "Files come inside the request that reads them, as data URLs.",
}
"""What helps clients of other APIs, by paths that do not exist here."""
MEDIA_TYPE = "application/problem+json"


def problem(error: DeepSynthError, request_id: str) -> dict[str, Any]:
    """The body of an error, as members of a JSON object; public members never replace a standard one.

    Where tracing is on, `trace_id` is the trace that the error belongs to.
    """
    traced = logs.trace_id()
    return {
        **error.public,
        "type": f"urn:deepsynth:error:{error.code}",
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "retryable": error.retryable,
        "request_id": request_id,
        **({} if traced is None else {"trace_id": traced}),
    }


_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
PARAMETER_TITLE = "A parameter is missing, unknown or not valid."
_OPENAI_NAMES = {"model_id": "model", "max_new_tokens": "max_completion_tokens"}


def error_message(error: DeepSynthError) -> str:
    """For protocols with one text for an error: the title, and the public members in brackets."""
    # These APIs have no forms, and name what is wrong in `param`.
    title = PARAMETER_TITLE if isinstance(error, InvalidFieldError) else error.title
    members = {name: ", ".join(value) if isinstance(value, list) else value for name, value in error.public.items()}
    if "field" in members:
        # Both APIs have parameters, by their own names.
        members = {"parameter": _parameter(error) or "", **members}
        del members["field"]
    facts = "; ".join(f"{name}: {value}" for name, value in members.items() if value != "")
    return f"{title} ({facts})" if facts else title


def _parameter(error: DeepSynthError) -> str | None:
    """The parameter that an error is about, by the name it has in OpenAI's and Mistral's APIs."""
    if isinstance(error, ModelNotFoundError):
        return "model"
    if isinstance(error, PageOutOfRangeError):
        return "pages"
    field = str(error.public.get("field") or "")
    return _OPENAI_NAMES.get(field, field) or None


def openai_error(error: DeepSynthError, request_id: str) -> dict[str, Any]:
    """The body of an error as OpenAI's API has it; clients find the request's id in the header."""
    del request_id
    kind = _OPENAI_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error_message(error), "type": kind, "param": _parameter(error), "code": error.code}}


def mistral_error(error: DeepSynthError, request_id: str) -> dict[str, Any]:
    """The body of an error as Mistral's API has it; its client reads `detail` of 422 alone."""
    parameter = _parameter(error)
    body: dict[str, Any] = {
        "object": "error",
        "message": error_message(error),
        "type": error.outcome,
        "param": parameter,
        "code": error.code,
        "request_id": request_id,
    }
    if error.status == 422:
        place = [int(part) if part.isdecimal() else part for part in (parameter or "").split(".") if part]
        body["detail"] = [{"loc": ["body", *place], "msg": error_message(error), "type": error.code}]
    return body


def azure_error(error: DeepSynthError, request_id: str) -> dict[str, Any]:
    """The body of an error as Azure's API has it; clients find the request's id in the header."""
    del request_id
    return {"error": {"code": error.code, "message": error_message(error), "target": _parameter(error)}}


def both_errors(error: DeepSynthError, request_id: str) -> dict[str, Any]:
    """A problem that OpenAI's clients understand too: they show the message in `error` alone."""
    return {**problem(error, request_id), **openai_error(error, request_id)}


_Shape = Callable[[DeepSynthError, str], dict[str, Any]]
_SHAPES: dict[str, _Shape] = {CHAT_PATH: openai_error, MISTRAL_PATH: mistral_error}


def _shape_of(path: str) -> _Shape | None:
    return azure_error if path.startswith(f"{DOCUMENT_INTELLIGENCE_PATH}/") else _SHAPES.get(path)


def problem_response(error: DeepSynthError, scope: Mapping[str, Any]) -> Response:
    """The response of an error, which is also recorded as the request's outcome."""
    record = record_of(scope)
    record.fail(error)
    headers = {"cache-control": "no-store"}
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, CapacityError):
        headers["retry-after"] = str(error.retry_after_s)
    shape = _shape_of(scope["path"])
    media_type = "application/json" if shape else MEDIA_TYPE
    if shape is None:
        shape = both_errors if scope["path"].startswith("/v1/") or scope["path"] in _ADVICE else problem
    body = json.dumps(shape(error, record.request_id))
    return Response(body, status_code=error.status, media_type=media_type, headers=headers)


async def on_known_error(request: Request, error: Exception) -> Response:
    """Handler for errors of the tree."""
    if not isinstance(error, DeepSynthError):
        error = InternalError()
    return problem_response(error, request.scope)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Handler for errors of the framework: unknown paths and methods."""
    if not isinstance(error, HTTPException):
        return problem_response(InternalError(), request.scope)
    known: dict[int, type[DeepSynthError]] = {404: NotFoundError, 405: MethodNotAllowedError, 400: MalformedBodyError}
    advice = _ADVICE.get(request.scope["path"])
    public = {"advice": advice} if advice and error.status_code == HTTPStatus.NOT_FOUND else {}
    response = problem_response(known.get(error.status_code, InternalError)(public=public), request.scope)
    if error.headers and "Allow" in error.headers:
        response.headers["allow"] = ", ".join(_methods(request)) or error.headers["Allow"]
    return response


def _methods(request: Request) -> list[str]:
    """Methods of all routes at the request's path; the framework names those of the first alone."""
    paths = request.app.openapi()["paths"]
    found = (paths[path] for path in paths if compile_path(path)[0].match(request.scope["path"]))
    return sorted({method.upper() for operations in found for method in operations})
