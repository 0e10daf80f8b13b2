"""A prepared page as frames carry it: what is said of it comes through with its pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from service.frames import BrokenFrameError
from service.page_codec import decode_page, encode_page
from shared.deepseek_ocr.forms import PageImage, PageViews, PreparedPage, in_colours
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, plan_views


def test_views_come_through():
    plan = plan_views(64, 64, Mode.TINY, GeometryConfig(tiny_px=64))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    page = PageViews(plan, pixels, np.empty((0, plan.tile_px, plan.tile_px, 3), np.uint8))
    header, parts = encode_page(page)
    again = decode_page(header, memoryview(b"".join(parts)))
    assert isinstance(again, PageViews)
    assert (again.global_view_HWC == pixels).all()


def grey_page(*, as_image: bool) -> PreparedPage:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 1), np.uint8)
    plan = plan_views(64, 64, Mode.TINY, GeometryConfig(tiny_px=64))
    if as_image:
        return PageImage(plan, in_colours(pixels))
    no_tiles = np.empty((0, plan.tile_px, plan.tile_px, 1), np.uint8)
    return PageViews(plan, in_colours(pixels), in_colours(no_tiles))


@pytest.mark.parametrize("as_image", [True, False])
def test_a_grey_page_is_sent_once_and_comes_as_three_colours(as_image):
    page = grey_page(as_image=as_image)
    header, parts = encode_page(page)
    assert sum(map(len, parts)) == header.num_bytes == 64 * 64
    again = decode_page(header, memoryview(b"".join(parts)))
    assert [pixels.shape for pixels in again.arrays] == [pixels.shape for pixels in page.arrays]
    assert all((found == sent).all() for found, sent in zip(again.arrays, page.arrays, strict=True))
    assert again.find_fault(GeometryConfig(tiny_px=64)) is None
    # Sent on as it came.
    assert encode_page(again)[0] == header


def test_a_page_whose_bytes_are_not_those_of_its_colours_is_refused():
    header, parts = encode_page(grey_page(as_image=False))
    with pytest.raises(BrokenFrameError):
        decode_page(replace(header, is_grey=False), memoryview(b"".join(parts)))
