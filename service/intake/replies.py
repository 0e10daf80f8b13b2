"""Reads what an image process sends.

A hostile file may take over an image process, so every number of a reply is checked before it is used.
"""

from __future__ import annotations

import re
from typing import Annotated

import numpy as np
from pydantic import Field, TypeAdapter

from service.errors import InternalError, error_classes
from service.frames import BrokenFrameError, read_header
from service.intake.document import Document
from service.intake.limits import DecodeTask
from service.intake.page_copy import PNG_START, CopyTask, PageCopy
from service.intake.pages import Contents, DecodedPage
from service.intake.preview import JPEG_START, Preview, PreviewTask
from service.intake.print_task import PrintTask
from service.intake.wire import PDF, AccountReply, ContentsReply, CopyReply, ErrorReply, PageReply, PreviewReply
from service.page_codec import decode_page
from shared.deepseek_ocr.forms import CHANNELS, MAX_IMAGE_PIXELS, PageImage
from shared.deepseek_ocr.geometry import plan_views
from shared.deepseek_ocr.line_views import view_of
from shared.images.accounting import Account
from shared.images.canvases import MOST_STRIP_PARTS, MOST_STRIPS, SIDE_PX, Strip, pack
from shared.images.page_ink import MOST_LINES, MOST_WORDS

