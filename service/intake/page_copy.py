"""A page as it is kept for samples: upright, without the file's metadata, and with the digest of its pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from shared.images.digest import pixels_sha256

THUMBNAIL_SIDE_PX = 256
"""The longer side of a thumbnail: shows what kind of page it is, while print stays illegible."""
PNG_START = b"\x89PNG\r\n\x1a\n"
_QUALITY = 80
_COMPRESSION = 1
"""A higher level takes several times as long for a tenth of the bytes."""


@dataclass(frozen=True, slots=True)
class CopyTask:
    """One page of an open document to copy."""

    page: int
    """Its number, from 1."""
    is_thumbnail: bool
    """Return a small JPEG instead of a PNG with every pixel."""


@dataclass(frozen=True, slots=True)
class PageCopy:
    """A copied page."""

    page: int
    """Its number in the document, from 1."""
    width_px: int
    """Of the page at full size, as are the height and the digest."""
    height_px: int
    sha256: str
    data: bytes | memoryview
    """PNG, or JPEG of a thumbnail."""


def copy_page(image: Image.Image, task: CopyTask) -> PageCopy:
    """Copy a page.

    Args:
        image: Upright, RGB; changed in place where a thumbnail is wanted.
        task: What was asked for.

    Returns:
        The copy.
    """
    (width_px, height_px), sha256 = image.size, pixels_sha256(image)
    stream = io.BytesIO()
    if task.is_thumbnail:
        image.thumbnail((THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX), Image.Resampling.BOX, reducing_gap=None)
        image.save(stream, "JPEG", quality=_QUALITY)
    else:
        image.save(stream, "PNG", compress_level=_COMPRESSION)
    return PageCopy(task.page, width_px, height_px, sha256, stream.getvalue())
