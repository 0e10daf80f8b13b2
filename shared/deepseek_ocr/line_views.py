"""Canvases of lines as views that the encoder takes, and which pages are read so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.deepseek_ocr.forms import CHANNELS, PageViews
from shared.deepseek_ocr.geometry import PADDING_GREY, GeometryConfig, ViewPlan, place_global, plan_views
from shared.images.canvases import Canvas, Strip, pack

CROP_VIEWS, CROP_CANVASES, CROP_BLOCKS = 5, 2, 2
"""Of a crop at most: 15 crops of scans have up to 5 views, 2 canvases and 2 blocks, 22 whole pages 7 views and more.
Receipts of 25 are as small, but all but one have 3 blocks and more."""


def is_crop(plan: ViewPlan, strips: Sequence[Strip]) -> bool:
    """Tell a part of a page, which is read whole although it has lines.

    nano reads 0.2 % of the characters of such crops wrongly as a whole and 1.6 % by their lines. On a receipt that is
    read whole it loses its place.

    Args:
        plan: Views of the whole.
        strips: Its lines.

    Returns:
        False for a page.
    """
    num_blocks = len({strip.block for strip in strips})
    return plan.num_views <= CROP_VIEWS and num_blocks <= CROP_BLOCKS and len(pack(strips)) <= CROP_CANVASES


def view_of(canvas: Canvas, geometry: GeometryConfig) -> PageViews:
    """A canvas as a page of one view.

    Args:
        canvas: At most as large as a view.
        geometry: The checkpoint's.

    Returns:
        The canvas in the middle of a view, at most a row of tokens higher.

    Raises:
        ValueError: The canvas needs more than one view or another size.
    """
    height, width = canvas.pixels_HW.shape
    plan = plan_views(width, height, geometry.default_mode, geometry)
    place = place_global(width, height, plan, geometry)
    if plan.num_tiles or (place.content_width_px, place.content_height_px) != (width, height):
        raise ValueError(f"a canvas of {width}x{height} px is not one view")
    view_HWC = np.full((place.canvas_height_px, place.canvas_width_px, CHANNELS), PADDING_GREY, np.uint8)
    # Where a row of tokens begins, so that the canvas is on as few of them as it can be.
    token_px = geometry.patch_px * geometry.downsample
    top, left = place.offset_y_px // token_px * token_px, place.offset_x_px
    view_HWC[top : top + height, left : left + width] = canvas.pixels_HW[:, :, None]
    return PageViews(plan, view_HWC, np.empty((0, plan.tile_px, plan.tile_px, CHANNELS), np.uint8))