MAX_HEADER_BYTES = 1024 * 1024
"""Of a page with `MOST_LINES` lines of print and `MOST_STRIPS` strips, and far more than any other reply."""
MAX_STRIP_BYTES = 40 * SIDE_PX * SIDE_PX
"""Of all strips of a page: as many canvases as no page fills."""
_REPLIES: TypeAdapter[PageReply | PreviewReply | CopyReply | ContentsReply | AccountReply | ErrorReply] = TypeAdapter(
    Annotated[
        PageReply | PreviewReply | CopyReply | ContentsReply | AccountReply | ErrorReply, Field(discriminator="kind")
    ]
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def max_reply_bytes(task: DecodeTask) -> int:
    """Upper bound of a page's bytes, as views or as an image."""
    geometry = task.geometry
    global_px = max(geometry.global_px, geometry.tiny_px, geometry.small_px, geometry.base_px, geometry.large_px)
    views = global_px**2 + geometry.max_tiles * geometry.tile_px**2
    strips = MAX_STRIP_BYTES if task.lines_from_views else 0
    return CHANNELS * (max(views, MAX_IMAGE_PIXELS) if task.wants_image else views) + strips


def decode_contents(header: bytes, document: Document) -> Contents:
    """Read the reply to a document.

    Args:
        header: The frame's header.
        document: What was opened.

    Returns:
        Its pages.

    Raises:
        BrokenFrameError: It is no such reply, or it lists pages that were not selected or too many.
        DeepSynthError: The error that the process sent; one with an unknown code is an `InternalError`.
    """
    reply = _decode(header)
    if not isinstance(reply, ContentsReply):
        raise BrokenFrameError("no contents")
    pages = reply.contents.pages
    most = max(document.limits.max_pdf_pages, document.limits.max_frames)
    if not 1 <= len(pages) <= most or (pages != document.selection and pages != tuple(range(1, len(pages) + 1))):
        raise BrokenFrameError("the pages are not those that were selected")
    return reply.contents


def decode_reply(header: bytes, tail: memoryview, task: DecodeTask) -> DecodedPage:
    """Read the reply to a task.

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
    reply = _decode(header)
    if not isinstance(reply, PageReply) or reply.page != task.page:
        raise BrokenFrameError("not the page that was asked for")
    num_bytes = reply.prepared.num_bytes
    prepared = decode_page(reply.prepared, tail[: max(num_bytes, 0)])
    strips = _strips(reply, tail[len(tail) if num_bytes < 0 else num_bytes :])
    if strips and not task.lines_from_views:
        raise BrokenFrameError("lines that were not asked for")
    if isinstance(prepared, PageImage) and prepared.image_HWC.shape[:2] != (reply.height_px, reply.width_px):
        raise BrokenFrameError("the image does not have the size of the page")
    try:
        if strips:
            plan = view_of(pack(strips)[0], task.geometry).plan
        else:
            plan = plan_views(reply.width_px, reply.height_px, task.mode, task.geometry)
    except (ValueError, ArithmeticError) as error:
        raise BrokenFrameError("no size of a page") from error
    if plan != prepared.plan:
        raise BrokenFrameError("the plan is not that of the page's size")
    if task.turn_degrees not in (None, reply.turned_degrees):
        raise BrokenFrameError("the page was not turned as it should be")
    _check_lines(reply)
    return DecodedPage(
        reply.file_format,
        reply.page,
        reply.width_px,
        reply.height_px,
        reply.ink,
        reply.is_damaged,
        prepared,
        reply.turned_degrees,
        strips,
    )


def _strips(reply: PageReply, tail: memoryview) -> tuple[Strip, ...]:
    """The strips of a page's lines; their pixels share the tail."""
    if len(reply.strips) > MOST_STRIPS or sum(len(strip.parts_px) for strip in reply.strips) > MOST_STRIP_PARTS:
        raise BrokenFrameError("too many strips")
    strips: list[Strip] = []
    at = 0
    row = 0
    for header in reply.strips:
        height, width = header.size_px
        end = at + height * width
        if not (0 < height <= SIDE_PX and 0 < width <= SIDE_PX and end <= len(tail)) or header.row < row:
            raise BrokenFrameError("no numbers of a strip")
        for x1, y1, x2, y2 in (header.box_px, *header.parts_px):
            if not (0 <= x1 <= x2 <= reply.width_px and 0 <= y1 <= y2 <= reply.height_px):
                raise BrokenFrameError("a strip outside the page")
        row = header.row
        pixels_HW = np.frombuffer(tail[at:end], np.uint8).reshape(height, width)
        strips.append(Strip(header.block, header.row, header.box_px, header.parts_px, pixels_HW))
        at = end
    if at != len(tail):
        raise BrokenFrameError("the pixels are not those of the strips")
    return tuple(strips)


def _check_lines(reply: PageReply) -> None:
    """Coverage is computed from these numbers, in time that grows with them."""
    lines = reply.ink.lines
    if len(lines) > MOST_LINES or sum(len(line.words_px) for line in lines) > MOST_WORDS:
        raise BrokenFrameError("too many lines of print")
    for line in lines:
        x1, y1, x2, y2 = line.box_px
        is_inside = 0 <= x1 <= x2 <= reply.width_px + 1 and 0 <= y1 <= y2 <= reply.height_px + 1
        if not is_inside or line.body_px <= 0 or not line.words_px or min(line.words_px) < 1:
            raise BrokenFrameError("no numbers of a line")


def decode_preview_reply(header: bytes, tail: memoryview, task: PreviewTask, document: Document) -> Preview:
    """Read the reply to a task for a page to look at.

    Args:
        header: The frame's header.
        tail: The frame's tail.
        task: What was asked for.
        document: What it is a page of.

    Returns:
        The page; its picture is not decoded, since only the client shows it.

    Raises:
        BrokenFrameError: It is no such reply, its numbers are impossible, or its picture is no JPEG.
        DeepSynthError: The error that the process sent; one with an unknown code is an `InternalError`.
    """
    reply = _decode(header)
    if not isinstance(reply, PreviewReply) or reply.page != task.page:
        raise BrokenFrameError("not the page that was asked for")
    if task.turn_degrees not in (None, reply.turned_degrees):
        raise BrokenFrameError("the page was not turned as it should be")
    sides = (reply.width_px, reply.height_px)
    if reply.num_pages < reply.page or min(sides) < 1 or max(sides) > document.limits.max_side_px:
        raise BrokenFrameError("no numbers of a page")
    if tail[: len(JPEG_START)] != JPEG_START:
        raise BrokenFrameError("no JPEG")
    return Preview(reply.page, reply.num_pages, reply.width_px, reply.height_px, reply.turned_degrees, tail)


def max_copy_bytes(document: Document) -> int:
    """Upper bound of a copied page: as many bytes as its pixels have, and room for PNG's own."""
    pixels = CHANNELS * document.limits.max_pixels
    return pixels + pixels // 64 + document.limits.max_side_px + 64 * 1024


def decode_copy_reply(header: bytes, tail: memoryview, task: CopyTask, document: Document) -> PageCopy:
    """Read the reply to a task for a copy of a page.

    Args:
        header: The frame's header.
        tail: The frame's tail.
        task: What was asked for.
        document: What it is a page of.

    Returns:
        The page; its picture is not decoded.

    Raises:
        BrokenFrameError: It is no such reply, its numbers are impossible, or its picture is in another format.
        DeepSynthError: The error that the process sent; one with an unknown code is an `InternalError`.
    """
    reply = _decode(header)
    if not isinstance(reply, CopyReply) or reply.page != task.page:
        raise BrokenFrameError("not the page that was asked for")
    sides = (reply.width_px, reply.height_px)
    # The digest becomes the name of a file.
    if min(sides) < 1 or max(sides) > document.limits.max_side_px or not _SHA256.fullmatch(reply.sha256):
        raise BrokenFrameError("no numbers of a page")
    start = JPEG_START if task.is_thumbnail else PNG_START
    if tail[: len(start)] != start:
        raise BrokenFrameError("not the format that was asked for")
    return PageCopy(reply.page, reply.width_px, reply.height_px, reply.sha256, tail)


def decode_account(header: bytes, task: PrintTask) -> Account:
    """Read the reply to a text that was to be held against print.

    Args:
        header: The frame's header.
        task: What was asked.

    Returns:
        What the text accounts for.

    Raises:
        BrokenFrameError: It is no such reply, or its numbers are impossible.
        DeepSynthError: The error that the process sent; one with an unknown code is an `InternalError`.
    """
    reply = _decode(header)
    if not isinstance(reply, AccountReply):
        raise BrokenFrameError("not what was asked for")
    account = reply.account
    if not 0 <= account.coverage <= 1 or len(account.unread) > len(task.lines):
        raise BrokenFrameError("no numbers of an account")
    right, bottom = (max((line.box_px[side] for line in task.lines), default=0) for side in (2, 3))
    for x1, y1, x2, y2 in account.unread:
        if not (0 <= x1 <= x2 <= right and 0 <= y1 <= y2 <= bottom):
            raise BrokenFrameError("print outside the page")
    return account


def decode_pdf(header: bytes, tail: memoryview) -> memoryview:
    """Read the reply to a text.

    Args:
        header: The frame's header.
        tail: The frame's tail.

    Returns:
        The PDF; not looked into, since only the client opens it.

    Raises:
        BrokenFrameError: It is no such reply.
        DeepSynthError: The error that the process sent; one with an unknown code is an `InternalError`.
    """
    if header != PDF:
        _decode(header)
        raise BrokenFrameError("no PDF")
    return tail


def _decode(header: bytes) -> PageReply | PreviewReply | CopyReply | ContentsReply | AccountReply:
    reply = read_header(_REPLIES, header)
    if isinstance(reply, ErrorReply):
        raise error_classes().get(reply.code, InternalError)(public=reply.public)
    return reply
