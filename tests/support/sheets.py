"""Drawn pages that know where their lines are, and a perfect reader of their strips."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from shared.images.page_lines import lines_of_page
from shared.images.strip_text import page_text

Box = tuple[int, int, int, int]
PROSE = (
    "The queue belongs to one task and",
    "drops what has been cancelled before",
    "it forms a batch of those that are left",
)


class Sheet:
    """A page that knows where its lines are."""

    def __init__(self, width: int = 1200, height: int = 900, paper: int = 255) -> None:
        self.image = Image.new("RGB", (width, height), (paper,) * 3)
        self.draw = ImageDraw.Draw(self.image)
        self.lines: list[tuple[str, Box]] = []

    def write(self, x: int, y: int, text: str, size: int = 22, fill: int = 0) -> None:
        font = ImageFont.load_default(size)
        self.draw.text((x, y), text, fill=(fill,) * 3, font=font)
        self.lines.append((text, tuple(map(round, self.draw.textbbox((x, y), text, font=font)))))


def read(image: Image.Image, lines: list[tuple[str, Box]]) -> str:
    """The page's text as a perfect reader would give it: each strip reads as the words in its box."""
    strips = lines_of_page(image)

    def text_of(box: Box) -> str:
        words = []
        for text, place in lines:
            parts = text.split()
            step = (place[2] - place[0]) / max(len(text), 1)
            at = float(place[0])
            for word in parts:
                middle = at + step * len(word) / 2, (place[1] + place[3]) / 2
                if box[0] <= middle[0] <= box[2] and box[1] - 3 <= middle[1] <= box[3] + 3:
                    words.append(word)
                at += step * (len(word) + 1)
        return " ".join(words)

    return page_text(strips, [text_of(strip.box_px) for strip in strips]).text
