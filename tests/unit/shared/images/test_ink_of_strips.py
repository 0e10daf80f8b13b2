"""Long strips, such as till rolls, keep their print when pages are made smaller to look for it."""

from __future__ import annotations

import time

import pytest
from PIL import Image, ImageDraw, ImageFont

from shared.images.ink import find_ink


def strip(size: tuple[int, int], text: str) -> Image.Image:
    page = Image.new("RGB", size, "white")
    ImageDraw.Draw(page).text((20, 20), text, font=ImageFont.load_default(25), fill="black")
    return page


@pytest.mark.parametrize("size", [(420, 12_000), (12_000, 420), (420, 3000), (1240, 1754)])
def test_print_on_a_strip_is_found(size: tuple[int, int]) -> None:
    assert not find_ink(strip(size, "Total 318 kg, paid")).is_blank
    assert find_ink(strip(size, "")).is_blank


def test_a_strip_takes_no_longer_than_pages_do() -> None:
    start_s = time.process_time()
    find_ink(strip((1000, 12_000), "Total 318 kg, paid"))
    assert time.process_time() - start_s < 5
