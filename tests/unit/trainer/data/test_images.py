"""Images checked once: what is kept, what is turned into a plain one, what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageChops

from shared.images.limits import ImageLimits
from shared.images.raster import open_raster
from tests.support.page_sources import drawn, encoded
from tests.support.tiff import TiffPage, make_tiff
from trainer.data.errors import RowCode, RowError
from trainer.data.sources.images import FORMATS, LIMITS, check_image


def opened(data):
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(("form", "suffix"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")])
def test_plain_files_are_kept_byte_for_byte(form, suffix):
    data = encoded(drawn("plain", mode="RGB"), form)
    image = check_image(data)
    assert (image.data, image.suffix, image.width_px, image.height_px) == (data, suffix, 120, 30)


def test_the_same_pixels_in_two_formats_are_the_same_page():
    page = drawn("same", mode="RGB")
    digests = {check_image(encoded(page, form, **extra)).pixels_sha256
               for form, extra in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}))}  # fmt: skip
    assert len(digests) == 1
    assert check_image(encoded(drawn("other", mode="RGB"))).pixels_sha256 not in digests


def test_a_turned_photograph_is_stored_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = check_image(encoded(drawn("turned", mode="RGB"), "JPEG", exif=exif, quality=95))
    assert (image.width_px, image.height_px, image.suffix) == (30, 120, "png")
    assert opened(image.data).size == (30, 120)


def test_transparent_ink_and_sixteen_bits_stay_legible():
    ink = Image.new("RGBA", (60, 20), (0, 0, 0, 0))
    ink.putpixel((5, 5), (0, 0, 0, 255))
    pixels = np.asarray(opened(check_image(encoded(ink)).data).convert("L"))
    assert (pixels[5, 5], pixels[0, 0]) == (0, 255)
    deep = Image.fromarray(np.array([[20000, 65535] * 10] * 10, dtype=np.uint16))
    pixels = np.asarray(opened(check_image(encoded(deep)).data).convert("L"))
    assert pixels[0, 0] < 100 < pixels[0, 1]


def test_large_images_are_refused_by_their_header():
    bomb = encoded(Image.new("1", (13000, 13000)))
    assert LIMITS.max_pixels < 6500**2
    for data in (bomb, encoded(Image.new("1", (6500, 6500)))):
        with pytest.raises(RowError) as refused:
            check_image(data)
        assert refused.value.code is RowCode.IMAGE_TOO_LARGE


def test_no_prefix_of_a_file_gets_through():
    data = encoded(drawn("prefix", mode="RGB"), "JPEG")
    # The last bytes hold a fraction of a block: without them no block is missing.
    for length in range(0, len(data) - 8, 7):
        with pytest.raises(RowError):
            check_image(data[:length])
    assert check_image(data[:-2]).pixels_sha256 == check_image(data).pixels_sha256


PAGE = drawn("as the service sees it", (240, 40))
GREY = np.asarray(PAGE)[:, :, None]


def without_adobes_marker() -> bytes:
    inks = PAGE.convert("RGB").convert("CMYK")
    data = encoded(ImageChops.invert(inks), "JPEG", quality=95)
    marker = data.index(b"\xff\xee")
    return data[:marker] + data[marker + 2 + int.from_bytes(data[marker + 2 : marker + 4], "big") :]


def white_ink() -> bytes:
    layer = Image.new("LA", PAGE.size, (255, 0))
    layer.putalpha(Image.eval(PAGE, lambda value: 255 - value))
    return encoded(layer)


def with_a_transparent_value() -> bytes:
    samples = np.asarray(PAGE).astype(np.uint16) * 200 + 7
    return encoded(Image.fromarray(samples), transparency=int(samples.max()))


KINDS = {
    "plain": lambda: encoded(PAGE),
    "16 bits, big-endian": lambda: make_tiff(TiffPage(GREY.astype(np.uint16) * 257), order=">"),
    "16 bits, white is zero": lambda: make_tiff(TiffPage((255 - GREY).astype(np.uint16) * 257, photometric=0)),
    "16 bits in planes": lambda: make_tiff(TiffPage(np.repeat(GREY, 3, 2).astype(np.uint16) * 257, 2, planar=2)),
    "16 bits and a transparent value": with_a_transparent_value,
    "cmyk without Adobe's marker": without_adobes_marker,
    "cmyk and alpha": lambda: make_tiff(TiffPage(np.repeat(GREY, 5, 2), photometric=5, extra=(2,))),
    "photograph of a phone": lambda: encoded(PAGE.convert("RGB"), "MPO", save_all=True, append_images=[PAGE]),
    "thumbnail": lambda: make_tiff(TiffPage(GREY), TiffPage(GREY[::4, ::4], subfile=1)),
    "white ink": white_ink,
    "long metadata": lambda: encoded(PAGE, icc_profile=bytes(2_000_000)),
    "no end marker": lambda: encoded(PAGE, "JPEG")[:-2],
    "byte after the start": lambda: encoded(PAGE, "JPEG")[:2] + b"\0" + encoded(PAGE, "JPEG")[2:],
    "gif": lambda: encoded(PAGE, "GIF"),
    "animated gif": lambda: encoded(PAGE, "GIF", save_all=True, append_images=[Image.new("L", PAGE.size)]),
    "bmp": lambda: encoded(PAGE, "BMP"),
    "jpeg 2000": lambda: encoded(PAGE, "JPEG2000"),
    "avif": lambda: encoded(PAGE.convert("RGB"), "AVIF"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_stored_as_the_service_sees_it(kind):
    data = KINDS[kind]()
    seen = open_raster(data, ImageLimits()).read(1).image
    stored = check_image(data)
    # Training opens stored files without knowing more of them.
    with opened(stored.data) as image:
        assert image.convert("RGB").tobytes() == seen.tobytes()
    assert check_image(stored.data).pixels_sha256 == stored.pixels_sha256
    # None is a blank page or a negative of one.
    levels = np.asarray(seen.convert("L"))
    assert levels.max() - int(levels.min()) > 150


@pytest.mark.parametrize("kind", ["f4", "u4", "i2"])
def test_pixel_types_that_the_service_refuses_are_refused(kind):
    with pytest.raises(RowError) as refused:
        check_image(make_tiff(TiffPage(GREY.astype(kind))))
    assert refused.value.code is RowCode.IMAGE_PIXELS


def test_a_page_that_lacks_a_part_teaches_nothing_and_is_refused():
    data = encoded(drawn("text " * 40, (600, 300), "RGB"), "JPEG", quality=95)
    with pytest.raises(RowError, match="a part of the image is missing") as refused:
        check_image(data[:-40])
    assert refused.value.code is RowCode.IMAGE_UNREADABLE


def test_several_pages_are_refused_and_copies_of_one_are_not_pages():
    with pytest.raises(RowError) as refused:
        check_image(make_tiff(TiffPage(GREY), TiffPage(GREY)))
    assert refused.value.code is RowCode.IMAGE_SEVERAL_FRAMES


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"%PDF-1.7\n", "it is a PDF"),
        (b"PK\3\4" + bytes(60), "it is a ZIP archive"),
        (b"\0" * 99, "no known format"),
    ],
)
def test_other_files_are_named(data, reason):
    with pytest.raises(RowError) as refused:
        check_image(data)
    assert refused.value.code is RowCode.IMAGE_FORMAT
    assert reason in refused.value.reason
    assert not data or FORMATS in refused.value.reason
