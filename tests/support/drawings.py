"""What processes draw for tests of nano's training; apart from the tests, so that these processes import no torch."""

from __future__ import annotations

from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trainer.nano.training.pool import DrawFunction, Drawing

SIDE = 64


def draw_digits(tokens_of: dict[str, int], rng: np.random.Generator, tier: str, longest: int) -> Drawing:
    """One digit, large; in one view where the tier is of single views, else two tiles wide."""
    del longest
    digit = str(rng.integers(0, 2))
    width = SIDE if tier in ("line", "lines") else 2 * SIDE
    image = Image.new("L", (width, 40), 255)
    ImageDraw.Draw(image).text((10, 2), digit, font=ImageFont.load_default(30), fill=0)
    marks = np.array([[18, 18, int(digit)]])
    return Drawing(np.asarray(image), marks, [tokens_of[digit], 1], 2 * (width > SIDE), int(width > SIDE))


def make_draw(tokens_of: dict[str, int], seed: int) -> DrawFunction:
    return partial(draw_digits, tokens_of, np.random.default_rng(seed))


def blank(
    width: int = 40, height: int = 20, marks: list[tuple[int, int, int]] | None = None, grid: tuple[int, int] = (0, 0)
) -> Drawing:
    ink = np.full((height, width), 255, np.uint8)
    return Drawing(ink, np.array(marks or []).reshape(-1, 3), [5, 6, 1], *grid)


def draw_blank(seed: int) -> DrawFunction:
    del seed
    return lambda tier, longest: blank(width=10 + longest)
