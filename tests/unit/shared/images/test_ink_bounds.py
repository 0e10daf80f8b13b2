"""Print is found within the page, however its sides are rounded where it is made smaller."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from shared.images.ink import find_ink

WORDS = ("against", "invasion", "they", "appear", "to", "have", "had", "good", "reason", "for", "this")


def strip(size: tuple[int, int], body_px: int, noise: float, seed: int) -> Image.Image:
    """Lines of words up to the right edge of an image, with grain."""
    rng = random.Random(seed)
    image = Image.new("L", size, 235)
    canvas = ImageDraw.Draw(image)
    font = ImageFont.load_default(body_px)
    for top in range(3, max(4, size[1] - body_px - 4), int(body_px * 1.6)):
        text = " ".join(rng.choice(WORDS) for _ in range(60))
        canvas.text((size[0] - 3, top), text, fill=30, font=font, anchor="ra")
    grain = np.random.default_rng(seed).normal(0, noise, (size[1], size[0]))
    return Image.fromarray((np.asarray(image, float) + grain).clip(0, 255).astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("noise", [0, 12, 24])
@pytest.mark.parametrize(
    ("size", "body_px"),
    [((422, 33), 17), ((503, 39), 20), ((885, 33), 17), ((39, 503), 11), ((7016, 2343), 60)],
)
def test_lines_are_within_the_page(size: tuple[int, int], body_px: int, noise: float) -> None:
    for seed in range(1 if max(size) > 1000 else 3):
        lines = find_ink(strip(size, body_px, noise, seed)).lines
        assert lines or noise == 24 or size[0] < size[1]
        for line in lines:
            x1, y1, x2, y2 = line.box_px
            assert 0 <= x1 < x2 <= size[0], line
            assert 0 <= y1 < y2 <= size[1], line


def test_grain_does_not_move_print() -> None:
    plain, grainy = (find_ink(strip((885, 33), 17, noise, 1)).lines for noise in (0, 24))
    right = [max(line.box_px[2] for line in lines) for lines in (plain, grainy)]
    assert abs(right[0] - right[1]) <= 4
