"""Messages between the service and an image process, as frames.

Free of pydantic, which would lengthen the start of an image process by half: the process trusts the service
and reads plain JSON. How the service reads what it does not trust is in `replies.py`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from service.errors import DeepSynthError, PublicValue
from service.intake.document import Document
from service.intake.formats import FileFormat
from service.intake.limits import DecodeTask, IntakeLimits
from service.intake.page_copy import CopyTask, PageCopy
from service.intake.pages import Contents, DecodedPage
from service.intake.preview import Preview, PreviewTask
from service.intake.print_task import PrintTask
from service.intake.text_layer import TextTask
from service.page_codec import PageHeader, encode_page
from shared.images.accounting import Account
from shared.images.canvases import Box, Strip
from shared.images.page_ink import PageInk, Turn

MAX_TEXT_BYTES = 64 * 1024 * 1024
"""Of a text task; far more than all the tokens of the largest document."""
CLOSE = b'{"kind": "close"}'
"""Header of a frame that closes the open document, and has no answer."""
PDF = b'{"kind": "pdf"}'
"""Header of a frame that brings a PDF as its tail."""
READY = b'{"ready": true}'
"""Header of an image process's first frame."""


@dataclass(frozen=True, slots=True)
class StripHeader:
    """A strip of a page's lines without its pixels, which follow those of the page."""

    block: int
    row: int
    box_px: Box
    parts_px: tuple[Box, ...]
    size_px: tuple[int, int]
    """Height and width."""


@dataclass(frozen=True, slots=True)
class PageReply:
    """A `DecodedPage` without its pixels."""

    file_format: FileFormat
    page: int
    width_px: int
    height_px: int
    ink: PageInk
    is_damaged: bool
    prepared: PageHeader
    turned_degrees: Turn
    strips: tuple[StripHeader, ...] = ()
    kind: Literal["page"] = "page"


@dataclass(frozen=True, slots=True)
class PreviewReply:
    """A `Preview` without its picture."""

    page: int
    num_pages: int
    width_px: int
    height_px: int
    turned_degrees: Turn
    kind: Literal["preview"] = "preview"


@dataclass(frozen=True, slots=True)
class CopyReply:
    """A `PageCopy` without its picture."""

    page: int
    width_px: int
    height_px: int
    sha256: str
    kind: Literal["copy"] = "copy"


