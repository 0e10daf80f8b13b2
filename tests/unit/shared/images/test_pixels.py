"""The page zoo: whatever a file stores, the page must look as a person sees it."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from shared.images.errors import ImageError, ImageReason
from shared.images.limits import ImageLimits
from shared.images.pixels import as_seen, without_colours
from shared.images.raster import open_raster
from tests.support.png import colour_png, grey_png
from tests.support.scene import BLACK_BOX, GREY_BOX, assert_looks_like, encode, scene, seen


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


@pytest.mark.parametrize("kind", ["grey png", "16 bit grey png", "grey tiff", "16 bit grey tiff"])
def test_page_of_a_grey_file_may_stay_grey(kind: str) -> None:
    page = open_raster(LOSSLESS[kind](), ImageLimits()).read(1, may_be_grey=True).image
    assert page.mode == "L"
    assert page.tobytes() == scene().tobytes()


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
    with pytest.raises(ImageError) as refused:
        as_seen(Image.new(mode, (16, 16)))
    assert refused.value.reason is ImageReason.UNSUPPORTED_PIXELS


def white_ink(mode: str) -> Image.Image:
    """The scene in white on nothing; what is grey there is half transparent."""
    layer = Image.new(mode[:-1], (64, 48), "white")
    layer.putalpha(ImageOps.invert(scene()))
    return layer


def white_ink_by_value(depth: int) -> bytes:
    samples = np.full((48, 64), 7, np.uint8)
    samples[4:12, 4:28] = 255
    if depth == 16:
        return encode(Image.fromarray(samples.astype(np.uint16) * 257), "PNG", transparency=7 * 257)
    return encode(Image.fromarray(samples), "PNG", transparency=7)


WHITE_INK: dict[str, Callable[[], bytes]] = {
    "rgba png": lambda: encode(white_ink("RGBA"), "PNG"),
    "grey and alpha png": lambda: encode(white_ink("LA"), "PNG"),
    "rgba webp": lambda: encode(white_ink("RGBA"), "WEBP", lossless=True),
    "rgba tiff": lambda: encode(white_ink("RGBA"), "TIFF"),
    "grey and alpha tiff": lambda: encode(white_ink("LA"), "TIFF"),
    "rgba avif": lambda: encode(white_ink("RGBA"), "AVIF", quality=100),
    "8 bit png with a transparent value": lambda: white_ink_by_value(8),
    "16 bit png with a transparent value": lambda: white_ink_by_value(16),
}


@pytest.mark.parametrize("kind", WHITE_INK)
def test_ink_that_white_paper_would_erase_is_shown_on_black(kind: str) -> None:
    page = seen(WHITE_INK[kind]()).astype(int)
    ink, ground = page[5:11, 6:26], page[14:28]
    assert ink.min() > 250
    assert ground.max() < 5


@pytest.mark.parametrize("colour", [(0, 0, 0), (200, 30, 30), (150, 150, 150)])
def test_ink_that_white_paper_shows_stays_on_white(colour: tuple[int, int, int]) -> None:
    layer = Image.new("RGBA", (64, 48), (*colour, 0))
    layer.paste((*colour, 255), BLACK_BOX)
    page = seen(encode(layer, "PNG"))
    assert tuple(page[6, 6]) == colour
    assert page[20:].min() == 255


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_an_empty_alpha_channel_hides_nothing(file_format: str) -> None:
    layer = scene().convert("RGB")
    layer.putalpha(0)
    assert_looks_like(encode(layer, file_format), scene())


def test_a_page_that_is_white_with_and_without_its_alpha_stays_white() -> None:
    assert seen(encode(Image.new("RGBA", (20, 20), (255, 255, 255, 255)), "PNG")).min() == 255
    for colour in (0, 255):
        assert seen(encode(Image.new("LA", (20, 20), (colour, 0)), "PNG")).min() == 255


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_transparent_value_of_a_grey_png_is_in_its_own_levels(bits: int) -> None:
    levels = (1 << bits) - 1
    samples = np.full((48, 64), levels - 1, np.uint8)
    samples[4:12, 4:28] = 0
    page = seen(grey_png(samples, bits, transparent=levels - 1))
    assert page[6, 6].max() == 0
    assert page[20:].min() == 255


def test_transparent_value_of_a_16_bit_colour_png() -> None:
    samples = np.full((48, 64, 3), 7 * 257, np.uint16)
    samples[4:12, 4:28] = 0
    page = seen(colour_png(samples, (7 * 257,) * 3))
    assert page[6, 6].max() == 0
    assert page[20:].min() == 255


def test_16_bit_colour_png() -> None:
    samples = np.repeat(np.asarray(scene())[:, :, None].astype(np.uint16) * 257, 3, axis=2)
    assert_looks_like(colour_png(samples), scene())


@pytest.mark.parametrize("band", [0, 1, 2])
def test_a_page_is_without_colours_only_if_every_pixel_is(band: int) -> None:
    grey = scene().convert("L").convert("RGB")
    assert without_colours(grey).mode == "L"
    assert without_colours(grey).convert("RGB").tobytes() == grey.tobytes()
    pixels = np.array(grey)
    pixels[-1, -1, band] ^= 1
    coloured = Image.fromarray(pixels)
    assert without_colours(coloured) is coloured
