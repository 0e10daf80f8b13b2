"""The page zoo: whatever a file stores, the page must look as a person sees it."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from service.errors import UnsupportedPixelsError
from service.intake.decoding import OpenDocument
from service.intake.document import Document
from service.intake.limits import IntakeLimits
from service.intake.pixels import as_seen

BLACK_BOX = (4, 4, 28, 12)
GREY_BOX = (40, 30, 60, 44)


def scene() -> Image.Image:
    """White paper, black ink top left, mid grey bottom right: no two orientations of it are alike."""
    image = Image.new("L", (64, 48), 255)
    image.paste(0, BLACK_BOX)
    image.paste(128, GREY_BOX)
    return image


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def seen(data: bytes) -> NDArray[np.uint8]:
    page, _ = OpenDocument(Document(data, IntakeLimits())).page_image(1)
    assert page.mode == "RGB"
    return np.asarray(page)


def assert_looks_like(data: bytes, expected: Image.Image, tolerance: int = 0) -> None:
    difference = np.abs(seen(data).astype(int) - np.asarray(expected.convert("RGB")).astype(int))
    assert difference.max() <= tolerance


def transparent(mode: str) -> Image.Image:
    """The scene's ink on nothing at all, with black beneath the transparency, as many drawing programs save it."""
    ink = scene()
    alpha = ink.point(lambda value: 255 - value)
    layer = Image.new("L", ink.size, 0)
    if mode == "LA":
        return Image.merge("LA", (layer, alpha))
    return Image.merge("RGBA", (layer, layer, layer, alpha))


def sixteen_bit() -> Image.Image:
    return Image.fromarray(np.asarray(scene()).astype(np.uint16) * 257)


def palette_with_transparency() -> bytes:
    image = Image.new("P", (64, 48), 0)
    image.putpalette([10, 20, 30, 0, 0, 0, 128, 128, 128])
    image.paste(1, BLACK_BOX)
    image.paste(2, GREY_BOX)
    return encode(image, "PNG", transparency=0)


def grey_with_transparent_value() -> bytes:
    image = scene().point(lambda value: 7 if value == 255 else value)
    return encode(image, "PNG", transparency=7)


def sixteen_bit_with_transparent_value() -> bytes:
    samples = np.asarray(sixteen_bit()).copy()
    samples[samples == 65535] = 7
    return encode(Image.fromarray(samples), "PNG", transparency=7)


LOSSLESS: dict[str, Callable[[], bytes]] = {
    "grey png": lambda: encode(scene(), "PNG"),
    "rgb png": lambda: encode(scene().convert("RGB"), "PNG"),
    "palette png": lambda: encode(scene().convert("P"), "PNG"),
    "palette png with transparency": palette_with_transparency,
    "grey png with a transparent value": grey_with_transparent_value,
    "16 bit grey png": lambda: encode(sixteen_bit(), "PNG"),
    "16 bit grey png with a transparent value": sixteen_bit_with_transparent_value,
    "16 bit grey tiff": lambda: encode(sixteen_bit(), "TIFF"),
    "rgba png": lambda: encode(transparent("RGBA"), "PNG"),
    "grey and alpha png": lambda: encode(transparent("LA"), "PNG"),
    "rgba tiff": lambda: encode(transparent("RGBA"), "TIFF"),
    "rgba webp": lambda: encode(transparent("RGBA"), "WEBP", lossless=True, exact=True),
    "lossless webp": lambda: encode(scene().convert("RGB"), "WEBP", lossless=True),
    "grey tiff": lambda: encode(scene(), "TIFF"),
    "lzw tiff": lambda: encode(scene(), "TIFF", compression="tiff_lzw"),
    "deflate tiff": lambda: encode(scene().convert("RGB"), "TIFF", compression="tiff_deflate"),
    "cmyk tiff": lambda: encode(scene().convert("RGB").convert("CMYK"), "TIFF"),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_page_is_seen_exactly(kind: str) -> None:
    # Alpha blending may round a mid grey by one.
    assert_looks_like(LOSSLESS[kind](), scene(), tolerance=1)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_page_is_seen(mode: str) -> None:
    image = scene() if mode == "L" else scene().convert("RGB").convert(mode)
    assert_looks_like(encode(image, "JPEG", quality=95), scene(), tolerance=24)


def test_cmyk_jpeg_without_adobes_marker_is_not_inverted() -> None:
    # Pillow writes inverted samples with the marker; plain samples without it are what other writers store.
    plain = Image.merge("CMYK", [Image.eval(band, lambda value: 255 - value) for band in ink_cmyk().split()])
    data = encode(plain, "JPEG", quality=95)
    marker = data.index(b"\xff\xee")
    length = int.from_bytes(data[marker + 2 : marker + 4], "big")
    assert_looks_like(data[:marker] + data[marker + 2 + length :], scene(), tolerance=24)


def ink_cmyk() -> Image.Image:
    return scene().convert("RGB").convert("CMYK")


@pytest.mark.parametrize(("file_format", "options"), [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "group4"})])
def test_one_bit_page_is_seen(file_format: str, options: dict[str, object]) -> None:
    drawing = scene().point(lambda value: 255 if value > 127 else 0)
    assert_looks_like(encode(drawing.convert("1"), file_format, **options), drawing)


def test_tiff_where_white_is_zero_is_not_a_negative() -> None:
    # Pillow turns the samples itself when it writes 8 bits, and does not for 16.
    assert_looks_like(encode(scene(), "TIFF", tiffinfo={262: 0}), scene())
    negative = Image.fromarray(65535 - np.asarray(sixteen_bit()))
    assert_looks_like(encode(negative, "TIFF", tiffinfo={262: 0}), scene())


def test_twelve_bit_samples_are_not_read_as_sixteen() -> None:
    image = Image.fromarray((np.asarray(scene()).astype(np.uint16) * 257) >> 4)
    tiff = bytearray(encode(image, "TIFF"))
    # The tag BitsPerSample, one SHORT: 16 becomes 12, stored in 16 all the same.
    entry = tiff.index((258).to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little"))
    assert tiff[entry + 8] == 16
    opened = TiffImageFile(io.BytesIO(tiff))
    opened.tag_v2[258] = (12,)
    page = np.asarray(as_seen(opened)).astype(int)
    assert np.abs(page - np.asarray(scene().convert("RGB")).astype(int)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_page_stands_upright(file_format: str, orientation: int) -> None:
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = scene().convert("RGB")
    if undo is not None:
        stored = stored.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(stored, file_format, exif=exif.tobytes(), **options)
    assert_looks_like(data, scene(), tolerance=40 if file_format == "JPEG" else 0)


@pytest.mark.parametrize(
    "junk", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40]
)
def test_damaged_exif_does_not_refuse_a_good_picture(junk: bytes) -> None:
    assert_looks_like(encode(scene(), "PNG", exif=junk), scene())


def test_phone_picture_with_a_second_frame_is_its_photograph() -> None:
    data = encode(scene().convert("RGB"), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))], quality=95)
    assert_looks_like(data, scene(), tolerance=24)


@pytest.mark.parametrize("mode", ["F", "I", "LAB", "HSV"])
def test_unknown_pixel_type_is_refused_and_not_a_blank_page(mode: str) -> None:
    with pytest.raises(UnsupportedPixelsError):
        as_seen(Image.new(mode, (16, 16)))
