"""The text of a document's pages with its places on them: what a searchable PDF is made from, as plain data."""

from __future__ import annotations

import json
from dataclasses import dataclass

from shared.images.page_ink import Turn


@dataclass(frozen=True, slots=True)
class TextLine:
    """One line; `box_px` is left, top, right, bottom on the upright page, which its characters fill."""

    text: str
    box_px: tuple[float, float, float, float]
    is_rtl: bool = False
    """Starts at the right edge of its box; the characters are in reading order all the same."""


@dataclass(frozen=True, slots=True)
class TextPage:
    """The lines of one page, upright."""

    page: int
    """Number in the document, from 1."""
    width_px: int
    height_px: int
    lines: tuple[TextLine, ...]
    turned_degrees: Turn = 0
    """By how much the uploaded page was turned clockwise to be upright."""


@dataclass(frozen=True, slots=True)
class TextTask:
    """A document's text, to be added to its pages."""

    pages: tuple[TextPage, ...]

    @property
    def num_shares(self) -> int:
        """Pages whose time the task may take: those that were read, and one for opening and writing the document."""
        return len(self.pages) + 1

    def to_wire(self) -> bytes:
        """The task as JSON."""
        pages = [
            [
                page.page,
                page.width_px,
                page.height_px,
                [[line.text, line.box_px, line.is_rtl] for line in page.lines],
                page.turned_degrees,
            ]
            for page in self.pages
        ]
        return json.dumps(pages).encode()

    @classmethod
    def from_wire(cls, payload: bytes) -> TextTask:
        """The task that `to_wire` wrote."""
        pages = tuple(
            TextPage(
                number,
                width_px,
                height_px,
                tuple(TextLine(text, tuple(box), is_rtl) for text, box, is_rtl in lines),
                turned_degrees,
            )
            for number, width_px, height_px, lines, turned_degrees in json.loads(payload)
        )
        return cls(pages)
