"""Rules are no print, and print that looks like rules is none."""

from __future__ import annotations

import pytest
from PIL import ImageFont

from shared.images.page_lines import lines_of_page
from shared.images.segments import find_segments
from tests.support.sheets import PROSE, Sheet, read


def test_rows_of_a_ruled_table_are_lines():
    sheet = Sheet()
    for row in range(7):
        top = 80 + 40 * row
        for column, text in enumerate((f"Article number {row}", f"{row},50", "-", f"{3 * row}.00 EUR")):
            sheet.write(90 + 250 * column, top + 8, text)
        sheet.draw.line((80, top, 1090, top), fill=0, width=2)
    for x in (80, 330, 580, 830, 1090):
        sheet.draw.line((x, 80, x, 360), fill=0, width=2)
    lines = [line for line in read(sheet.image, sheet.lines).split("\n") if line]
    assert lines == [f"Article number {row} {row},50 - {3 * row}.00 EUR" for row in range(7)]


def test_underlined_text_is_one_line():
    sheet = Sheet()
    sheet.write(80, 80, "Underlined and read")
    left, _, right, bottom = sheet.lines[0][1]
    sheet.draw.line((left, bottom + 1, right, bottom + 1), fill=0, width=2)
    sheet.write(80, 150, "Not underlined")
    assert read(sheet.image, sheet.lines).split("\n") == ["Underlined and read", "", "Not underlined"]


@pytest.mark.parametrize("thick", [1, 2, 3])
@pytest.mark.parametrize("text", PROSE[:2])
def test_a_line_that_is_struck_out_is_still_a_line(thick: int, text: str):
    sheet = Sheet()
    for number in range(6):
        sheet.write(100, 80 + 70 * number, text, 26)
        left, top, right, bottom = sheet.lines[-1][1]
        if number % 2:
            middle = round(top + 0.62 * (bottom - top))
            sheet.draw.line((left - 2, middle, right + 2, middle), fill=0, width=thick)
    boxes = [segment.box for segment in find_segments(sheet.image).segments]
    for _, (left, top, right, bottom) in sheet.lines:
        found = [box for box in boxes if top - 4 <= (box[1] + box[3]) / 2 <= bottom + 4]
        assert len(found) == 1
        assert abs(found[0][0] - left) < 6
        assert abs(found[0][2] - right) < 6


def test_letters_keep_their_feet_where_an_underline_touches_them():
    plain, underlined = Sheet(), Sheet()
    for sheet in (plain, underlined):
        for number in range(6):
            sheet.write(100, 80 + 70 * number, "gladly helping many quiet people", 30)
            left, _, right, _ = sheet.lines[-1][1]
            # Through the feet of all letters, across the tails of some.
            base = 80 + 70 * number + ImageFont.load_default(30).getmetrics()[0]
            if sheet is underlined:
                sheet.draw.line((left, base - 1, right, base - 1), fill=(0,) * 3, width=3)
    heights = [
        sorted({strip.row: strip.pixels_HW.shape[0] * strip.scale**-1 for strip in lines_of_page(sheet.image)}.values())
        for sheet in (plain, underlined)
    ]
    assert len(heights[0]) == len(heights[1]) == 6
    assert heights[1][0] > 0.85 * heights[0][0]


def test_dotted_rules_are_no_lines():
    sheet = Sheet(height=500)
    sheet.write(80, 60, PROSE[0], 18)
    for x in (60, 300, 700):
        for y in range(40, 460, 4):
            sheet.draw.rectangle((x, y, x + 1, y + 1), fill=(0,) * 3)
    for y in (140, 240, 340):
        for x in range(60, 700, 4):
            sheet.draw.rectangle((x, y, x + 1, y + 1), fill=(0,) * 3)
    assert [segment.box[1] > 50 and segment.box[3] < 90 for segment in find_segments(sheet.image).segments] == [True]


@pytest.mark.parametrize("size", [36, 40, 44])
def test_stems_of_a_large_headline_are_no_rules(size):
    sheet = Sheet(height=1100)
    # Its stems are as long and as thin as rules of a page whose print is so small.
    sheet.write(80, 40, "Elections will fill the hall", size)
    for number in range(24):
        sheet.write(80, 180 + 36 * number, " ".join(PROSE), 14)
    page = find_segments(sheet.image)
    x1, y1, x2, y2 = (round(side / page.scale) for side in sheet.lines[0][1])
    assert (page.owner_hw[y1:y2, x1:x2] > 0).any()
    assert not (page.owner_hw[y1:y2, x1:x2] < 0).any()


def test_a_rule_that_the_right_edge_of_the_page_cuts_is_found():
    sheet = Sheet()
    for number in range(6):
        sheet.write(80, 80 + 60 * number, PROSE[number % 3], 22)
    # The shortest that is one, between two of the columns that are looked at first.
    sheet.draw.line((1169, 600, 1199, 600), fill=(0,) * 3, width=2)
    assert (find_segments(sheet.image).owner_hw[595:605, 1170:] == -1).any()


def test_an_upright_rule_stays_whole_where_cells_touch_it_on_both_sides():
    sheet = Sheet(700, 700)
    font = ImageFont.load_default(24)
    for row in range(8):
        top = 40 + 72 * row
        for left in (300 - font.getbbox("EHH")[2], 301 - font.getbbox("EHH")[0]):
            sheet.draw.text((left, top), "EHH", fill=0, font=font)
    sheet.draw.rectangle((299, 30, 301, 600), fill=0)
    page = find_segments(sheet.image)
    assert len(page.segments) == 16
    assert all(box[2] <= 300 or box[0] >= 300 for box in (segment.box for segment in page.segments))
