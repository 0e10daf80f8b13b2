"""Which sizes a small image is read at once more, and what such a reading must not lose."""

from __future__ import annotations

import pytest

from shared.deepseek_ocr.geometry import plan_views
from shared.deepseek_ocr.nano_config import NANO_GEOMETRY
from shared.deepseek_ocr.second_reading import has_lost_text, other_sizes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((300, 40), (1.25, 0.8, 1.4)),
        ((500, 40), (1.25, 0.8, 0.7)),
        ((40, 580), (0.8, 0.7, 1.1)),
        ((640, 640), (0.8, 0.7, 0.9)),
        ((641, 40), ()),
    ],
)
def test_an_image_of_one_view_is_read_at_sizes_that_have_room_in_it(size, expected):
    width_px, height_px = size
    plan = plan_views(width_px, height_px, NANO_GEOMETRY.default_mode, NANO_GEOMETRY)
    assert other_sizes(width_px, height_px, plan) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("8448.79\n\nto", "to", True),
        ("at\n\nwhole\n\n1", "at\n\nwhole", True),
        ("four words of text", "four words of", True),
        ("four words of text", "fourwordsoftext", False),
        ("8448.79", "8446.79\nto", False),
        ("", "", False),
    ],
)
def test_fewer_lines_or_far_fewer_characters_are_lost_text(first, second, expected):
    assert has_lost_text(first, second) is expected
