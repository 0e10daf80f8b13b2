"""The multipart form of an OCR request: received within limits, then validated field by field."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.deps import RequestBounds
from service.engine.protocol import MAX_TEMPERATURE
from service.errors import (
    BodyTimeoutError,
    ClientGoneError,
    InvalidFieldError,
    MalformedBodyError,
    NotMultipartError,
    UploadTooLargeError,
)
from service.ocr.outcome import BlankPages
from service.ocr.sampling import MAX_GIVEN_SEED, MIN_GIVEN_SEED, SEED_EXPECTED, TEMPERATURE_EXPECTED
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.geometry import Mode

FORM_OVERHEAD_BYTES = 64 * 1024
MAX_FIELD_BYTES = 16 * 1024
FILE_FIELD = "file"


class OcrFields(BaseModel):
    """The form's text fields; an empty one counts as not given."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    model_id: str | None = Field(default=None, max_length=200)
    """Model that answers; see /v1/models."""
    task: Task = Task.FREE
    """What to do with the page."""
    mode: Mode | None = None
    """Resolution mode; the model's default when not given."""
    query: str | None = Field(default=None, max_length=1000)
    """What to look for; required by the task `locate`, refused with others."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Maximum tokens per page; longer answers end with `length`."""
    pages: str | None = Field(default=None, max_length=200)
    """Pages of a PDF or TIFF, such as `1-3,7`; all when not given."""
    temperature: float | None = Field(default=None, ge=0, le=MAX_TEMPERATURE, allow_inf_nan=False)
    """0, the default, always chooses the most probable token; above 0, tokens are sampled."""
    seed: int | None = Field(default=None, ge=MIN_GIVEN_SEED, le=MAX_GIVEN_SEED)
    """Makes sampling repeatable: the same seed gives the same text. Random when not given; the answer contains it."""
    blank_pages: BlankPages | None = None
    """What to do with pages that show no print: `skip` reports them as blank, `read` lets the model read them and gives
    every answer as it is. The service's setting when not given."""
    min_confidence: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    """An answer with a lower confidence for a page with little print is reported as unreadable, without its text. The
    service's setting when not given."""
    stream: bool = False
    """Answer as server-sent events while the pages are being read."""

    @model_validator(mode="after")
    def _query_fits_task(self) -> OcrFields:
        prompt_for(self.task, self.query)
        return self


MAX_FIELDS = len(OcrFields.model_fields) + 1
"""One more than there are, so that an unknown field is named in the answer instead of the form being refused whole."""


@dataclass(frozen=True, slots=True)
class OcrForm:
    """A received form."""

    data: bytes
    fields: OcrFields


class BoundedBody:
    """A request's body with limits on bytes, pauses and total time."""

    def __init__(self, request: Request, bounds: RequestBounds) -> None:
        self._receive = request.receive
        self._limit_bytes = bounds.max_upload_bytes + FORM_OVERHEAD_BYTES
        self._bounds = bounds
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._limit_bytes:
            raise self._too_large()

    def _too_large(self) -> UploadTooLargeError:
        return UploadTooLargeError(public={"limit_bytes": self._bounds.max_upload_bytes})

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Chunks of the body.

        Yields:
            bytes: One chunk.

        Raises:
            UploadTooLargeError: The body exceeds the limit; at most one chunk beyond it was received.
            BodyTimeoutError: It stalled or took too long.
            ClientGoneError: The client disconnected.
        """
        end_s = time.monotonic() + self._bounds.body_total_s
        received_bytes = 0
        while True:
            try:
                async with asyncio.timeout(min(self._bounds.body_idle_s, end_s - time.monotonic())):
                    message = await self._receive()
            except TimeoutError as error:
                raise BodyTimeoutError from error
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            piece = message.get("body", b"")
            received_bytes += len(piece)
            if received_bytes > self._limit_bytes:
                raise self._too_large()
            yield piece
            if not message.get("more_body", False):
                return


class _InMemoryParser(MultiPartParser):
    """Keeps the file in memory: its size is bounded, and uploads are not stored."""

    spool_max_size = 0  # SpooledTemporaryFile: 0 never writes to disk


async def receive_form(request: Request, bounds: RequestBounds) -> OcrForm:
    """Receive and validate a form.

    Args:
        request: Its body must not have been read.
        bounds: Limits.

    Returns:
        The file's bytes and the fields.

    Raises:
        NotMultipartError: The body is not multipart/form-data.
        MalformedBodyError: It is not valid multipart, or has too many or too long parts.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise NotMultipartError
    body = BoundedBody(request, bounds).stream()
    parser = _InMemoryParser(request.headers, body, max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
    try:
        form = await parser.parse()
    except (MultiPartException, UnicodeError, ValueError) as error:
        raise MalformedBodyError from error
    finally:
        await body.aclose()
    try:
        items = form.multi_items()
        return OcrForm(await _file(items, bounds), parse_fields(items))
    finally:
        await form.close()


async def _file(items: list[tuple[str, Any]], bounds: RequestBounds) -> bytes:
    files = [value for name, value in items if isinstance(value, UploadFile) and name == FILE_FIELD]
    if len(files) != 1:
        raise InvalidFieldError(public={"field": FILE_FIELD, "expected": "one file, sent with a file name"})
    if (files[0].size or 0) > bounds.max_upload_bytes:
        raise UploadTooLargeError(public={"limit_bytes": bounds.max_upload_bytes})
    data: bytes = await files[0].read()
    return data


def parse_fields(items: list[tuple[str, Any]]) -> OcrFields:
    """Validate the text fields.

    Args:
        items: Names and values in the order sent; files are skipped.

    Returns:
        The fields.

    Raises:
        InvalidFieldError: A field is unknown, repeated or not valid; the error says which, without quoting values.
    """
    given: dict[str, str] = {}
    for name, value in items:
        if name == FILE_FIELD and isinstance(value, UploadFile):
            continue
        if not isinstance(value, str) or name not in OcrFields.model_fields:
            raise InvalidFieldError(public={"field": "", "expected": [FILE_FIELD, *OcrFields.model_fields]})
        if name in given:
            raise InvalidFieldError(public={"field": name, "expected": "to be sent once"})
        if value.strip():
            given[name] = value.strip()
    try:
        return OcrFields.model_validate(given)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        field = str(problem["loc"][0]) if problem["loc"] else "query"
        raise InvalidFieldError(public={"field": field, "expected": _expected(problem["type"], field)}) from error


def _expected(kind: str, field: str) -> str | list[str]:
    """What is valid for a field, in fixed words that quote no value."""
    choices: dict[str, type[Task | Mode]] = {"task": Task, "mode": Mode}
    if field in choices:
        return [str(choice) for choice in choices[field]]
    if field == "query":
        return "text to look for with the task locate, and only with it"
    if field == "temperature":
        return TEMPERATURE_EXPECTED
    if field == "seed":
        return SEED_EXPECTED
    return {
        "int_parsing": "a whole number",
        "greater_than_equal": "a number from 1",
        "bool_parsing": "true or false",
        "string_too_long": "a shorter text",
    }.get(kind, "a valid value")
