"""JSON bodies that may contain a file: received and parsed within limits."""

from __future__ import annotations

import asyncio
import re
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, Discriminator, ValidationError

from service.deps import RequestBounds
from service.errors import InvalidFieldError, MalformedJsonError, NotJsonError
from service.routes.form import FORM_OVERHEAD_BYTES, BoundedBody, unknown_field

MAX_VALUES = 10_000
"""Commas and opening brackets of a body. Millions of tiny values would take 20 times the body's bytes when parsed."""
_NAME = re.compile(r"[A-Za-z_]{1,40}")

ModelT = TypeVar("ModelT", bound=BaseModel)


def kind_by(name: str, *kinds: str) -> Discriminator:
    """Tells the members of a union, tagged `<KIND>`, by the value of a field that all of them have."""

    def tag(value: Any) -> str | None:
        found = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
        # Field names never contain these characters, so an error's location shows which parts are tags.
        return f"<{found}>" if isinstance(found, str) and found in kinds else None

    expected = f"an object whose {name} is one of {', '.join(kinds)}"
    return Discriminator(tag, custom_error_type="kind", custom_error_message=expected)


def limit_bytes(bounds: RequestBounds) -> int:
    """Maximum bytes of a body: base64 makes 4 of 3, and an escaped slash (some writers escape every one) 2 of 1."""
    return bounds.max_upload_bytes * 7 // 5 + FORM_OVERHEAD_BYTES


async def receive_json(request: Request, bounds: RequestBounds, model: type[ModelT]) -> ModelT:
    """Receive and validate a body; only one copy of a file in it is left, as a string of the model.

    Args:
        request: Its body must not have been read.
        bounds: Limits.
        model: What it should be.

    Returns:
        The body.

    Raises:
        NotJsonError: It is not said to be JSON.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise NotJsonError
    body = bytearray()
    pieces = BoundedBody(request, bounds, limit_bytes(bounds)).stream()
    try:
        async for piece in pieces:
            body += piece
    finally:
        await pieces.aclose()
    # In a thread, since parsing a large file would block the event loop.
    return await asyncio.to_thread(parse_json, body, model)


def parse_json(body: bytes | bytearray, model: type[ModelT]) -> ModelT:
    """Parse and validate a body.

    Args:
        body: JSON.
        model: What it should be.

    Returns:
        The body.

    Raises:
        MalformedJsonError: It is not JSON, is nested too deeply or has too many values.
        InvalidFieldError: A field is not valid; the error says which, without quoting values.
    """
    if sum(body.count(sign) for sign in (b",", b"[", b"{")) > MAX_VALUES:
        raise MalformedJsonError(public={"reason": f"more than {MAX_VALUES} values"})
    try:
        # Strict: true is no number, and no number or text is true.
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        # Cheap even for many errors, as no input is quoted.
        problem: Any = error.errors(include_input=False, include_url=False)[0]
    if problem["type"] == "json_invalid":
        # Says what was expected and in which line and column, and quotes nothing.
        raise MalformedJsonError(public={"reason": str(problem["ctx"]["error"])})
    if problem["type"] == "extra_forbidden":
        raise unknown_field(str(problem["loc"][-1]), list(model.model_fields))
    raise InvalidFieldError(public={"field": _place(problem["loc"]), "expected": str(problem["msg"])})


def _place(location: tuple[int | str, ...]) -> str:
    """Where a field is, as `messages.0.content`."""
    return ".".join(str(part) for part in location if isinstance(part, int) or _NAME.fullmatch(part))
