from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from service.errors import InternalError, TooManyPixelsError, UndecodableError
from service.frames import BrokenFrameError
from service.intake import wire
from service.intake.decoding import OpenDocument
from service.intake.document import Document
from service.intake.formats import FileFormat
from service.intake.limits import DecodeTask, IntakeLimits
from service.intake.pages import Contents, DecodedPage
from service.intake.preview import MAX_PREVIEW_BYTES, MAX_SIDE_PX, PreviewTask
from service.intake.print_task import PrintTask
from service.intake.replies import decode_account, decode_contents, decode_preview_reply, decode_reply, max_reply_bytes
from shared.deepseek_ocr import forms
from shared.deepseek_ocr.geometry import GeometryConfig, Mode
from shared.images.accounting import Account, BoxedText
from shared.images.page_ink import InkLine
from tests.support.service import encode, png

ORDER = DecodeTask(1, Mode.GUNDAM, GeometryConfig())
NO_TAIL = memoryview(b"")


def reply_to(
    task: DecodeTask, size: tuple[int, int], data: bytes | None = None
) -> tuple[DecodedPage, bytes, memoryview]:
    """A page, and the header and tail that it is sent as."""
    page = OpenDocument(Document(data or png(size=size), IntakeLimits())).decode(task)
    header, *pixels = wire.encode_page_reply(page)
    return page, header, memoryview(b"".join(pixels))


def with_lie(header: bytes, lie: dict[str, object]) -> bytes:
    """A header with other values, wherever their names occur in it."""
    reply = json.loads(header)
    for part in (reply, reply["prepared"], reply["prepared"]["plan"]):
        part.update({name: value for name, value in lie.items() if name in part})
    changed = json.dumps(reply).encode()
    assert changed != header
    return changed


def line_of(**lies: object) -> dict[str, object]:
    """A line of print, with other values."""
    return {"box_px": [1, 1, 40, 9], "words_px": [4, 5], "body_px": 5.0} | lies


@pytest.mark.parametrize("header", [b"[]", b"{,}", b"", b'{"kind": "other"}'], ids=["list", "no json", "empty", "kind"])
def test_what_is_no_reply_is_refused(header: bytes) -> None:
    with pytest.raises(BrokenFrameError):
        decode_reply(header, NO_TAIL, ORDER)


def test_page_survives_the_wire() -> None:
    page, header, tail = reply_to(ORDER, (700, 900))
    assert len(tail) <= max_reply_bytes(ORDER)
    received = decode_reply(header, tail, ORDER)
    assert received.prepared.plan == page.prepared.plan
    assert (received.file_format, received.page, received.width_px) == ("png", 1, 700)
    assert (received.ink, received.is_damaged) == (page.ink, False)
    np.testing.assert_array_equal(received.prepared.global_view_HWC, page.prepared.global_view_HWC)
    np.testing.assert_array_equal(received.prepared.tiles_THWC, page.prepared.tiles_THWC)


@pytest.mark.parametrize(("colour", "channels"), [("grey", 1), ("red", 3)])
def test_image_survives_the_wire(colour: str, channels: int) -> None:
    order = replace(ORDER, wants_image=True)
    assert wire.decode_task(wire.encode_task(order)) == order
    page, header, tail = reply_to(order, (700, 900), encode(Image.new("RGB", (700, 900), colour)))
    assert len(tail) == channels * 700 * 900 <= max_reply_bytes(order)
    received = decode_reply(header, tail, order)
    assert received.prepared.plan == page.prepared.plan
    np.testing.assert_array_equal(received.prepared.arrays[0], page.prepared.arrays[0])


@pytest.mark.parametrize(
    "lie",
    [
        {"image_px": None},
        {"image_px": [900, 701]},
        {"image_px": [700, 900]},
        {"image_px": [-900, -700]},
        {"width_px": 701},
        {"width_px": -1},
        {"height_px": 0},
        {"height_px": 10**400},
        {"mode": "tiny"},
    ],
)
def test_image_of_another_size_than_its_numbers_say_is_refused(lie: dict[str, object]) -> None:
    order = replace(ORDER, wants_image=True)
    _, header, tail = reply_to(order, (700, 900))
    with pytest.raises(BrokenFrameError):
        decode_reply(with_lie(header, lie), tail, order)


