"""A page's lines as a reader of lines gets them: finding, ordering and cutting in one call. Knows OpenCV."""

from __future__ import annotations

from PIL import Image

from shared.images.canvases import EM_PX, MARGIN_PX, MOST_STRIP_PARTS, MOST_STRIPS, SIDE_PX, Strip
from shared.images.reading_order import reading_order
from shared.images.segments import find_segments
from shared.images.strip_cutting import cut_strips

_MOST_SEGMENTS = 1500
"""More are a texture, or print that is too small; the front page of a newspaper has 700."""


def lines_of_page(page: Image.Image, em_px: float = EM_PX) -> tuple[Strip, ...]:
    """Cut a page into strips of print.

    Args:
        page: Upright, mode RGB or L.
        em_px: Size of print on a strip. Rows are the same at any size; of how many strips they are is not.

    Returns:
        Strips in reading order; none where no lines are found, or more than a page can have.
    """
    level = find_segments(page)
    if len(level.segments) > _MOST_SEGMENTS:
        return ()
    strips = cut_strips(level, reading_order(level.segments, level.rules), em_px)
    # A strip higher than a canvas is a picture.
    strips = [strip for strip in strips if strip.pixels_HW.shape[0] <= SIDE_PX - 2 * MARGIN_PX]
    if len(strips) > MOST_STRIPS or sum(len(strip.parts_px) for strip in strips) > MOST_STRIP_PARTS:
        return ()
    return tuple(strips)
