"""What print a page shows, as `ink` finds it. Needs no OpenCV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Turn = Literal[0, 90, 180, 270]
"""Degrees clockwise."""
HIDING_NOISE = 12.0
"""Print that is paler than some five times this is lost in the noise, so the model has to look."""
MOST_MARKS = 64
MOST_LINES = 1500
"""A page with more lines or words of print is too dense to be held against a text."""
MOST_WORDS = 6000


@dataclass(frozen=True, slots=True)
class InkLine:
    """Print along one line, up to the next wide gap: a line of text, or a cell of a table."""

    box_px: tuple[int, int, int, int]
    """x1, y1, x2, y2 on the page."""
    words_px: tuple[int, ...]
    """Widths of its words, from left to right."""
    body_px: float
    """Median height of its characters."""


@dataclass(frozen=True, slots=True)
class PageInk:
    """What an image shows apart from its paper."""

    marks: int
    """Shapes of the size, sharpness and form of characters, or of whole words where characters touch; counted up to
    `MOST_MARKS`."""
    ink_ratio: float
    """Share of the page's area that differs from its paper, 0 to 1."""
    noise: float = 0.0
    """Standard deviation of what varies from pixel to pixel, of 255."""
    lines: tuple[InkLine, ...] = ()
    """Where print is, from top to bottom; empty where it was not looked for, or is more than `MOST_LINES`."""
    is_in_shadow: bool = False
    """Whether marks were found in a shadow alone, of which cloth and wood have some, too, or a shadow may hide them."""

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing that could be print; noise and shadows may hide some."""
        return self.marks == 0 and self.noise < HIDING_NOISE and not self.is_in_shadow