@dataclass(frozen=True, slots=True)
class AccountReply:
    """What of a page's print a text accounts for."""

    account: Account
    kind: Literal["account"] = "account"


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error without its detail, which may quote the file."""

    code: str
    public: dict[str, PublicValue]
    kind: Literal["error"] = "error"


@dataclass(frozen=True, slots=True)
class ContentsReply:
    """`Contents` of a document that has been opened."""

    contents: Contents
    kind: Literal["contents"] = "contents"


def encode_open(document: Document) -> bytes:
    """Header of the frame that brings a document, which replaces the one before; the tail is its data."""
    return json.dumps({"kind": "open", "selection": document.selection, "limits": asdict(document.limits)}).encode()


def decode_open(header: bytes, tail: bytes) -> Document:
    """The document that `encode_open` announced."""
    members = json.loads(header)
    selection = members["selection"]
    return Document(tail, IntakeLimits(**members["limits"]), None if selection is None else tuple(selection))


def is_task(header: bytes) -> bool:
    """Whether a frame asks for a page; the others open or close a document, or bring text."""
    return json.loads(header)["kind"] == "task"


def is_text(header: bytes) -> bool:
    """Whether a frame brings the text of a searchable PDF."""
    return json.loads(header)["kind"] == "text"


def is_print(header: bytes) -> bool:
    """Whether a frame brings a text that is to be held against print."""
    return json.loads(header)["kind"] == "print"


def is_preview(header: bytes) -> bool:
    """Whether a frame asks for a page to look at."""
    return json.loads(header)["kind"] == "preview"


def is_copy(header: bytes) -> bool:
    """Whether a frame asks for a copy of a page."""
    return json.loads(header)["kind"] == "copy"


def encode_task(task: DecodeTask) -> bytes:
    """Header of a task."""
    return json.dumps({"kind": "task", **task.to_wire()}).encode()


def decode_task(header: bytes) -> DecodeTask:
    """The task that `encode_task` wrote."""
    return DecodeTask.from_wire(json.loads(header))


def encode_preview(task: PreviewTask) -> bytes:
    """Header of a task that asks for a page to look at."""
    return json.dumps({"kind": "preview", "page": task.page, "turn_degrees": task.turn_degrees}).encode()


def decode_preview(header: bytes) -> PreviewTask:
    """The task that `encode_preview` wrote."""
    members = json.loads(header)
    return PreviewTask(members["page"], members["turn_degrees"])


def encode_copy(task: CopyTask) -> bytes:
    """Header of a task that asks for a copy of a page."""
    return json.dumps({"kind": "copy", "page": task.page, "is_thumbnail": task.is_thumbnail}).encode()


def decode_copy(header: bytes) -> CopyTask:
    """The task that `encode_copy` wrote."""
    members = json.loads(header)
    return CopyTask(members["page"], members["is_thumbnail"])


def encode_text(task: TextTask) -> tuple[bytes, bytes]:
    """Header and tail of a task that adds text to the open document."""
    return b'{"kind": "text"}', task.to_wire()


def decode_text(tail: bytes) -> TextTask:
    """The task that `encode_text` wrote."""
    return TextTask.from_wire(tail)


def encode_print(task: PrintTask) -> tuple[bytes, bytes]:
    """Header and tail of a task that holds a text against print."""
    return b'{"kind": "print"}', task.to_wire()


def decode_print(tail: bytes) -> PrintTask:
    """The task that `encode_print` wrote."""
    return PrintTask.from_wire(tail)


def encode_account(account: Account) -> bytes:
    """Header of what a text accounts for."""
    return _to_json(AccountReply(account))


def encode_page_reply(page: DecodedPage) -> tuple[bytes, *tuple[memoryview, ...]]:
    """Header and tail of a decoded page."""
    prepared, pixels = encode_page(page.prepared)
    reply = PageReply(
        page.file_format,
        page.page,
        page.width_px,
        page.height_px,
        page.ink,
        page.is_damaged,
        prepared,
        page.turned_degrees,
        tuple(_strip_header(strip) for strip in page.strips),
    )
    pixels += [np.ascontiguousarray(strip.pixels_HW).reshape(-1).data for strip in page.strips]
    return _to_json(reply), *pixels


def _strip_header(strip: Strip) -> StripHeader:
    height, width = strip.pixels_HW.shape
    return StripHeader(strip.block, strip.row, strip.box_px, strip.parts_px, (height, width))


def encode_preview_reply(preview: Preview) -> tuple[bytes, memoryview]:
    """Header and tail of a page to look at."""
    reply = PreviewReply(preview.page, preview.num_pages, preview.width_px, preview.height_px, preview.turned_degrees)
    return _to_json(reply), memoryview(preview.jpeg)


def encode_copy_reply(copy: PageCopy) -> tuple[bytes, memoryview]:
    """Header and tail of a copied page."""
    return _to_json(CopyReply(copy.page, copy.width_px, copy.height_px, copy.sha256)), memoryview(copy.data)


def encode_contents(contents: Contents) -> bytes:
    """Header of what a document has to read."""
    return _to_json(ContentsReply(contents))


def encode_error_reply(error: DeepSynthError) -> bytes:
    """Header of an error."""
    return _to_json(ErrorReply(error.code, error.public))


def _to_json(reply: PageReply | PreviewReply | CopyReply | ContentsReply | AccountReply | ErrorReply) -> bytes:
    # Not `asdict`, which copies all that is inside: it takes ten times as long.
    return json.dumps(reply, default=lambda part: {name: getattr(part, name) for name in part.__slots__}).encode()
