"""Results of pages, errors, requests and arrangements, as JSON that a later process can read."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, TypeAdapter

from service.errors import DeepSynthError, InternalError, error_classes
from service.ocr.answer import well_formed
from service.ocr.arrangement import Arrangement
from service.ocr.reader import PageResult
from service.ocr.request import OcrRequest


def _error_to_json(error: DeepSynthError | None) -> dict[str, Any] | None:
    return None if error is None else {"code": error.code, "public": error.public, "retryable": error.retryable}


def _error_from_json(value: Any) -> DeepSynthError | None:
    if value is None or isinstance(value, DeepSynthError):
        return value
    error = error_classes().get(value["code"], InternalError)()
    error.public, error.retryable = value["public"], value["retryable"]
    return error


@dataclass(frozen=True, slots=True)
class _StoredPage(PageResult):
    """A page whose error is kept by its code."""

    error: Annotated[DeepSynthError | None, PlainValidator(_error_from_json), PlainSerializer(_error_to_json)] = None


_PAGE = TypeAdapter(_StoredPage)
_REQUEST = TypeAdapter(OcrRequest)
_ARRANGEMENT = TypeAdapter(Arrangement)


def encode_page(page: PageResult) -> str:
    """The JSON of a page's result."""
    stored = _StoredPage(**{field.name: getattr(page, field.name) for field in fields(page)})
    # A model may write halves of surrogate pairs, which SQLite cannot store.
    return well_formed(json.dumps(_PAGE.dump_python(stored), ensure_ascii=False))


def decode_page(text: str) -> PageResult:
    """The result that `encode_page` wrote."""
    return _PAGE.validate_json(text)


def encode_error(error: DeepSynthError | None) -> str | None:
    """The JSON of an error."""
    return None if error is None else json.dumps(_error_to_json(error))


def decode_error(text: str | None) -> DeepSynthError | None:
    """The error that `encode_error` wrote."""
    return None if text is None else _error_from_json(json.loads(text))


def encode_request(request: OcrRequest) -> str:
    """The JSON of a request."""
    return well_formed(json.dumps(_REQUEST.dump_python(request), ensure_ascii=False))


def decode_request(text: str) -> OcrRequest:
    """The request that `encode_request` wrote."""
    return _REQUEST.validate_json(text)


def encode_arrangement(wanted: Arrangement) -> str:
    """The JSON of an arrangement."""
    return _ARRANGEMENT.dump_json(wanted).decode()


def decode_arrangement(text: str) -> Arrangement:
    """The arrangement that `encode_arrangement` wrote."""
    return _ARRANGEMENT.validate_json(text)
