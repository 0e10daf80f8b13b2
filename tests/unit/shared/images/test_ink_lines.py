from __future__ import annotations

from PIL import Image, ImageDraw

from shared.images.ink import find_ink
from tests.support.printed import LEFT, page_of, register, two_columns


def test_columns_are_lines_of_their_own_with_a_width_for_each_word() -> None:
    lines = find_ink(two_columns()).lines
    assert len(lines) == 10
    left = [line for line in lines if line.box_px[0] < 500]
    for line, text in zip(left, LEFT, strict=True):
        assert abs(len(line.words_px) - len(text.split())) <= 1
    assert all(line.box_px[0] >= 40 and line.box_px[2] <= 460 for line in left)


def test_points_and_commas_belong_to_their_line() -> None:
    assert len(find_ink(register(20)).lines) == 22
    (amount,) = find_ink(page_of((40, 40, ["0.00"]))).lines
    assert len(amount.words_px) == 1


def test_boxes_are_in_pixels_of_a_large_page() -> None:
    large = two_columns().resize((4000, 1440))
    small_lines, large_lines = find_ink(two_columns()).lines, find_ink(large).lines
    assert len(large_lines) == len(small_lines)
    for small, same in zip(small_lines, large_lines, strict=True):
        assert all(abs(4 * one - other) < 16 for one, other in zip(small.box_px, same.box_px, strict=True))


def test_rules_and_frames_are_no_lines() -> None:
    page = two_columns()
    draw = ImageDraw.Draw(page)
    draw.rectangle((20, 20, 980, 340), outline="black", width=3)
    draw.line((500, 30, 500, 330), fill="black", width=3)
    assert len(find_ink(page).lines) == 10


def test_blank_page_has_none() -> None:
    assert find_ink(Image.new("RGB", (600, 800), "white")).lines == ()
