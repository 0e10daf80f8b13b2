"""Damaged files of every format end in an image or in an `ImageError`, never in another exception."""

from __future__ import annotations

import time
from collections import Counter
from random import Random

import numpy as np
import pytest
from PIL import Image

from shared.images.errors import ImageError, ImageReason
from shared.images.limits import ImageLimits
from shared.images.raster import open_raster, reads_heic
from tests.support.scene import HEIC, encode, scene
from tests.support.tiff import TiffPage, make_tiff

LIMITS = ImageLimits(max_pixels=200_000, max_side_px=1000, max_frames=4)
TRIES = 150


def animated(pillow_format: str) -> bytes:
    return encode(scene(), pillow_format, save_all=True, append_images=[Image.new("L", (64, 48), 90)])


def files() -> dict[str, bytes]:
    rgb = scene().convert("RGB")
    layer = scene().convert("RGBA")
    layer.putalpha(scene())
    planes = np.repeat(np.asarray(scene())[:, :, None], 3, 2).astype(np.uint16)
    found = {
        "png": encode(rgb, "PNG", dpi=(72, 72)),
        "png with alpha": encode(layer, "PNG"),
        "animated png": animated("PNG"),
        "jpeg": encode(rgb, "JPEG"),
        "progressive jpeg": encode(rgb, "JPEG", progressive=True),
        "cmyk jpeg": encode(rgb.convert("CMYK"), "JPEG"),
        "mpo": encode(rgb, "MPO", save_all=True, append_images=[rgb]),
        "webp": encode(rgb, "WEBP"),
        "lossless webp": encode(layer, "WEBP", lossless=True),
        "tiff": encode(rgb, "TIFF"),
        "lzw tiff": encode(rgb, "TIFF", compression="tiff_lzw"),
        "jpeg tiff": encode(rgb, "TIFF", compression="jpeg"),
        "fax tiff": encode(scene().convert("1"), "TIFF", compression="group4"),
        "planar big tiff": make_tiff(TiffPage(planes, 2, planar=2), is_big=True),
        "tiff pages": make_tiff(*[TiffPage(planes[:, :, :1] >> 8, subfile=each) for each in (0, 1, 2)]),
        "gif": animated("GIF"),
        "bmp": encode(rgb, "BMP"),
        "jpeg 2000": encode(rgb, "JPEG2000"),
        "jpeg 2000 codestream": encode(rgb, "JPEG2000", no_jp2=True),
        "avif": encode(rgb, "AVIF"),
    }
    return {**found, "heic": HEIC} if reads_heic() else found


FILES = files()


def outcome(data: bytes) -> str:
    try:
        file = open_raster(data, LIMITS)
        for page in file.pages():
            seen = file.read(page).image
            assert (seen.mode, seen.width * seen.height <= LIMITS.max_pixels) == ("RGB", True)
    except ImageError as error:
        return error.reason
    return "read"


@pytest.mark.parametrize("name", FILES)
def test_damage_is_an_error_of_ours(name: str) -> None:
    data, rng, outcomes = FILES[name], Random(name), Counter[str]()
    for number in range(TRIES):
        damaged = bytearray(data)
        if number % 3 == 0:
            del damaged[rng.randrange(4, len(data)) :]
        # Headers are short and decide most.
        end = min(200, len(damaged)) if number % 2 else len(damaged)
        for _ in range(rng.choice((1, 1, 2, 8))):
            damaged[rng.randrange(end)] ^= 1 << rng.randrange(8)
        outcomes[outcome(bytes(damaged))] += 1
    assert set(outcomes) <= {"read", *ImageReason}
    assert sum(count for name, count in outcomes.items() if name != "read") > TRIES // 10


@pytest.mark.parametrize("name", FILES)
def test_a_prefix_is_an_error_of_ours(name: str) -> None:
    data = FILES[name]
    for cut in sorted({*range(1, 40), *range(40, len(data), max(len(data) // 40, 1))}):
        assert outcome(data[:cut]) in {"read", *ImageReason}
    assert outcome(data[: len(data) // 4]) != "read"


def test_headers_made_to_take_long_do_not() -> None:
    markers = b"\xff\xd8" + b"\xff\xda\0\x08\1\1\0\0\x3f\0" * 20_000
    # A thousand directories of a thousand entries, each two bytes after the one before.
    directories = b"II*\0\x08\0\0\0" + b"\xe8\x03" * 50_000
    chunks = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0teXt\0\0\0\0" * 20_000
    start_s = time.process_time()
    assert [outcome(each) for each in (markers, directories, chunks)] == [ImageReason.DAMAGED] * 3
    assert time.process_time() - start_s < 5
