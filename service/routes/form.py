"""The options and the file of an OCR request: received within limits, then validated field by field.

Options come in the multipart form, in the URL's query string, or in both; the file comes in the form.
"""

from __future__ import annotations

import asyncio
import difflib
import re
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar, get_args

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from python_multipart.multipart import parse_options_header
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
    PublicValue,
    UploadTooLargeError,
)
from service.ocr.confidence import Granularity
from service.ocr.formats.registry import FORMATS
from service.ocr.outcome import BlankPages, Orientation
from service.ocr.request import QUERY_EXPECTED
from service.ocr.sampling import MAX_GIVEN_SEED, MIN_GIVEN_SEED, SEED_EXPECTED, TEMPERATURE_EXPECTED
from service.ocr.tables import TableFormat
from service.routes.disposition import browser_name, extended_name, safe_name
from shared.contract.prompts import Task
from shared.deepseek_ocr.geometry import Mode
from shared.deepseek_ocr.reading_layout import ReadingLayout

FORM_OVERHEAD_BYTES = 64 * 1024
MAX_FIELD_BYTES = 16 * 1024
FILE_FIELD = "file"


class OcrFields(BaseModel):
    """The form's text fields; an empty one counts as not given."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    model_id: str | None = Field(default=None, max_length=200)
    """Model that answers; see /v1/models."""
    task: str = Field(default=Task.FREE, json_schema_extra={"enum": list(Task)})
    """What to do with the page; /v1/models lists what a model can do."""
    mode: str | None = Field(default=None, json_schema_extra={"enum": list(Mode)})
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
    confidence: Granularity | None = None
    """How fine confidences are given: `page` (default), `block` or `word`; in JSON, and in hOCR and ALTO, which have
    those of words when not given. Other formats have none."""
    review_threshold: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    """Lists the words and digits whose confidence is below it, in JSON alone. The service's setting when not given."""
    min_coverage: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    """A page of whose print the text accounts for less than this share gets the warning `partly_read`. The service's
    setting when not given."""
    orientation: Orientation | None = None
    """What to do with pages that are not upright: `auto` finds and turns them, `as-is` reads them as they are. The
    service's setting when not given."""
    layout: ReadingLayout = ReadingLayout.AUTO
    """Whether a page goes to the model whole (`page`) or by its `lines`. With `auto` a base model that reads lines, as
    nano does, gets pages of more than one view by lines; adapters get whole pages."""
    table_format: TableFormat | None = None
    """How tables in Markdown are written; as the model wrote them when not given."""
    omit: str | None = Field(default=None, max_length=200)
    """Parts of Markdown to leave out by their labels: `header`, `footer`, `page_number`, several with commas."""
    figures: bool = False
    """Cut out the figures that the model saw, and link them in the Markdown."""
    join_pages: bool = False
    """Join paragraphs and tables that go on across pages in the document's text; `joins` says which."""
    pages_together: bool = False
    """Read all pages in one pass, so that each is read with the others in view; only for models that can, see
    /v1/models."""
    format: str | None = Field(default=None, json_schema_extra={"enum": list(FORMATS)})
    """Output format; the header Accept decides when not given, and JSON is the default. A stream is always JSON."""
    stream: bool = False
    """Answer as server-sent events while the pages are being read."""

    @field_validator("format")
    @classmethod
    def _format_exists(cls, value: str | None) -> str | None:
        if value is not None and value not in FORMATS:
            raise ValueError("no such format")
        return value


FieldsT = TypeVar("FieldsT", bound=OcrFields)
MAX_FIELDS = 64
"""More than there are, so that an unknown or repeated field is named instead of the form being refused as a whole."""
CHARSETS = ("utf-8", "us-ascii", "iso-8859-1", "windows-1252")
"""Of a form. Python remembers every encoding that it was asked for, even unknown ones, and some are slow to read."""
_FILENAME = re.compile(rb";\s*filename\s*=", re.IGNORECASE)
_NAMELESS = re.compile(rb';\s*filename\s*=\s*(?:""\s*)?(?:;|$)', re.IGNORECASE)
_EXTENDED_FILENAME = re.compile(rb";\s*filename\*\s*=", re.IGNORECASE)
MAX_NAME = 64
"""Of a field's name that is looked at."""
_PLAIN_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_NAME}}}")


@dataclass(frozen=True, slots=True)
class OcrForm(Generic[FieldsT]):
    """A received form."""

    data: bytes
    name: str
    """The file's, safe to show and to store."""
    fields: FieldsT


