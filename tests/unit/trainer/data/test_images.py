"""Images checked once: what is kept, what is turned into a plain one, what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.support.page_sources import drawn, encoded
from trainer.data.errors import RowCode, RowError
from trainer.data.sources.images import MAX_PIXELS, check_image


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
    assert MAX_PIXELS < 13000**2
    for data in (bomb, encoded(Image.new("1", (6500, 6500)))):
        with pytest.raises(RowError) as refused:
            check_image(data)
        assert refused.value.code is RowCode.IMAGE_TOO_LARGE


def test_no_prefix_of_a_file_gets_through():
    data = encoded(drawn("prefix", mode="RGB"), "JPEG")
    for length in range(0, len(data) - 2, 7):
        with pytest.raises(RowError):
            check_image(data[:length])
