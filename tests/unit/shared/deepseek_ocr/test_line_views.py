"""Which images are read whole, and which by their lines."""

from __future__ import annotations

import json

import pytest
from PIL import Image, ImageDraw, ImageFont

from shared.deepseek_ocr.configuration import geometry_from_json
from shared.deepseek_ocr.geometry import GeometryConfig, plan_views
from shared.deepseek_ocr.line_views import is_crop
from shared.images.page_lines import lines_of_page
from tests.support.nano import NANO


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
