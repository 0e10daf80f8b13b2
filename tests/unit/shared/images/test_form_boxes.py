"""Boxes and combs of forms are no print, and letters in them are."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from shared.images.page_lines import lines_of_page
from tests.support.sheets import Sheet


@pytest.mark.parametrize("kind", ["boxes", "comb"])
def test_letters_in_cells_are_a_word(kind):
    sheet = Sheet()
    sheet.write(60, 60, "Membership number and name of the applicant", 18)
    font = ImageFont.load_default(30)
    for row, word in enumerate(("KPD17E", "REMBRU", "50X841")):
        top = 110 + 90 * row
        for cell, letter in enumerate(word):
            left = 60 + 46 * cell
            if kind == "boxes":
                sheet.draw.rectangle((left, top, left + 40, top + 48), outline=(0,) * 3, width=2)
            else:
                sheet.draw.line((left, top + 30, left, top + 48), fill=(0,) * 3, width=2)
            sheet.draw.text((left + 12, top + 6), letter, fill=(0,) * 3, font=font)
        if kind == "comb":
            sheet.draw.line((60, top + 48, 60 + 46 * 6, top + 48), fill=(0,) * 3, width=2)
            sheet.draw.line((60 + 46 * 6, top + 30, 60 + 46 * 6, top + 48), fill=(0,) * 3, width=2)
    strips = lines_of_page(sheet.image)
    assert len({strip.row for strip in strips}) == 4
    for strip in strips[-3:]:
        columns = np.flatnonzero((strip.pixels_HW < 128).any(axis=0))
        gaps = np.diff(columns)
        # Six letters with narrow gaps, and nothing of the cells.
        assert (gaps > 1).sum() == 5
        assert gaps.max() < 9


@pytest.mark.parametrize("size_px", range(9, 18))
def test_round_letters_of_small_print_are_no_boxes(size_px):
    page = Image.new("L", (900, 700), 255)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size_px)
    for number in range(12):
        place = 60, 40 + 3 * number * size_px
        draw.text(place, "Der Doktor ging D g Q O mit der Bahn nach Gouda", fill=0, font=font)
    is_ink_HW = np.asarray(page) < 128
    is_found_HW = np.zeros_like(is_ink_HW)
    for strip in lines_of_page(page.convert("RGB")):
        for left, top, right, bottom in strip.parts_px:
            is_found_HW[max(top - 2, 0) : bottom + 3, max(left - 2, 0) : right + 3] = True
    assert (is_ink_HW & is_found_HW).sum() > 0.99 * is_ink_HW.sum()
