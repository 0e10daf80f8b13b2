"""Frames between the service and an image process: a JSON header, then raw bytes.

No frame can run code on the other side, so a hostile file that takes over an image process gains nothing. The service
checks every number of a reply before it uses it.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

import numpy as np

from service.errors import DeepSynthError, InternalError, error_classes
from service.intake.decoding import DecodedPage
from service.intake.formats import FileFormat
from service.intake.limits import DecodeTask
from shared.deepseek_ocr.forms import CHANNELS, MAX_IMAGE_PIXELS, PageImage, PageViews, PreparedPage
from shared.deepseek_ocr.geometry import Mode, ViewPlan

_PREFIX = struct.Struct("!II")
MAX_HEADER_BYTES = 64 * 1024
OPEN = {"open": True}
"""Header of a frame that brings a document, which replaces the one before and has no answer; empty: only closes it."""


class BrokenFrameError(Exception):
    """The other side closed the pipe, was late, or broke the format."""


def send_frame(pipe: socket.socket, header: dict[str, Any], *payloads: bytes | memoryview) -> None:
    """Write one frame; blocks while the other side does not read."""
    text = json.dumps(header).encode()
    pipe.sendall(_PREFIX.pack(len(text), sum(len(payload) for payload in payloads)) + text)
    for payload in payloads:
        pipe.sendall(payload)


def receive_frame(
    pipe: socket.socket, max_payload_bytes: int, deadline_s: float | None = None
) -> tuple[dict[str, Any], memoryview]:
    """Read one frame.

    Args:
        pipe: Where from.
        max_payload_bytes: Refuse more.
        deadline_s: Monotonic time after which to give up; None: no limit.

    Returns:
        The header and the payload.

    Raises:
        BrokenFrameError: The pipe is closed, or the frame is too large or its header is not a JSON object.
    """
    header_bytes, payload_bytes = _PREFIX.unpack(_receive_exactly(pipe, _PREFIX.size, deadline_s))
    if header_bytes > MAX_HEADER_BYTES or payload_bytes > max_payload_bytes:
        raise BrokenFrameError("too large")
    try:
        header = json.loads(bytes(_receive_exactly(pipe, header_bytes, deadline_s)))
    except ValueError as error:
        raise BrokenFrameError("no JSON") from error
    if not isinstance(header, dict):
        raise BrokenFrameError("no JSON object")
    return header, _receive_exactly(pipe, payload_bytes, deadline_s)


def _receive_exactly(pipe: socket.socket, num_bytes: int, deadline_s: float | None) -> memoryview:
    # Not a bytearray: that would be filled with zeros first.
    buffer = np.empty(num_bytes, np.uint8).data
    view = buffer
    while view:
        if deadline_s is not None:
            pipe.settimeout(max(deadline_s - time.monotonic(), 0.001))
        count = pipe.recv_into(view)
        if not count:
            raise BrokenFrameError("closed")
        view = view[count:]
    return buffer


def max_reply_bytes(task: DecodeTask) -> int:
    """Upper bound of a page's bytes, as views or as an image."""
    geometry = task.geometry
    global_px = max(geometry.global_px, geometry.tiny_px, geometry.small_px, geometry.base_px, geometry.large_px)
    views = global_px**2 + geometry.max_tiles * geometry.tile_px**2
    return CHANNELS * (max(views, MAX_IMAGE_PIXELS) if task.wants_image else views)


def page_to_wire(page: DecodedPage) -> tuple[dict[str, Any], list[bytes | memoryview]]:
    """Header and payloads of a decoded page."""
    plan = page.prepared.plan
    header = {
        "format": page.file_format,
        "pages": page.pages,
        "page": page.page,
        "width_px": page.width_px,
        "height_px": page.height_px,
        "is_blank": page.is_blank,
        "mode": plan.mode,
        "global_px": plan.global_px,
        "tile_px": plan.tile_px,
        "tile_columns": plan.tile_columns,
        "tile_rows": plan.tile_rows,
        "num_vision_tokens": plan.num_vision_tokens,
        "is_image": isinstance(page.prepared, PageImage),
    }
    return header, [np.ascontiguousarray(pixels).reshape(-1).data for pixels in page.prepared.arrays]


def page_from_wire(header: dict[str, Any], payload: bytearray | memoryview) -> DecodedPage:
    """The page that `page_to_wire` wrote.

    Args:
        header: The frame's header.
        payload: The frame's bytes; the page's arrays share them.

    Returns:
        The page.

    Raises:
        BrokenFrameError: The numbers contradict each other.
    """
    try:
        plan = ViewPlan(
            mode=Mode(header["mode"]),
            **{
                name: int(header[name])
                for name in ("global_px", "tile_px", "tile_columns", "tile_rows", "num_vision_tokens")
            },
        )
        width_px, height_px = _side(header["width_px"]), _side(header["height_px"])
        pixels = np.frombuffer(payload, np.uint8)
        prepared: PreparedPage
        if header["is_image"]:
            prepared = PageImage(plan, pixels.reshape(height_px, width_px, CHANNELS))
        else:
            split = plan.global_px**2 * CHANNELS
            prepared = PageViews(
                plan,
                pixels[:split].reshape(plan.global_px, plan.global_px, CHANNELS),
                pixels[split:].reshape(plan.num_tiles, plan.tile_px, plan.tile_px, CHANNELS),
            )
        return DecodedPage(
            file_format=FileFormat(header["format"]),
            pages=tuple(int(page) for page in header["pages"]),
            page=int(header["page"]),
            width_px=width_px,
            height_px=height_px,
            is_blank=bool(header["is_blank"]),
            prepared=prepared,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenFrameError("no page") from error


def _side(value: object) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError("no side of a page")
    return value


def error_to_wire(error: DeepSynthError) -> dict[str, Any]:
    """Header of an error, without its detail, which may quote the file."""
    return {"error": error.code, "public": error.public}


def error_from_wire(header: dict[str, Any]) -> DeepSynthError:
    """The error that `error_to_wire` wrote; an unknown code becomes an internal error."""
    cls = error_classes().get(str(header["error"]), InternalError)
    public = header.get("public")
    return cls(public=public if isinstance(public, dict) else None)
