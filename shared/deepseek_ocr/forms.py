"""The two forms in which an engine gets a page: its views, or the upright image that views are made from.

An image is smaller and cheaper to make, if the device can resize it; every engine takes views. Both are plain arrays
with their plan; those of a page without colours may have one in memory for all three (`in_colours`). Knows numpy and
the geometry, but neither Pillow nor torch.

Shape letters: H and W pixels, C colours, T tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.deepseek_ocr.geometry import GeometryConfig, ViewPlan, plan_views

CHANNELS = 3
MAX_IMAGE_PIXELS = 9_000_000
"""Limit for a page as an image: A4 at 300 dpi has 8.7 million pixels. In bytes that is twice the largest page as views
(nine tiles and a view of 1024 px). Larger pages are sent as views, to limit the memory of a page in processes and on
devices."""
MAX_IMAGE_SIDE_PX = 8192
"""Limits the array between the two passes of a resize: a long side times a short side of the result."""


@dataclass(frozen=True, slots=True)
class PageViews:
    """A page as views, the encoder's input.

    Shapes:
        global_view_HWC: uint8, RGB, `[plan.global_px, plan.global_px, 3]`
        tiles_THWC: uint8, RGB, `[plan.num_tiles, plan.tile_px, plan.tile_px, 3]`
    """

    plan: ViewPlan
    global_view_HWC: NDArray[np.uint8]
    tiles_THWC: NDArray[np.uint8]

    @property
    def arrays(self) -> tuple[NDArray[np.uint8], ...]:
        """All pixels."""
        return self.global_view_HWC, self.tiles_THWC

    def find_fault(self, geometry: GeometryConfig) -> str | None:
        """What is wrong with the arrays' sizes or types; None if nothing is."""
        del geometry  # any plan is acceptable if the arrays match it
        side, tile = self.plan.global_px, self.plan.tile_px
        if self.global_view_HWC.shape != (side, side, CHANNELS):
            return "the views do not have the sizes of their plan"
        if self.tiles_THWC.shape != (self.plan.num_tiles, tile, tile, CHANNELS):
            return "the views do not have the sizes of their plan"
        return _fault_of_type(*self.arrays)


@dataclass(frozen=True, slots=True)
class PageImage:
    """A page as an upright image, whose views the engine makes.

    Shapes:
        image_HWC: uint8, RGB, upright, of the planned size
    """

    plan: ViewPlan
    image_HWC: NDArray[np.uint8]

    @property
    def arrays(self) -> tuple[NDArray[np.uint8], ...]:
        """All pixels."""
        return (self.image_HWC,)

    def find_fault(self, geometry: GeometryConfig) -> str | None:
        """What is wrong with the image's size, type or plan; None if nothing is."""
        shape = self.image_HWC.shape
        if len(shape) != 3 or shape[2] != CHANNELS or not min(shape):
            return "the image is not [H, W, 3]"
        height_px, width_px, _ = shape
        if not may_be_image(width_px, height_px):
            return "the image is too large to come without its views"
        if self.plan.mode not in geometry.modes or self.plan != plan_views(
            width_px, height_px, self.plan.mode, geometry
        ):
            return "the plan is not that of the image's size"
        return _fault_of_type(*self.arrays)


PreparedPage = PageViews | PageImage


def in_colours(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels `[..., 1]` or `[..., 3]` as `[..., 3]`; a view that cannot be written where there was one colour."""
    return pixels if pixels.shape[-1] == CHANNELS else np.broadcast_to(pixels, (*pixels.shape[:-1], CHANNELS))


def without_copies(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Undo `in_colours`: `[..., 1]` where it repeated one colour."""
    return pixels if pixels.strides[-1] else pixels[..., :1]


def may_be_image(width_px: int, height_px: int) -> bool:
    """Whether a page of this size may be sent as an image."""
    return width_px * height_px <= MAX_IMAGE_PIXELS and max(width_px, height_px) <= MAX_IMAGE_SIDE_PX


def _fault_of_type(*arrays: NDArray[np.uint8]) -> str | None:
    return None if all(array.dtype == np.uint8 for array in arrays) else "pixels are not uint8"
