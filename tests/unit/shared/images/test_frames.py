"""Frames of stamps go, and what is in them is level; letters, tables and full pages stay as they are."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from shared.images.frames import without_frames
from shared.images.ink import relief_of
from tests.support.printed import page_of, two_columns


def stamp(word: str, tilt: float = 0.0, *, has_frame: bool = True) -> Image.Image:
    font = ImageFont.load_default(40)
    left, top, right, bottom = font.getbbox(word)
    sheet = Image.new("L", (round(right - left) + 40, round(bottom - top) + 40), 255)
    draw = ImageDraw.Draw(sheet)
    if has_frame:
        draw.rectangle((2, 2, sheet.width - 3, sheet.height - 3), outline=40, width=3)
    draw.text((20 - left, 20 - top), word, font=font, fill=40)
    page = Image.new("L", (640, 420), 255)
    page.paste(sheet.rotate(tilt, Image.Resampling.BICUBIC, expand=True, fillcolor=255), (130, 120))
    return page.convert("RGB")


def bare(page: Image.Image) -> Image.Image:
    return without_frames(page, relief_of(page))


def ink_box(page: Image.Image) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(np.asarray(page.convert("L")) < 128)
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


@pytest.mark.parametrize("tilt", [0, 5, -9])
def test_frame_goes_and_its_word_is_level_where_it_was(tilt: float) -> None:
    page = stamp("SIGNED", tilt)
    expected = ink_box(stamp("SIGNED", has_frame=False))
    x1, y1, x2, y2 = ink_box(bare(page))
    assert (x2 - x1, y2 - y1) == pytest.approx((expected[2] - expected[0], expected[3] - expected[1]), abs=4)
    before = ink_box(page)
    assert (x1 + x2) / 2 == pytest.approx((before[0] + before[2]) / 2, abs=3)
    assert (y1 + y2) / 2 == pytest.approx((before[1] + before[3]) / 2, abs=3)


def test_what_is_no_frame_stays() -> None:
    table = stamp("A B")
    draw = ImageDraw.Draw(table)
    draw.rectangle((300, 300, 600, 400), outline="black", width=3)
    draw.line((450, 300, 450, 400), fill="black", width=3)
    left = bare(table)
    assert ink_box(left.crop((290, 290, 610, 410))) == ink_box(table.crop((290, 290, 610, 410)))
    empty = Image.new("RGB", (640, 420), "white")
    ImageDraw.Draw(empty).rectangle((100, 100, 400, 300), outline="black", width=3)
    for page in (empty, page_of((40, 40, ["DOOR 0080", "ROAD OF 1808"])), two_columns()):
        assert bare(page) is page
