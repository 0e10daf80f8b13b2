"""A prepared page as frames carry it: what is said of it comes through with its pixels."""

from __future__ import annotations

import numpy as np
import pytest

from service.page_codec import decode_page, encode_page
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, plan_views


@pytest.mark.parametrize("is_canvas", [True, False])
def test_a_canvas_stays_one(is_canvas):
    plan = plan_views(64, 64, Mode.TINY, GeometryConfig(tiny_px=64))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    page = PageViews(plan, pixels, np.empty((0, plan.tile_px, plan.tile_px, 3), np.uint8), is_canvas=is_canvas)
    header, parts = encode_page(page)
    again = decode_page(header, memoryview(b"".join(parts)))
    assert isinstance(again, PageViews)
    assert again.is_canvas is is_canvas
    assert (again.global_view_HWC == pixels).all()
