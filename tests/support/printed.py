"""Pages with print at known places, in Pillow's own face, so that they are the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

LEFT = (
    "The harbour was quiet that",
    "morning and the boats lay side",
    "by side. Nobody had asked for",
    "the letter, so it stayed in the",
    "drawer until spring came back.",
)
RIGHT = (
    "Prices rose again in June. The",
    "council met twice and decided",
    "to repair the bridge before the",
    "winter, although the money had",
    "already been spent on a roof.",
)
ROW = "no defect found, checked by A. Holm"
TITLE, TOTAL = "Register of inspections, hall 7", "TOTAL 4711 euros, due on 5 May"
SIZE_PX = 26


def page_of(
    *blocks: tuple[int, int, Sequence[str]], size: tuple[int, int] = (1000, 360), step: int = 54
) -> Image.Image:
    """A page with blocks of lines: x and y of the first, and the lines."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for x, y, lines in blocks:
        for number, line in enumerate(lines):
            draw.text((x, y + number * step), line, font=ImageFont.load_default(SIZE_PX), fill="black")
    return image


def two_columns() -> Image.Image:
    """Two columns side by side."""
    return page_of((40, 40, LEFT), (520, 40, RIGHT))


def register(rows: int) -> Image.Image:
    """A title, equal rows and a total."""
    return page_of((20, 14, [TITLE, *[ROW] * rows, TOTAL]), size=(1000, 120 + rows * 44), step=44)


def number_cells(text: str) -> Image.Image:
    """A form's numbers, a cell for each digit: lines of digits and spaces, at most twelve a line, two lines."""
    image = Image.new("RGB", (480, 160), "white")
    draw, face = ImageDraw.Draw(image), ImageFont.load_default(28)
    for row, line in enumerate(text.split("\n")):
        for place, digit in enumerate(line):
            left, top = 24 + 36 * place, 24 + 60 * row
            if digit != " ":
                draw.rectangle((left, top, left + 32, top + 44), outline="black", width=2)
                draw.text((left + 8, top + 4), digit, fill="black", font=face)
    return image
