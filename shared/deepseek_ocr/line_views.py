"""Canvases of lines as views that the encoder takes."""

from __future__ import annotations

import numpy as np

from shared.deepseek_ocr.forms import CHANNELS, PageViews
from shared.deepseek_ocr.geometry import PADDING_GREY, GeometryConfig, place_global, plan_views
from shared.images.canvases import Canvas


def view_of(canvas: Canvas, geometry: GeometryConfig) -> PageViews:
    """A canvas as a page of one view.

    Args:
        canvas: At most as large as a view.
        geometry: The checkpoint's.

    Returns:
        What `prepare_views` would make of it, without a codec.

    Raises:
        ValueError: The canvas needs more than one view or another size.
    """
    height, width = canvas.pixels_HW.shape
    plan = plan_views(width, height, geometry.default_mode, geometry)
    place = place_global(width, height, plan, geometry)
    if plan.num_tiles or (place.content_width_px, place.content_height_px) != (width, height):
        raise ValueError(f"a canvas of {width}x{height} px is not one view")
    view_HWC = np.full((place.canvas_height_px, place.canvas_width_px, CHANNELS), PADDING_GREY, np.uint8)
    top, left = place.offset_y_px, place.offset_x_px
    view_HWC[top : top + height, left : left + width] = canvas.pixels_HW[:, :, None]
    return PageViews(plan, view_HWC, np.empty((0, plan.tile_px, plan.tile_px, CHANNELS), np.uint8))