class BoundedBody:
    """A request's body with limits on bytes, pauses and total time; `limit_bytes` replaces the limit of a form."""

    def __init__(self, request: Request, bounds: RequestBounds, limit_bytes: int | None = None) -> None:
        self._receive = request.receive
        self._limit_bytes = bounds.max_upload_bytes + FORM_OVERHEAD_BYTES if limit_bytes is None else limit_bytes
        self._bounds = bounds
        self.received_bytes = 0
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
        while True:
            try:
                async with asyncio.timeout(min(self._bounds.body_idle_s, end_s - time.monotonic())):
                    message = await self._receive()
            except TimeoutError as error:
                raise BodyTimeoutError from error
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            piece = message.get("body", b"")
            self.received_bytes += len(piece)
            if self.received_bytes > self._limit_bytes:
                raise self._too_large()
            yield piece
            if not message.get("more_body", False):
                return


async def receive_raw(request: Request, bounds: RequestBounds) -> bytes:
    """A body that is a file; errors are those of `BoundedBody`."""
    pieces = BoundedBody(request, bounds, bounds.max_upload_bytes).stream()
    try:
        return b"".join([piece async for piece in pieces])
    finally:
        await pieces.aclose()


class _InMemoryParser(MultiPartParser):
    """Keeps the file in memory: its size is bounded, and uploads are not stored."""

    spool_max_size = 0  # SpooledTemporaryFile: 0 never writes to disk
    is_complete = False
    """Whether the closing boundary has come."""

    def on_headers_finished(self) -> None:
        """Take `filename*` as the file name where there is no other: the parser overlooks it."""
        header = self._current_part.content_disposition or b""
        has_plain = _FILENAME.search(header) is not None
        is_extended = _EXTENDED_FILENAME.search(header) is not None and (
            not has_plain or bool(_NAMELESS.search(header))
        )
        if is_extended and not has_plain:
            self._current_part.content_disposition = header + b'; filename=""'
        super().on_headers_finished()
        if self._current_part.file is not None:
            name = extended_name(header) if is_extended else self._current_part.file.filename
            self._current_part.file.filename = browser_name(name or "")

    def close_files(self) -> None:
        """Free the files of parts that have no end, which are not in the form."""
        for file in self._files_to_close_on_error:
            file.close()

    def on_end(self) -> None:
        """Note the closing boundary."""
        self.is_complete = True


async def receive_form(request: Request, bounds: RequestBounds, kind: type[FieldsT]) -> OcrForm[FieldsT]:
    """Receive and validate a form and the options in the query string.

    Args:
        request: Its body must not have been read.
        bounds: Limits.
        kind: What the route takes.

    Returns:
        The file and the fields.

    Raises:
        NotMultipartError: The body is not multipart/form-data.
        MalformedBodyError: It is not valid multipart, was cut off, or has too many or too long parts.
    """
    # Before the body: a misspelt option does not cost an upload.
    in_url = request.query_params.multi_items()
    _by_name(in_url, kind)
    kind_of_body, parameters = parse_options_header(request.headers.get("content-type"))
    if kind_of_body != b"multipart/form-data":
        raise NotMultipartError
    if parameters.get(b"charset", b"utf-8").decode("latin-1").lower() not in CHARSETS:
        raise MalformedBodyError(public={"reason": f"its charset is none of {', '.join(CHARSETS)}"})
    bounded = BoundedBody(request, bounds)
    body = bounded.stream()
    parser = _InMemoryParser(
        request.headers, body, max_files=MAX_FIELDS, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
    )
    try:
        form = await parser.parse()
    except (MultiPartException, UnicodeError, ValueError) as error:
        raise MalformedBodyError from error
    finally:
        await body.aclose()
    try:
        items: list[tuple[str, Any]] = form.multi_items()
        if bounded.received_bytes and not parser.is_complete:
            parser.close_files()
            raise MalformedBodyError(public={"reason": "the body ends before its closing boundary"})
        fields = parse_fields([*in_url, *items], kind)
        data, name = await _file(items, bounds)
        return OcrForm(data, name, fields)
    finally:
        await form.close()


async def _file(items: list[tuple[str, Any]], bounds: RequestBounds) -> tuple[bytes, str]:
    files = [value for name, value in items if isinstance(value, UploadFile) and name == FILE_FIELD]
    if len(files) != 1:
        raise InvalidFieldError(public={"field": FILE_FIELD, "expected": "one file, sent in the form with a file name"})
    if (files[0].size or 0) > bounds.max_upload_bytes:
        raise UploadTooLargeError(public={"limit_bytes": bounds.max_upload_bytes})
    return await files[0].read(), safe_name(files[0].filename)


