"""Crops that lie askew are turned level; level ones stay as they are."""

from __future__ import annotations

import pytest
from PIL import Image

from shared.images.ink import relief_of
from shared.images.levelling import levelled
from shared.images.segments import find_segments
from tests.support.printed import LEFT, page_of


def crop(tilt: float) -> Image.Image:
    return page_of((40, 30, LEFT), size=(560, 320)).rotate(
        tilt, Image.Resampling.BICUBIC, expand=True, fillcolor="white"
    )


@pytest.mark.parametrize("tilt", [2, -4, 6, -8])
def test_askew_crop_becomes_level(tilt: float) -> None:
    page = crop(tilt)
    level = levelled(page, relief_of(page))
    assert level.size == page.size
    segments = find_segments(level)
    assert segments.turn is None or abs(segments.turn[0, 1]) < 0.01


@pytest.mark.parametrize("tilt", [0, 0.8])
def test_level_crop_is_not_touched(tilt: float) -> None:
    page = crop(tilt)
    assert levelled(page, relief_of(page)) is page


def test_a_word_does_not_tell() -> None:
    page = page_of((40, 30, ["harbour"]), size=(300, 120)).rotate(5, expand=True, fillcolor="white")
    assert levelled(page, relief_of(page)) is page
