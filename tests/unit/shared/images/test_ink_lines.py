from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from shared.images.ink import find_ink
from shared.images.ink_lines import label_shapes
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


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (7, 3), (64, 64), (333, 501)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.6, 1.0])
def test_shapes_have_the_labels_that_opencv_gives_them(size: tuple[int, int], share: float) -> None:
    mask_HW = (np.random.default_rng(3).random(size) < share).astype(np.uint8)
    num_labels, labels_HW, stats = label_shapes(mask_HW)
    expected = cv2.connectedComponentsWithStats(mask_HW, connectivity=8)
    assert num_labels == expected[0]
    np.testing.assert_array_equal(labels_HW, np.asarray(expected[1]))
    np.testing.assert_array_equal(stats[1:], np.asarray(expected[2])[1:])
    assert not stats[0].any()


def test_a_dot_before_a_line_is_no_line() -> None:
    page = page_of((40, 40, ["A line of print that has an end"]), (40, 120, ["and a second line"]))
    expected = len(find_ink(page).lines)
    ImageDraw.Draw(page).ellipse((30, 66, 35, 71), fill="black")
    assert len(find_ink(page).lines) == expected
