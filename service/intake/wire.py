"""Messages between the service and an image process, as frames.

A hostile file may take over an image process, so the service checks every number of a reply before it uses it. The
process trusts the service and reads plain JSON, since importing pydantic would lengthen its start by half.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from service.errors import DeepSynthError, InternalError, PublicValue, error_classes
from service.frames import BrokenFrameError, read_header
from service.intake.decoding import DecodedPage
from service.intake.formats import FileFormat
from service.intake.limits import DecodeTask
from service.page_codec import PageHeader, decode_page, encode_page
from shared.deepseek_ocr.forms import CHANNELS, MAX_IMAGE_PIXELS, PageImage
from shared.deepseek_ocr.geometry import plan_views

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MAX_HEADER_BYTES = 64 * 1024
"""Of a reply."""
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


def max_reply_bytes(task: DecodeTask) -> int:
    """Upper bound of a page's bytes, as views or as an image."""
    geometry = task.geometry
    global_px = max(geometry.global_px, geometry.tiny_px, geometry.small_px, geometry.base_px, geometry.large_px)
    views = global_px**2 + geometry.max_tiles * geometry.tile_px**2
    return CHANNELS * (max(views, MAX_IMAGE_PIXELS) if task.wants_image else views)


def encode_page_reply(page: DecodedPage) -> tuple[bytes, *tuple[memoryview, ...]]:
    """Header and tail of a decoded page."""
    prepared, pixels = encode_page(page.prepared)
    reply = PageReply(page.file_format, page.pages, page.page, page.width_px, page.height_px, page.is_blank, prepared)
    return _to_json(reply), *pixels


def encode_error_reply(error: DeepSynthError) -> bytes:
    """Header of an error."""
    return _to_json(ErrorReply(error.code, error.public))


def decode_reply(header: bytes, tail: memoryview, task: DecodeTask) -> DecodedPage:
    """Read a reply.

    Args:
        header: The frame's header.
        tail: The frame's tail; the page's arrays share it.
        task: What was to be decoded.

    Returns:
        The page.

    Raises:
        BrokenFrameError: It is no reply, or its numbers contradict each other, its pixels or the task.
        DeepSynthError: The error that the process sent; one with an unknown code is an `InternalError`.
    """
    reply = read_header(_replies(), header)
    if isinstance(reply, ErrorReply):
        raise error_classes().get(reply.code, InternalError)(public=reply.public)
    prepared = decode_page(reply.prepared, tail)
    if isinstance(prepared, PageImage) and prepared.image_HWC.shape[:2] != (reply.height_px, reply.width_px):
        raise BrokenFrameError("the image does not have the size of the page")
    try:
        plan = plan_views(reply.width_px, reply.height_px, task.mode, task.geometry)
    except (ValueError, ArithmeticError) as error:
        raise BrokenFrameError("no size of a page") from error
    if plan != prepared.plan:
        raise BrokenFrameError("the plan is not that of the page's size")
    return DecodedPage(
        reply.file_format, reply.pages, reply.page, reply.width_px, reply.height_px, reply.is_blank, prepared
    )


def _to_json(reply: PageReply | ErrorReply) -> bytes:
    # Not `asdict`, which copies all that is inside: it takes ten times as long.
    return json.dumps(reply, default=lambda part: {name: getattr(part, name) for name in part.__slots__}).encode()


@cache
def _replies() -> TypeAdapter[PageReply | ErrorReply]:
    from typing import Annotated

    from pydantic import Field, TypeAdapter

    replies: Any = Annotated[PageReply | ErrorReply, Field(discriminator="kind")]
    return TypeAdapter(replies)
