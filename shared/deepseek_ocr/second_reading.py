"""When an image that was read whole is read again, by its lines or at other sizes, and which text is taken.

The limits were chosen on drawn images that are not those of the published figures (benchmarks/LOG.md). Free of torch.
"""

from __future__ import annotations

from typing import Final

from shared.deepseek_ocr.geometry import ViewPlan

SURE: Final = 0.97
"""An image that was read whole with a lower confidence is read again, at other sizes until one has this confidence."""
FEWEST_LINES: Final = 4
"""Images with at least so many lines of print are then read by their lines, smaller ones with fewer at other sizes."""
SURER_BY: Final = 0.01
"""The text of lines is taken if its confidence is higher by at least this; that of another size if it is no lower."""
SIZES: Final = (1.25, 0.8, 1.4, 0.7, 1.1, 0.9)
"""Other sizes, relative to the image's own, in the order in which they are tried."""
MOST_SIZES: Final = 3
LEAST_TEXT: Final = 0.8
"""A reading at another size is only taken with at least this share of the characters before it. Of 1,200 drawn lines
none got worse by that (benchmarks/LOG.md)."""


def other_sizes(width_px: int, height_px: int, plan: ViewPlan) -> tuple[float, ...]:
    """At what sizes a small image is read again, one after another, until it is read surely.

    Args:
        width_px: Of the image.
        height_px: Of the image.
        plan: Its views.

    Returns:
        Relative to its own, so that it stays one view; empty for an image of several views, or shrunk to one.
    """
    longest = max(width_px, height_px)
    if plan.num_tiles or longest > plan.global_px:
        return ()
    return tuple(size for size in SIZES if size * longest <= plan.global_px)[:MOST_SIZES]


def prefers_second(first: float, second: float, *, is_by_lines: bool) -> bool:
    """Whether the second reading is taken, by the confidences of both."""
    return second >= first + (SURER_BY if is_by_lines else 0.0)


def has_lost_text(first: str, second: str) -> bool:
    """Whether a reading at another size leaves out what the one before has: fewer lines, or far fewer characters.

    Of two words a model may see one at that size, and be surer of it than of both.
    """
    if _num_lines(second) < _num_lines(first):
        return True
    return len("".join(second.split())) < LEAST_TEXT * len("".join(first.split()))


def _num_lines(text: str) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())
