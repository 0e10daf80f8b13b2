"""From an upright image and its plan to the encoder's input pixels.

Knows Pillow and numpy. Decoding, orientation and colour spaces belong to the caller; normalisation to
[-1, 1] happens on the device, in the model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.deepseek_ocr.forms import in_colours
from shared.deepseek_ocr.geometry import PADDING_GREY, GeometryConfig, Placement, ViewPlan, place_global, place_tiles


def prepare_views(
    image: Image.Image, plan: ViewPlan, config: GeometryConfig
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Render the views of a page.

    Args:
        image: The upright page, mode RGB or, a third of the work, L; of the planned size.
        plan: From `plan_views` for that size.
        config: The geometry that the plan was made with.

    Returns:
        The global view, `[global_px, global_px, 3]`, and the tiles in reading order,
        `[num_tiles, tile_px, tile_px, 3]`; both uint8 RGB, contiguous and writable where the page is RGB.

    Raises:
        ValueError: The image is neither.
    """
    if image.mode not in ("RGB", "L"):
        raise ValueError(f"views are made from RGB or grey images, not {image.mode}")
    global_view_HWC = render(image, place_global(image.width, image.height, plan, config))
    if not plan.num_tiles:
        no_tiles_THWC = np.empty((0, plan.tile_px, plan.tile_px, global_view_HWC.shape[2]), np.uint8)
        return in_colours(global_view_HWC), in_colours(no_tiles_THWC)
    grid_HWC = render(image, place_tiles(image.width, image.height, plan, config))
    return in_colours(global_view_HWC), in_colours(cut_tiles(grid_HWC, plan.tile_px))


def rescaled(image: Image.Image, scale: float) -> Image.Image:
    """The image at another size; at least one pixel wide and high."""
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def render(image: Image.Image, placement: Placement) -> NDArray[np.uint8]:
    """The padded canvas with the page on it, uint8 `[canvas_height_px, canvas_width_px, 3]`, or 1 of a grey page."""
    size = (placement.content_width_px, placement.content_height_px)
    content = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
    content_HWC = np.asarray(content).reshape(size[1], size[0], -1)
    canvas_size = placement.canvas_height_px, placement.canvas_width_px
    canvas_HWC = np.full((*canvas_size, content_HWC.shape[2]), PADDING_GREY, np.uint8)
    top, left = placement.offset_y_px, placement.offset_x_px
    canvas_HWC[top : top + size[1], left : left + size[0]] = content_HWC
    return canvas_HWC


def cut_tiles(grid_HWC: NDArray[np.uint8], tile_px: int) -> NDArray[np.uint8]:
    """Square tiles of a grid, row by row, uint8 `[num_tiles, tile_px, tile_px, colours]`."""
    rows, columns = grid_HWC.shape[0] // tile_px, grid_HWC.shape[1] // tile_px
    split = grid_HWC.reshape(rows, tile_px, columns, tile_px, -1).swapaxes(1, 2)
    return np.ascontiguousarray(split).reshape(rows * columns, tile_px, tile_px, -1)