def parse_fields(items: Iterable[tuple[str, Any]], kind: type[FieldsT]) -> FieldsT:
    """Validate the options.

    Args:
        items: Names and values in the order sent; the file is skipped.
        kind: What the route takes.

    Returns:
        The fields.

    Raises:
        InvalidFieldError: A field is unknown, repeated or not valid; the error says which, without quoting values.
    """
    try:
        return kind.model_validate(_by_name(items, kind))
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        field = str(problem["loc"][0]) if problem["loc"] else "query"
        raise InvalidFieldError(public={"field": field, "expected": _expected(problem["type"], field, kind)}) from error


def _by_name(items: Iterable[tuple[str, Any]], kind: type[OcrFields]) -> dict[str, str]:
    """The options that are not empty; `InvalidFieldError` for unknown and repeated ones."""
    given: dict[str, str] = {}
    sent: set[str] = set()
    for name, value in items:
        is_file = isinstance(value, UploadFile)
        if is_file and name == FILE_FIELD:
            continue
        if is_file or name not in kind.model_fields:
            raise _unknown(name, kind, is_file=is_file)
        if name in sent:
            raise InvalidFieldError(public={"field": name, "expected": "one value; it was sent more than once"})
        sent.add(name)
        if value.strip():
            given[name] = value.strip()
    return given


def _unknown(name: str, kind: type[OcrFields], *, is_file: bool) -> InvalidFieldError:
    """Names the field if that is plain text, and the known one that is nearest to it."""
    known = [FILE_FIELD, *kind.model_fields]
    if name == FILE_FIELD:
        return InvalidFieldError(public={"field": name, "expected": "one file, sent in the form with a file name"})
    if name in known:
        return InvalidFieldError(public={"field": name, "expected": "text without a file name"})
    if is_file:
        public: dict[str, PublicValue] = {"field": _shown(name), "expected": known, "did_you_mean": FILE_FIELD}
        return InvalidFieldError(public=public)
    return unknown_field(name, known)


async def refuse_query(request: Request) -> None:
    """Depend on this in a route that takes no options in the URL.

    Args:
        request: Any.

    Raises:
        InvalidFieldError: It has some.
    """
    for name in request.query_params:
        raise InvalidFieldError(public={"field": _shown(name), "expected": "no options in the URL of this route"})


def query_options(request: Request, *known: str) -> dict[str, str]:
    """The options in the query string that are not empty.

    Args:
        request: Any.
        *known: Names that the route takes.

    Returns:
        One value for each name.

    Raises:
        InvalidFieldError: An option is unknown or repeated.
    """
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            raise unknown_field(name, known)
        if name in given:
            raise InvalidFieldError(public={"field": name, "expected": "one value; it was sent more than once"})
        # Programs write URLs: white space alone, unlike in a form, is a value, and a wrong one.
        given[name] = value.strip() or value
    return {name: value for name, value in given.items() if value}


def _shown(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else ""


def unknown_field(name: str, known: Sequence[str]) -> InvalidFieldError:
    """Names a field that is not known, if its name is plain text, and the known one that is nearest to it."""
    # Comparing takes fifty times the memory of the name, which in JSON may be as long as a file.
    low = name[:MAX_NAME].lower()
    near = [each for each in known if low and each.startswith(low)] or difflib.get_close_matches(low, known, n=1)
    public: dict[str, PublicValue] = {"field": _shown(name), "expected": list(known)}
    return InvalidFieldError(public=public | ({"did_you_mean": near[0]} if near else {}))


def _expected(problem: str, field: str, kind: type[OcrFields]) -> str | list[str]:
    """What is valid for a field, in fixed words that quote no value."""
    annotation = kind.model_fields[field].annotation
    for kind_of_value in (annotation, *get_args(annotation)):
        if isinstance(kind_of_value, type) and issubclass(kind_of_value, Enum):
            return [str(choice) for choice in kind_of_value]
    by_field: dict[str, str | list[str]] = {
        "format": list(FORMATS),
        "min_confidence": "a number from 0 to 1",
        "review_threshold": "a number from 0 to 1",
        "min_coverage": "a number from 0 to 1",
        "query": QUERY_EXPECTED,
        "seed": SEED_EXPECTED,
        "temperature": TEMPERATURE_EXPECTED,
    }
    if field in by_field:
        return by_field[field]
    return {
        "int_parsing": "a whole number",
        "greater_than_equal": "a number from 1",
        "bool_parsing": "true or false",
        "string_too_long": "a shorter text",
    }.get(problem, "a valid value")
