"""Print on grounds of strong colours is found as it is on white."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from shared.images.ink import find_ink
from shared.images.page_lines import lines_of_page
from shared.images.tints import without_tints
from tests.support.printed import ROW, TITLE, TOTAL

SIZE = (420, 60)
LINES = (TITLE, ROW, TOTAL, ROW, TITLE)
PITCH_PX = 44
FONT = ImageFont.load_default(20)


def printed(ground: str, ink: str, size: tuple[int, int] = SIZE) -> Image.Image:
    image = Image.new("RGB", size, ground)
    ImageDraw.Draw(image).text((20, 16), ROW, font=FONT, fill=ink)
    return image


def page_with_stroke(colour: str) -> Image.Image:
    """Five lines, the third of them below a highlighter's stroke."""
    page = Image.new("RGB", (700, 300), "white")
    draw = ImageDraw.Draw(page)
    draw.rectangle((30, 36 + 2 * PITCH_PX, 600, 36 + 2 * PITCH_PX + 32), fill=colour)
    for number, line in enumerate(LINES):
        draw.text((40, 40 + number * PITCH_PX), line, font=FONT, fill="black")
    return page


@pytest.mark.parametrize(
    ("ground", "ink"),
    [
        ("#ffff00", "black"),
        ("#ff9800", "black"),
        ("#00ff00", "black"),
        ("#00ffff", "black"),
        ("#ffdd00", "red"),
        ("#ff0000", "white"),
        ("#0000ff", "white"),
        ("#1a73e8", "white"),
        ("#d32f2f", "yellow"),
    ],
)
def test_print_on_a_coloured_ground_has_the_marks_that_it_has_on_white(ground, ink):
    on_white = find_ink(printed("white", "black"))
    assert on_white.marks > 10
    assert find_ink(printed(ground, ink)).marks == pytest.approx(on_white.marks, abs=1)


@pytest.mark.parametrize("colour", ["#ffff00", "#ffb428", "#78f078", "#ff78be", "#5adcfa"])
def test_a_highlighted_line_is_a_line_among_the_others(colour):
    plain, highlighted = (lines_of_page(page_with_stroke(each)) for each in ("white", colour))
    assert len(plain) == len(LINES)
    boxes = [np.array([strip.box_px for strip in strips]) for strips in (plain, highlighted)]
    assert np.abs(boxes[0] - boxes[1]).max() <= 4
    assert len(find_ink(page_with_stroke(colour)).lines) == len(find_ink(page_with_stroke("white")).lines)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_page_without_strong_colours_stays_the_same(mode):
    page = printed("#fff4d8", "#203050").convert(mode)
    assert without_tints(page) is page


def test_coloured_print_and_shaded_areas_stay_as_they_are():
    print_alone = printed("white", "#d00000")
    assert np.array_equal(np.asarray(without_tints(print_alone)), np.asarray(print_alone))
    # As in the sky of a photograph, no colour is that of a ground.
    across = np.linspace(0, 255, SIZE[0]).astype(np.uint8)
    shaded = np.stack(
        [np.broadcast_to(each, SIZE[::-1]) for each in (across, across[::-1], np.full_like(across, 90))], 2
    )
    assert np.array_equal(np.asarray(without_tints(Image.fromarray(shaded))), shaded)