@pytest.mark.parametrize("wants_image", [False, True])
def test_no_page_has_more_bytes_than_are_accepted(wants_image: bool) -> None:
    order = replace(ORDER, wants_image=wants_image)
    most = max(forms.MAX_IMAGE_PIXELS if wants_image else 0, 1024**2 + 9 * 640**2)
    assert max_reply_bytes(order) >= 3 * most


@pytest.mark.parametrize(
    "lie",
    [
        {"global_px": 10_000},
        {"tile_rows": 2, "tile_columns": 2},
        {"tile_rows": -1, "tile_columns": 1},
        {"tile_rows": -1, "tile_columns": -2, "tile_px": 0},
        {"num_vision_tokens": 1},
        {"mode": "?"},
        {"page": None},
        {"page": "1"},
        {"page": 2},
        {"is_damaged": 0},
        {"ink": {"marks": "many", "ink_ratio": 0.1}},
        {"turned_degrees": 45},
        {"turned_degrees": 90},
        {"ink": {"marks": 1, "ink_ratio": 0.1, "lines": [line_of(box_px=[0, 0, 9000, 9])]}},
        {"ink": {"marks": 1, "ink_ratio": 0.1, "lines": [line_of(words_px=[])]}},
        {"ink": {"marks": 1, "ink_ratio": 0.1, "lines": [line_of(words_px=[0])]}},
        {"ink": {"marks": 1, "ink_ratio": 0.1, "lines": [line_of(body_px=0)]}},
        {"ink": {"marks": 1, "ink_ratio": 0.1, "lines": [line_of()] * 1501}},
        {"ink": {"marks": 1, "ink_ratio": 0.1, "lines": [line_of(words_px=[1] * 6001)]}},
    ],
)
@pytest.mark.parametrize("size", [(320, 200), (700, 900)], ids=["one view", "tiles"])
def test_page_with_numbers_that_do_not_fit_its_bytes_is_refused(lie: dict[str, object], size: tuple[int, int]) -> None:
    _, header, tail = reply_to(ORDER, size)
    with pytest.raises(BrokenFrameError):
        decode_reply(with_lie(header, lie), tail, ORDER)


def test_document_and_its_contents_survive_the_wire() -> None:
    sent = Document(png(), IntakeLimits(max_frames=3), (1,))
    received = wire.decode_open(wire.encode_open(sent), sent.data)
    assert (received.data, received.limits, received.selection) == (sent.data, sent.limits, (1,))
    contents = OpenDocument(received).contents
    assert decode_contents(wire.encode_contents(contents), sent) == contents


@pytest.mark.parametrize("pages", [(), (2,), (1, 3), (0, 1), (2, 1), tuple(range(1, 52))])
def test_contents_that_were_not_asked_for_are_refused(pages: tuple[int, ...]) -> None:
    header = wire.encode_contents(Contents(FileFormat.PDF, pages))
    with pytest.raises(BrokenFrameError):
        decode_contents(header, Document(b"", IntakeLimits()))
    with pytest.raises(BrokenFrameError):
        decode_contents(header, Document(b"", IntakeLimits(), (1, 2)))


def test_reply_of_another_kind_is_refused() -> None:
    _, header, tail = reply_to(ORDER, (320, 200))
    with pytest.raises(BrokenFrameError):
        decode_contents(header, Document(b"", IntakeLimits()))
    with pytest.raises(BrokenFrameError):
        decode_reply(wire.encode_contents(Contents(FileFormat.PDF, (1,))), tail, ORDER)


def test_refusal_survives_the_wire_without_its_detail() -> None:
    sent = wire.encode_error_reply(TooManyPixelsError("quotes the file", public={"max_pixels": 7}))
    assert b"quotes" not in sent
    with pytest.raises(TooManyPixelsError) as refusal:
        decode_reply(sent, NO_TAIL, ORDER)
    assert refusal.value.public == {"max_pixels": 7}


