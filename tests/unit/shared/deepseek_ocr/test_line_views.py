"""Canvases of lines as views: where they are, and that nothing of them is lost."""

from __future__ import annotations

import numpy as np
import pytest

from shared.deepseek_ocr.geometry import PADDING_GREY
from shared.deepseek_ocr.line_views import view_of
from shared.deepseek_ocr.nano_config import NANO_GEOMETRY
from shared.images.canvases import BAND_PX, SIDE_PX, Canvas

TOKEN_PX = NANO_GEOMETRY.patch_px * NANO_GEOMETRY.downsample


@pytest.mark.parametrize("height", [1, 31, 32, 33, 100, BAND_PX, BAND_PX + 1, 500, SIDE_PX])
def test_a_canvas_is_on_as_few_rows_of_tokens_as_it_can_be_near_the_middle(height):
    pixels = np.random.default_rng(height).integers(128, 256, (height, 300), np.uint8)
    view = view_of(Canvas((), (), pixels), NANO_GEOMETRY).global_view_HWC
    shown = np.flatnonzero((view != PADDING_GREY).any(axis=(1, 2)))
    assert shown[-1] // TOKEN_PX - shown[0] // TOKEN_PX + 1 == -(-height // TOKEN_PX)
    assert abs((shown[0] + shown[-1]) / 2 - SIDE_PX / 2) <= TOKEN_PX
    assert (view[shown[0] : shown[-1] + 1, 170:470] == pixels[:, :, None]).all()


def test_a_canvas_larger_than_a_view_is_refused():
    with pytest.raises(ValueError, match="is not one view"):
        view_of(Canvas((), (), np.zeros((SIDE_PX + 1, 10), np.uint8)), NANO_GEOMETRY)
