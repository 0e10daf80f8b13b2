"""A page as a picture to look at: reduced in size, as JPEG."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from shared.images.page_ink import Turn

MAX_SIDE_PX = 1600
"""The longer side of a preview."""
MAX_PREVIEW_BYTES = 3 * MAX_SIDE_PX**2 + 64 * 1024
"""As many as its pixels have, and room for the header; JPEG needs a fraction."""
JPEG_START = b"\xff\xd8\xff"
_QUALITY = 85


@dataclass(frozen=True, slots=True)
class PreviewTask:
    """One page of an open document to look at."""

    page: int
    """Its number, from 1."""
    turn_degrees: Turn | None = None
    """As in `DecodeTask`."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A page to look at."""

    page: int
    """Its number in the document, from 1."""
    num_pages: int
    """Pages of the document; 1 for an animation."""
    width_px: int
    """Of the upright page at full size, as is the height; boxes in answers are in these pixels."""
    height_px: int
    turned_degrees: Turn
    """By how much it was turned clockwise, after what the file says, to be upright."""
    jpeg: bytes | memoryview


def to_jpeg(image: Image.Image) -> bytes:
    """Reduce and compress a page.

    Args:
        image: Upright, RGB; changed in place where it is too large.

    Returns:
        A JPEG, no side longer than `MAX_SIDE_PX`.
    """
    image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.BOX, reducing_gap=None)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()