@pytest.mark.parametrize(("code", "error"), [("made up", InternalError), ("undecodable_file", UndecodableError)])
def test_refusal_with_an_unknown_code_is_a_fault_of_ours(code: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        decode_reply(json.dumps({"kind": "error", "code": code, "public": {}}).encode(), NO_TAIL, ORDER)


def preview_of(size: tuple[int, int]) -> tuple[Document, bytes, memoryview]:
    document = Document(png(size=size), IntakeLimits(), (1,))
    task = wire.decode_preview(wire.encode_preview(PreviewTask(1)))
    return document, *wire.encode_preview_reply(OpenDocument(document).preview(task))


@pytest.mark.parametrize("size", [(320, 200), (2000, 3000), (3200, 16)], ids=["small", "large", "narrow"])
def test_preview_survives_the_wire_and_is_no_larger_than_allowed(size: tuple[int, int]) -> None:
    document, header, tail = preview_of(size)
    preview = decode_preview_reply(header, tail, PreviewTask(1), document)
    assert len(tail) <= MAX_PREVIEW_BYTES
    assert (preview.page, preview.num_pages, preview.width_px, preview.height_px) == (1, 1, *size)
    with Image.open(io.BytesIO(preview.jpeg)) as picture:
        scale = min(1, MAX_SIDE_PX / max(size))
        assert picture.format == "JPEG"
        assert picture.size == (round(size[0] * scale), round(size[1] * scale))


@pytest.mark.parametrize(
    "lie",
    [
        {"page": 2},
        {"num_pages": 0},
        {"num_pages": "1"},
        {"width_px": 0},
        {"height_px": -1},
        {"width_px": 10**9},
        {"turned_degrees": 45},
        {"kind": "pdf"},
    ],
)
def test_preview_with_impossible_numbers_is_refused(lie: dict[str, object]) -> None:
    document, header, tail = preview_of((320, 200))
    with pytest.raises(BrokenFrameError):
        decode_preview_reply(json.dumps(json.loads(header) | lie).encode(), tail, PreviewTask(1), document)


def test_preview_that_is_not_turned_as_asked_for_is_refused() -> None:
    document, header, tail = preview_of((320, 200))
    assert decode_preview_reply(header, tail, PreviewTask(1, 0), document).turned_degrees == 0
    with pytest.raises(BrokenFrameError):
        decode_preview_reply(header, tail, PreviewTask(1, 90), document)


def test_preview_that_is_no_jpeg_is_refused() -> None:
    document, header, tail = preview_of((320, 200))
    for other in (b"", b"<svg onload=alert(1)>", bytes(tail[1:])):
        with pytest.raises(BrokenFrameError):
            decode_preview_reply(header, memoryview(other), PreviewTask(1), document)


def test_error_in_the_place_of_a_preview_keeps_its_code() -> None:
    document, _, _ = preview_of((320, 200))
    with pytest.raises(UndecodableError):
        decode_preview_reply(wire.encode_error_reply(UndecodableError()), NO_TAIL, PreviewTask(1), document)


PRINT = PrintTask(
    "half \ud800 of it",
    (InkLine((10, 20, 90, 32), (30, 40), 9.5), InkLine((10, 60, 250, 72), (70,), 9.0)),
    (BoxedText((10, 20, 90, 32), "half \ud800 of it"),),
)


def test_text_and_print_and_what_is_read_of_it_survive_the_wire() -> None:
    header, tail = wire.encode_print(PRINT)
    assert wire.is_print(header)
    assert wire.decode_print(tail) == PRINT
    found = Account(0.25, ((10, 60, 250, 72),))
    assert decode_account(wire.encode_account(found), PRINT) == found


@pytest.mark.parametrize(
    "account",
    [
        Account(1.5, ()),
        Account(-0.1, ()),
        Account(float("nan"), ()),
        Account(0.5, ((10, 60, 251, 72),)),
        Account(0.5, ((-1, 60, 250, 72),)),
        Account(0.5, ((90, 60, 10, 72),)),
        Account(0.5, ((10, 60, 250, 72),) * 3),
    ],
)
def test_account_with_impossible_numbers_is_refused(account: Account) -> None:
    with pytest.raises(BrokenFrameError):
        decode_account(wire.encode_account(account), PRINT)


def test_another_reply_in_the_place_of_an_account_is_refused() -> None:
    with pytest.raises(BrokenFrameError):
        decode_account(wire.encode_contents(Contents(FileFormat.PNG, (1,))), PRINT)
    with pytest.raises(UndecodableError):
        decode_account(wire.encode_error_reply(UndecodableError()), PRINT)
