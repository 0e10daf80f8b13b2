"""Messages between the service and an image process, as frames.

Free of pydantic, which would lengthen the start of an image process by half: the process trusts the service
and reads plain JSON. How the service reads what it does not trust is in `replies.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from service.errors import DeepSynthError, PublicValue
from service.intake.decoding import DecodedPage
from service.intake.formats import FileFormat
from service.intake.limits import DecodeTask
from service.page_codec import PageHeader, encode_page

OPEN = b'{"open": true}'
"""Header of a frame that brings a document, which replaces the one before and has no answer; empty: only closes it."""
READY = b'{"ready": true}'
"""Header of an image process's first frame."""


@dataclass(frozen=True, slots=True)
class PageReply:
    """A `DecodedPage` without its pixels."""

    file_format: FileFormat
    pages: tuple[int, ...]
    page: int
    width_px: int
    height_px: int
    is_blank: bool
    prepared: PageHeader
    kind: Literal["page"] = "page"


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error without its detail, which may quote the file."""

    code: str
    public: dict[str, PublicValue]
    kind: Literal["error"] = "error"


def encode_task(task: DecodeTask) -> bytes:
    """Header of a task."""
    return json.dumps(task.to_wire()).encode()


def decode_task(header: bytes) -> DecodeTask:
    """The task that `encode_task` wrote."""
    return DecodeTask.from_wire(json.loads(header))


def encode_page_reply(page: DecodedPage) -> tuple[bytes, *tuple[memoryview, ...]]:
    """Header and tail of a decoded page."""
    prepared, pixels = encode_page(page.prepared)
    reply = PageReply(page.file_format, page.pages, page.page, page.width_px, page.height_px, page.is_blank, prepared)
    return _to_json(reply), *pixels


def encode_error_reply(error: DeepSynthError) -> bytes:
    """Header of an error."""
    return _to_json(ErrorReply(error.code, error.public))


def _to_json(reply: PageReply | ErrorReply) -> bytes:
    # Not `asdict`, which copies all that is inside: it takes ten times as long.
    return json.dumps(reply, default=lambda part: {name: getattr(part, name) for name in part.__slots__}).encode()
