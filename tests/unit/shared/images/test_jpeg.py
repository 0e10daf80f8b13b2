"""JPEG files that browsers and djpeg show though their end or start is not as it should be."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from shared.images.errors import ImageError, ImageReason
from shared.images.limits import ImageLimits
from shared.images.raster import SeenPage, open_raster
from tests.support.scene import encode, scene


def page(mode: str = "RGB") -> Image.Image:
    """Text from top to bottom, so that every row has something to lose."""
    image = Image.new("L", (420, 300), 255)
    draw = ImageDraw.Draw(image)
    for row in range(10):
        draw.text((8, 8 + 29 * row), f"Row {row} of a delivery note, paid", font=ImageFont.load_default(20), fill=0)
    return image.convert(mode)


def read(data: bytes) -> SeenPage:
    file = open_raster(data, ImageLimits())
    assert file.pages() == (1,)
    return file.read(1)


KINDS = list(itertools.product(["L", "RGB", "CMYK"], [False, True]))


@pytest.mark.parametrize(("mode", "progressive"), KINDS)
def test_only_the_end_marker_is_missing(mode: str, progressive: bool) -> None:
    data = encode(page(mode), "JPEG", quality=90, progressive=progressive)
    assert data.endswith(b"\xff\xd9")
    seen, whole = read(data[:-2]), read(data)
    assert (seen.is_damaged, seen.is_plain) == (False, False)
    assert (whole.is_damaged, whole.is_plain) == (False, mode != "CMYK")
    assert seen.image.tobytes() == whole.image.tobytes()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_missing_corner_is_reported_and_the_rest_is_read(subsampling: int) -> None:
    data = encode(page(), "JPEG", quality=90, subsampling=subsampling)
    seen, whole = read(data[:-40]), read(data)
    assert seen.is_damaged
    assert not whole.is_damaged
    difference = np.abs(np.asarray(seen.image).astype(int) - np.asarray(whole.image))[:, :, 0].max(1)
    assert difference[:270].max() == 0
    assert difference[280:].max() > 0


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_page_that_lacks_most_is_refused(mode: str) -> None:
    data = encode(page(mode), "JPEG", quality=90)
    for share in (0.1, 0.3, 0.45):
        with pytest.raises(ImageError) as refused:
            read(data[: int(len(data) * share)])
        assert refused.value.reason is ImageReason.DAMAGED
    assert read(data[: int(len(data) * 0.8)]).is_damaged


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_progressive_page_needs_all_its_detail_once(mode: str) -> None:
    data = encode(page(mode), "JPEG", quality=90, progressive=True)
    with pytest.raises(ImageError) as refused:
        read(data[: len(data) // 3])
    assert refused.value.reason is ImageReason.DAMAGED
    # What is missing here are the last bits of coefficients.
    whole, seen = (np.asarray(read(each).image).astype(int) for each in (data, data[: -len(data) // 8]))
    assert np.abs(whole - seen).mean() < 8


def test_a_grey_page_that_is_whole_is_not_taken_for_a_missing_one() -> None:
    assert not read(encode(Image.new("RGB", (64, 64), (128, 128, 128)), "JPEG")).is_damaged


@pytest.mark.parametrize("stray", [b"\0", b"\0\0\0", b"\n", b"\xff", b"\xff\xff", bytes(32)])
def test_stray_bytes_after_the_start_are_skipped(stray: bytes) -> None:
    data = encode(page(), "JPEG", quality=90)
    assert read(data[:2] + stray + data[2:]).image.tobytes() == read(data).image.tobytes()


def test_more_bytes_after_the_end_are_ignored() -> None:
    data = encode(page(), "JPEG", quality=90)
    seen = read(data + bytes(100))
    assert (seen.is_damaged, seen.image.tobytes()) == (False, read(data).image.tobytes())


def test_samples_of_twelve_bits_are_called_that() -> None:
    data = bytearray(encode(scene(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    assert data[frame + 4] == 8
    data[frame + 4] = 12
    with pytest.raises(ImageError) as refused:
        open_raster(bytes(data), ImageLimits())
    assert refused.value.reason is ImageReason.UNSUPPORTED_PIXELS


def test_a_photograph_with_a_second_picture_is_one_page_even_if_that_is_cut_off() -> None:
    stream = io.BytesIO()
    page().save(stream, "MPO", save_all=True, append_images=[page().resize((84, 60))], quality=95)
    data = stream.getvalue()
    for each in (data, data[:-2], data[:-50]):
        assert read(each).image.size == (420, 300)
