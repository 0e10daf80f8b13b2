from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from service.errors import InternalError, TooManyPixelsError, UndecodableError
from service.intake import wire
from service.intake.decoding import OpenDocument
from service.intake.limits import DecodeTask, IntakeLimits
from shared.deepseek_ocr import forms
from shared.deepseek_ocr.geometry import GeometryConfig, Mode
from tests.support.service import png

ORDER = DecodeTask(None, 0, Mode.GUNDAM, GeometryConfig(), IntakeLimits())


@pytest.fixture
def pipe() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def test_frame_arrives_as_it_was_sent(pipe: tuple[socket.socket, socket.socket]) -> None:
    wire.send_frame(pipe[0], {"a": [1, None]}, b"xy", memoryview(b"z"))
    assert wire.receive_frame(pipe[1], 3) == ({"a": [1, None]}, bytearray(b"xyz"))


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack("!II", 2, 4) + b"{}1234",
        struct.pack("!II", wire.MAX_HEADER_BYTES + 1, 0),
        struct.pack("!II", 2, 0) + b"[]",
        struct.pack("!II", 3, 0) + b"{,}",
        struct.pack("!II", 9, 0) + b"{}",
        b"\0",
    ],
    ids=["payload too large", "header too large", "no object", "no json", "cut off", "cut off early"],
)
def test_broken_frame_is_noticed(pipe: tuple[socket.socket, socket.socket], frame: bytes) -> None:
    pipe[0].sendall(frame)
    pipe[0].shutdown(socket.SHUT_WR)
    with pytest.raises(wire.BrokenFrameError):
        wire.receive_frame(pipe[1], 3)


def test_frame_that_does_not_come_is_not_waited_for(pipe: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(TimeoutError):
        wire.receive_frame(pipe[1], 3, time.monotonic() + 0.02)


def test_page_survives_the_wire(pipe: tuple[socket.socket, socket.socket]) -> None:
    page = OpenDocument(png(size=(700, 900))).decode(ORDER)
    header, payloads = wire.page_to_wire(page)
    data = bytearray(b"".join(bytes(payload) for payload in payloads))
    assert len(data) <= wire.max_reply_bytes(ORDER)
    received = wire.page_from_wire({**header, "pages": list(page.pages)}, data)
    assert received.prepared.plan == page.prepared.plan
    assert (received.file_format, received.pages, received.width_px) == ("png", (1,), 700)
    np.testing.assert_array_equal(received.prepared.global_view_HWC, page.prepared.global_view_HWC)
    np.testing.assert_array_equal(received.prepared.tiles_THWC, page.prepared.tiles_THWC)


def test_image_survives_the_wire() -> None:
    order = replace(ORDER, wants_image=True)
    assert DecodeTask.from_wire(json.loads(json.dumps(order.to_wire()))) == order
    page = OpenDocument(png(size=(700, 900))).decode(order)
    header, payloads = wire.page_to_wire(page)
    data = bytearray(b"".join(bytes(payload) for payload in payloads))
    assert len(data) == 3 * 700 * 900 <= wire.max_reply_bytes(order)
    received = wire.page_from_wire(header, data)
    assert received.prepared.plan == page.prepared.plan
    np.testing.assert_array_equal(received.prepared.arrays[0], page.prepared.arrays[0])
    for lie in ({"is_image": False}, {"width_px": 701}, {"width_px": -1}, {"height_px": 0}):
        with pytest.raises(wire.BrokenFrameError):
            wire.page_from_wire({**header, **lie}, data)


@pytest.mark.parametrize("wants_image", [False, True])
def test_no_page_has_more_bytes_than_are_accepted(wants_image: bool) -> None:
    order = replace(ORDER, wants_image=wants_image)
    most = max(forms.MAX_IMAGE_PIXELS if wants_image else 0, 1024**2 + 9 * 640**2)
    assert wire.max_reply_bytes(order) >= 3 * most


@pytest.mark.parametrize(
    "lie", [{"global_px": 10_000}, {"tile_rows": 2, "tile_columns": 2}, {"mode": "?"}, {"page": None}]
)
def test_page_with_numbers_that_do_not_fit_its_bytes_is_refused(lie: dict[str, object]) -> None:
    header, payloads = wire.page_to_wire(OpenDocument(png()).decode(ORDER))
    data = bytearray(b"".join(bytes(payload) for payload in payloads))
    with pytest.raises(wire.BrokenFrameError):
        wire.page_from_wire({**header, **lie}, data)


def test_refusal_survives_the_wire_without_its_detail() -> None:
    sent = wire.error_to_wire(TooManyPixelsError("quotes the file", public={"max_pixels": 7}))
    assert "quotes" not in str(sent)
    received = wire.error_from_wire(sent)
    assert (type(received), received.public) == (TooManyPixelsError, {"max_pixels": 7})


def test_refusal_with_an_unknown_code_is_a_fault_of_ours() -> None:
    assert isinstance(wire.error_from_wire({"error": "made up"}), InternalError)
    assert isinstance(wire.error_from_wire({"error": "undecodable_file"}), UndecodableError)
