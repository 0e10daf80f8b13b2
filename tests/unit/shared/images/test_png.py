"""PNG files with metadata that Pillow refuses: viewers show them all."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from shared.images import png
from shared.images.errors import ImageError, ImageReason
from shared.images.limits import ImageLimits
from shared.images.png import unpacked, without_metadata
from shared.images.raster import open_raster
from tests.support.png import chunk, colour_png, grey_png
from tests.support.scene import assert_looks_like, encode, scene

HEADER_END = 33
LONG = 2_000_000


def with_text(kind: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    if kind == "tEXt":
        info.add_text("Comment", "x" * LONG)
    elif kind == "zTXt":
        info.add_text("Comment", "x" * LONG, zip=True)
    else:
        info.add_itxt("XML:com.adobe.xmp", "x" * LONG, zip=True)
    return encode(scene(), "PNG", pnginfo=info)


def with_chunk(added: bytes) -> bytes:
    data = encode(scene(), "PNG")
    return data[:HEADER_END] + added + data[HEADER_END:]


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt"])
def test_long_text_does_not_refuse_a_page(kind: str) -> None:
    assert_looks_like(with_text(kind), scene())


def test_a_long_profile_does_not_refuse_a_page() -> None:
    assert_looks_like(encode(scene(), "PNG", icc_profile=bytes(LONG)), scene())


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"pHYs", bytes(9)),
        (b"iCCP", b"p\0\0" + zlib.compress(b"profile")),
        (b"iCCP", b"p\0\7unknown compression"),
        (b"tEXt", b"Comment\0text"),
        (b"gAMA", bytes(4)),
        (b"tIME", bytes(7)),
        (b"prIv", b"of a program"),
        (b"eXIf", b"MM\0*"),
        (b"tRNS", b"\0\xff"),
    ],
)
def test_wrong_checksum_of_what_is_no_pixel_does_not_refuse_a_page(kind: bytes, body: bytes) -> None:
    assert_looks_like(with_chunk(chunk(kind, body, wrong_checksum=True)), scene())


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE"])
def test_wrong_checksum_of_what_pixels_need_is_damage(kind: bytes) -> None:
    data = bytearray(encode(scene().convert("P"), "PNG"))
    at = data.index(kind)
    size = int.from_bytes(data[at - 4 : at], "big")
    data[at + 4 + size] ^= 1
    with pytest.raises(ImageError) as refused:
        open_raster(bytes(data), ImageLimits()).read(1)
    assert refused.value.reason is ImageReason.DAMAGED


def test_metadata_after_the_pixels_are_dropped_too() -> None:
    data = encode(scene(), "PNG")
    end = data.index(b"IEND") - 4
    body = b"Comment\0\0" + zlib.compress(bytes(LONG))
    assert_looks_like(data[:end] + chunk(b"zTXt", body) + data[end:], scene())


def test_what_changes_the_page_is_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(scene().transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif.tobytes(), icc_profile=bytes(LONG))
    assert_looks_like(turned, scene())
    clear = encode(scene().point(lambda value: 7 if value == 255 else value), "PNG", transparency=7, dpi=(72, 72))
    assert_looks_like(clear, scene())
    interlaced = bytearray(encode(scene(), "PNG"))
    interlaced[28] = 1
    assert unpacked(bytes(interlaced)) == interlaced
    frames = encode(scene(), "PNG", save_all=True, append_images=[Image.new("L", (64, 48), 60)], dpi=(72, 72))
    page = open_raster(frames, ImageLimits()).read(2).image
    assert np.asarray(page).max() == 60


def test_a_file_without_metadata_is_left_alone() -> None:
    data = encode(scene(), "PNG")
    assert without_metadata(data) is data
    for cut in (0, 8, 20, 60):
        assert data[:cut].startswith(without_metadata(data[:cut]))


def test_a_chunk_that_claims_more_than_there_is_ends_the_walk() -> None:
    data = encode(scene(), "PNG")[:HEADER_END] + struct.pack("!I", 0xFFFFFFFF) + b"tEXtrest"
    assert without_metadata(data) == data


KINDS = {
    "1 bit": lambda: grey_png(np.asarray(scene().convert("1")).astype(np.uint8), 1),
    "4 bits": lambda: grey_png(np.asarray(scene()) // 16, 4),
    "grey": lambda: encode(scene(), "PNG"),
    "grey with alpha": lambda: encode(scene().convert("LA"), "PNG"),
    "colour": lambda: encode(scene().convert("RGB"), "PNG"),
    "colour of 16 bits": lambda: colour_png(np.dstack([np.asarray(scene())] * 3).astype(np.uint16) * 257),
    "colour with alpha": lambda: encode(scene().convert("RGBA"), "PNG"),
    "palette": lambda: encode(scene().convert("P"), "PNG"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_unpacked_pixels_are_the_same(kind: str) -> None:
    data = KINDS[kind]()
    stored = unpacked(data)
    assert len(stored) > len(data)
    before, after = (Image.open(io.BytesIO(each)) for each in (data, stored))
    assert after.mode == before.mode
    assert after.tobytes() == before.tobytes()


def test_pixels_in_several_chunks_are_unpacked_into_one() -> None:
    data = encode(scene(), "PNG")
    at = data.index(b"IDAT") - 4
    size = int.from_bytes(data[at : at + 4], "big")
    body = data[at + 8 : at + 8 + size]
    parts = b"".join(chunk(b"IDAT", body[start : start + 20]) for start in range(0, size, 20))
    assert unpacked(data[:at] + parts + data[at + 12 + size :]) == unpacked(data)
    between = chunk(b"IDAT", body[:20]) + chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", body[20:])
    apart = data[:at] + between + data[at + 12 + size :]
    assert unpacked(apart) is apart


def damaged(what: str) -> bytes:
    data = bytearray(encode(scene(), "PNG"))
    at = data.index(b"IDAT")
    size = int.from_bytes(data[at - 4 : at], "big")
    if what == "a byte of the stream":
        data[at + 4 + size // 2] ^= 0xFF
    elif what == "the stream's checksum":
        data[at + 3 + size] ^= 1
    elif what == "the header":
        del data[8:33]
    else:
        del data[at + size // 2 :]
    return bytes(data)


@pytest.mark.parametrize("what", ["a byte of the stream", "the stream's checksum", "the header", "the end is missing"])
def test_damaged_pixels_are_left_to_the_decoder(what: str) -> None:
    data = damaged(what)
    assert unpacked(data) is data


def test_what_the_header_does_not_tell_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(encode(scene(), "PNG"))
    height = slice(20, 24)
    for rows in (scene().height - 1, scene().height + 1, 0xFFFFFFFF):
        data[height] = rows.to_bytes(4, "big")
        assert unpacked(bytes(data)) == data
    interlaced = bytearray(encode(scene(), "PNG"))
    interlaced[28] = 1
    assert unpacked(bytes(interlaced)) == interlaced
    frames = encode(scene(), "PNG", save_all=True, append_images=[Image.new("L", (64, 48), 60)])
    assert unpacked(frames) is frames
    many = encode(scene(), "PNG")
    monkeypatch.setattr(png, "_MOST_UNPACKED_BYTES", scene().width * scene().height)
    assert unpacked(many) is many
