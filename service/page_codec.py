"""A prepared page as a frame carries it: its plan in the header, its pixels in the tail.

The reader may be the service and the writer an image process that a hostile file has taken over, so a page is only made
of bytes that agree with its plan. Free of torch and pydantic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from service.frames import BrokenFrameError
from shared.deepseek_ocr.forms import (
    CHANNELS,
    PageImage,
    PageViews,
    PreparedPage,
    in_colours,
    without_copies,
)
from shared.deepseek_ocr.geometry import ViewPlan


@dataclass(frozen=True, slots=True)
class PageHeader:
    """What the header says of a page."""

    plan: ViewPlan
    image_px: tuple[int, int] | None
    """Height and width of an image; None: the tail is the views of the plan."""
    is_grey: bool = False
    """Whether the tail has each pixel's one brightness instead of its three colours."""

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the arrays in the tail; of any numbers."""
        plan, channels = self.plan, 1 if self.is_grey else CHANNELS
        if self.image_px:
            return [(*self.image_px, channels)]
        return [
            (plan.global_px, plan.global_px, channels),
            (plan.num_tiles, plan.tile_px, plan.tile_px, channels),
        ]

    @property
    def num_bytes(self) -> int:
        """Of the page's pixels."""
        return sum(map(math.prod, self.shapes))


def encode_page(page: PreparedPage) -> tuple[PageHeader, list[memoryview]]:
    """The header of a page, and its pixels where they are."""
    image_px = page.image_HWC.shape[:2] if isinstance(page, PageImage) else None
    once = [without_copies(pixels) for pixels in page.arrays]
    is_grey = all(pixels.shape[-1] == 1 for pixels in once)
    return PageHeader(page.plan, image_px, is_grey), [
        np.ascontiguousarray(pixels).reshape(-1).data for pixels in (once if is_grey else page.arrays)
    ]


def decode_page(header: PageHeader, tail: memoryview) -> PreparedPage:
    """The page that `encode_page` took apart.

    Args:
        header: Of any numbers.
        tail: All its pixels; the page's arrays share them.

    Returns:
        The page.

    Raises:
        BrokenFrameError: The numbers contradict each other or the number of bytes.
    """
    plan, image_px, shapes = header.plan, header.image_px, header.shapes
    sides = (plan.global_px, plan.tile_px, plan.num_vision_tokens, *(image_px or ()))
    if min(sides) < 1 or min(plan.tile_columns, plan.tile_rows) < 0 or header.num_bytes != len(tail):
        raise BrokenFrameError("a page's numbers do not agree with its pixels")
    pixels = np.split(np.frombuffer(tail, np.uint8), [math.prod(shapes[0])])
    arrays = [in_colours(part.reshape(shape)) for part, shape in zip(pixels, shapes, strict=False)]
    if image_px:
        return PageImage(plan, arrays[0])
    return PageViews(plan, arrays[0], arrays[1])
