"""Which images are read whole, and canvases of lines as views: where they are, and that nothing of them is lost."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from shared.deepseek_ocr.configuration import geometry_from_json
from shared.deepseek_ocr.geometry import PADDING_GREY, GeometryConfig, plan_views
from shared.deepseek_ocr.line_views import is_crop, view_of
from shared.deepseek_ocr.nano_config import NANO_GEOMETRY
from shared.images.canvases import BAND_PX, SIDE_PX, Canvas
from shared.images.page_lines import lines_of_page
from tests.support.nano import NANO

TOKEN_PX = NANO_GEOMETRY.patch_px * NANO_GEOMETRY.downsample


@pytest.fixture(scope="module")
def geometry() -> GeometryConfig:
    return geometry_from_json(json.loads((NANO / "config.json").read_text(encoding="utf-8"))["geometry"])


def drawn(size: tuple[int, int], lines: list[tuple[int, int, str]]) -> Image.Image:
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for x, y, text in lines:
        draw.text((x, y), text, fill="black", font=ImageFont.load_default(24))
    return page


def is_read_whole(page: Image.Image, geometry: GeometryConfig) -> bool:
    strips = lines_of_page(page)
    assert strips
    return is_crop(plan_views(page.width, page.height, geometry.default_mode, geometry), strips)


def test_paragraph_is_read_whole(geometry):
    lines = [(30, 30 + 34 * number, "The queue belongs to one task and drops what") for number in range(9)]
    assert is_read_whole(drawn((760, 380), lines), geometry)


def test_receipt_is_read_by_its_lines(geometry):
    head = [(180, 40 + 34 * number, text) for number, text in enumerate(("CORNER SHOP", "12 Mill Road", "TAX INVOICE"))]
    items = [(40, 220 + 40 * number, f"Item {number}") for number in range(8)]
    prices = [(440, 220 + 40 * number, f"{number}.50") for number in range(8)]
    foot = [(40, 640, "TOTAL"), (440, 640, "28.00"), (140, 780, "THANK YOU"), (90, 900, "PLEASE COME AGAIN")]
    receipt = drawn((620, 1200), [*head, *items, *prices, *foot])
    assert not is_read_whole(receipt, geometry), "narrow and short, but of several blocks"


@pytest.mark.parametrize("height", [1, 31, 32, 33, 100, BAND_PX, BAND_PX + 1, 500, SIDE_PX])
def test_a_canvas_is_on_as_few_rows_of_tokens_as_it_can_be_near_the_middle(height):
    pixels = np.random.default_rng(height).integers(128, 256, (height, 300), np.uint8)
    view = view_of(Canvas((), (), pixels), NANO_GEOMETRY).global_view_HWC
    shown = np.flatnonzero((view != PADDING_GREY).any(axis=(1, 2)))
    assert shown[-1] // TOKEN_PX - shown[0] // TOKEN_PX + 1 == -(-height // TOKEN_PX)
    assert abs((shown[0] + shown[-1]) / 2 - SIDE_PX / 2) <= TOKEN_PX
    assert (view[shown[0] : shown[-1] + 1, 170:470] == pixels[:, :, None]).all()


def test_a_canvas_larger_than_a_view_is_refused():
    with pytest.raises(ValueError, match="is not one view"):
        view_of(Canvas((), (), np.zeros((SIDE_PX + 1, 10), np.uint8)), NANO_GEOMETRY)
