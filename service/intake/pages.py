"""What the service learns of a document and its pages. Imports no codec, so that those stay in image processes."""

from __future__ import annotations

from dataclasses import dataclass

from shared.deepseek_ocr.forms import PreparedPage
from shared.images.canvases import Strip
from shared.images.formats import FileFormat
from shared.images.page_ink import PageInk, Turn


@dataclass(frozen=True, slots=True)
class Contents:
    """What an opened file has to read."""

    file_format: FileFormat
    pages: tuple[int, ...]
    """Numbers of the pages to read, from 1, rising."""


@dataclass(frozen=True, slots=True)
class DecodedPage:
    """A decoded page, ready for the engine."""

    file_format: FileFormat
    page: int
    """Its number in the document, from 1."""
    width_px: int
    height_px: int
    ink: PageInk
    is_damaged: bool
    """Whether a part of it is missing, since an image on it cannot be decoded."""
    prepared: PreparedPage
    turned_degrees: Turn = 0
    """By how much it was turned clockwise."""
    strips: tuple[Strip, ...] = ()
    """Its lines, to be read instead of the page; `prepared` is their first canvas then."""
