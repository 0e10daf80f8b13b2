"""What print a page shows, as `ink` finds it. Needs no OpenCV."""

from __future__ import annotations

from dataclasses import dataclass

_HIDING_NOISE = 12.0
"""Print that is paler than some five times this is lost in the noise, so the model has to look."""
MOST_MARKS = 64


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

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing that could be print; noise may hide some."""
        return self.marks == 0 and self.noise < _HIDING_NOISE
