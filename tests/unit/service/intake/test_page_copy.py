"""A page as it is kept: its copy, its digest, and what of a reply is believed."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from service.errors import UndecodableError
from service.frames import BrokenFrameError
from service.intake import wire
from service.intake.decoding import OpenDocument
from service.intake.document import Document
from service.intake.limits import IntakeLimits
from service.intake.page_copy import THUMBNAIL_SIDE_PX, CopyTask
from service.intake.replies import decode_copy_reply, max_copy_bytes
from tests.support.service import encode, png
from trainer.data.sources.images import check_image

FULL, THUMBNAIL = CopyTask(1, is_thumbnail=False), CopyTask(1, is_thumbnail=True)


def copied(data: bytes, task: CopyTask, limits: IntakeLimits | None = None) -> tuple[Document, bytes, memoryview]:
    """A document, and what an image process answers."""
    document = Document(data, limits or IntakeLimits())
    asked = wire.decode_copy(wire.encode_copy(task))
    return document, *wire.encode_copy_reply(OpenDocument(document).copy(asked))


def test_copy_has_every_pixel_and_the_trainers_digest() -> None:
    data = encode(Image.effect_noise((200, 100), 80).convert("RGB"), "JPEG")
    document, header, tail = copied(data, FULL)
    copy = decode_copy_reply(header, tail, FULL, document)
    kept = check_image(bytes(copy.data))
    assert kept.suffix == "png"
    assert copy.sha256 == kept.pixels_sha256 == check_image(data).pixels_sha256
    assert (copy.width_px, copy.height_px) == (200, 100)


def test_thumbnail_has_the_digest_of_the_whole_page() -> None:
    data = png(size=(1000, 500))
    document, header, tail = copied(data, THUMBNAIL)
    copy = decode_copy_reply(header, tail, THUMBNAIL, document)
    assert (copy.sha256, copy.width_px) == (check_image(data).pixels_sha256, 1000)
    with Image.open(io.BytesIO(copy.data)) as image:
        assert (image.format, max(image.size)) == ("JPEG", THUMBNAIL_SIDE_PX)


@pytest.mark.parametrize("size", [(640, 640), (1, 4000), (4000, 1), (333, 250)])
def test_page_that_does_not_compress_is_within_the_limit(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    limits = IntakeLimits(max_pixels=size[0] * size[1], max_side_px=max(size), max_aspect_ratio=10**4)
    document, _, tail = copied(encode(Image.fromarray(noise)), FULL, limits)
    assert len(tail) <= max_copy_bytes(document)


@pytest.mark.parametrize(
    "lie",
    [
        {"page": 2}, {"width_px": 0}, {"height_px": 12_001}, {"sha256": "../../etc/passwd"}, {"sha256": "a" * 63},
        {"sha256": "A" * 64}, {"sha256": "a" * 64 + "\n"}, {"kind": "preview"},
    ],
)  # fmt: skip
def test_reply_with_a_lie_is_refused(lie: dict[str, object]) -> None:
    document, header, tail = copied(png(), FULL)
    with pytest.raises(BrokenFrameError):
        decode_copy_reply(json.dumps(json.loads(header) | lie).encode(), tail, FULL, document)


def test_picture_of_the_other_kind_is_refused() -> None:
    for task, other in ((FULL, THUMBNAIL), (THUMBNAIL, FULL)):
        document, header, tail = copied(png(), task)
        with pytest.raises(BrokenFrameError):
            decode_copy_reply(header, tail, other, document)


def test_error_keeps_its_code() -> None:
    document, _, tail = copied(png(), FULL)
    with pytest.raises(UndecodableError):
        decode_copy_reply(wire.encode_error_reply(UndecodableError()), tail, FULL, document)
