"""Turned pages are found; how often is measured by `benchmarks/outcomes.py`."""

from __future__ import annotations

from random import Random

import pytest
from PIL import Image, ImageDraw, ImageFont

from shared.images.ink import relief_of
from shared.images.orientation import TURNS, Orientation, find_orientation
from tests.support.printed import number_cells, page_of, register, two_columns

TRANSPOSES = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_90}
PAGES = {
    "columns": two_columns(),
    "register": register(12),
    "digits": page_of(*((40 + 300 * column, 40, ["4711.50", "318.27", "962.14", "75.40"]) for column in range(3))),
    "capitals": page_of((40, 40, ["DELIVERY NOTE OF THE HARBOUR", "PLEASE SIGN AND RETURN", "ALL PRICES ARE NET"])),
    "small": two_columns().resize((560, 202), Image.Resampling.LANCZOS),
}  # fmt: skip


def orientation(image: Image.Image) -> Orientation:
    relief = relief_of(image)
    return find_orientation(relief)


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("name", PAGES)
def test_turned_page_is_found(name: str, turn: int) -> None:
    page = PAGES[name].transpose(TRANSPOSES[turn]) if turn else PAGES[name]
    assert orientation(page).turn_degrees == -turn % 360


def test_page_that_tells_nothing_stays_as_it_is() -> None:
    assert orientation(Image.new("RGB", (600, 800), "white")).turn_degrees == 0
    assert orientation(page_of((400, 150, ["oxo"])).transpose(Image.Transpose.ROTATE_180)).turn_degrees == 0


@pytest.mark.parametrize("text", ["Invoice 2024-0817 total", "v1.10.3-rc5 of the queue", "class=small quality"])
@pytest.mark.parametrize("size_px", [20, 28, 40])
def test_underlined_line_is_upright(text: str, size_px: int) -> None:
    """A line above letters is what they have upside down."""
    font = ImageFont.load_default(size_px)
    length, base = round(font.getlength(text)), round(1.5 * size_px)
    page = Image.new("RGB", (length + 40, 2 * size_px + 10), "white")
    pen = ImageDraw.Draw(page)
    pen.text((20, base), text, "black", font, anchor="ls")
    pen.line((20, base + size_px // 6, 20 + length, base + size_px // 6), "black", 2)
    assert orientation(page).turn_degrees == 0


def test_numbers_in_cells_are_not_turned() -> None:
    rng = Random(1)
    for _ in range(5):
        numbers = "\n".join(f"{rng.randrange(10**5):05} {rng.randrange(10**5):05}" for _ in range(2))
        assert orientation(number_cells(numbers)).turn_degrees == 0
