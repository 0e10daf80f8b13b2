"""Pages of print whose every line and its place are known: what `outcomes.py` measures coverage, loops and turns on.

Drawn from a seed with Pillow and numpy; thresholds were set on pages of other seeds.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.outcome_pages import SENTENCES, WORDS, Drawer, Grey, to_image

Box = tuple[int, int, int, int]
PROSE = re.findall(
    r"\w+",
    "the harbour was quiet that morning and the boats lay side by side until noon prices rose again in june so the "
    "council met twice and decided to repair the bridge before winter although most of the money had already been "
    "spent on a new roof nobody had asked for the letter and it stayed in a drawer where spring found it we counted "
    "forty crates of apples eleven of pears and one that held nothing but straw each was weighed marked and signed for",
)
PLACES = ("Bergen", "Lyon", "Ghent", "Porto", "Leeds", "Graz", "Turku", "Brno", "Cork", "Malmö")
NAMES = ("A. Holm", "M. Dubois", "T. Novak", "E. Rossi", "J. Meyer", "K. Lind")


@dataclass(frozen=True, slots=True)
class PrintedLine:
    """A line, and where it is."""

    text: str
    box_px: Box
    block: int
    """Number of its column, paragraph or table."""


@dataclass(slots=True)
class PrintedPage:
    """A page and all that is printed on it, in reading order."""

    kind: str
    image: Image.Image
    lines: list[PrintedLine]

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(line.text for line in self.lines)


@dataclass
class Sheet:
    """A page while it is being printed."""

    drawer: Drawer
    width: int
    height: int
    size_px: int
    lines: list[PrintedLine] = field(default_factory=list)
    block: int = 0

    def __post_init__(self) -> None:
        self.ink = Image.new("L", (self.width, self.height))
        self._draw = ImageDraw.Draw(self.ink)
        self.font: ImageFont.FreeTypeFont = self.drawer.font(self.size_px)

    @property
    def step(self) -> int:
        """Distance of two lines, px."""
        return round(self.size_px * 1.45)

    def write(self, text: str, x: int, y: int, font: ImageFont.FreeTypeFont | None = None) -> None:
        """Print a line with its upper left corner at a place."""
        font = font or self.font
        self._draw.text((x, y), text, font=font, fill=255)
        left, top, right, bottom = font.getbbox(text)
        box = (round(x + left), round(y + top), round(x + right), round(y + bottom))
        self.lines.append(PrintedLine(text, box, self.block))

    def paragraph(self, x: int, y: int, width: int, count: int) -> int:
        """Print lines of prose; returns where the next may begin."""
        chance = self.drawer.chance
        for _ in range(count):
            if y + self.step > self.height - 20:
                break
            words: list[str] = []
            while self.font.getlength(" ".join([*words, "average"])) < width and len(words) < 30:
                word = PROSE[int(chance.integers(len(PROSE)))]
                words.append(word.capitalize() if not words or chance.random() < 0.1 else word)
            self.write(" ".join(words) + str(chance.choice(["", "", ",", "."])), x, y)
            y += self.step
        self.block += 1
        return y

    def finish(self, kind: str) -> PrintedPage:
        """The page, on paper or clean."""
        chance = self.drawer.chance
        page: Grey = np.full((self.height, self.width), 255, np.float32)
        if chance.random() < 0.6:
            page = self.drawer.paper(self.width, self.height)
        blurred = self.ink.filter(ImageFilter.GaussianBlur(float(chance.uniform(0, 0.7))))
        page -= np.asarray(blurred, np.float32) / 255 * chance.uniform(130, 210)
        return PrintedPage(kind, to_image(page), self.lines)


Draw = Callable[[Drawer], PrintedPage]


def _sheet(drawer: Drawer, sizes: tuple[int, int] = (17, 27)) -> Sheet:
    width, height = ((900, 1200), (1000, 1300), (1240, 1000), (827, 1169))[drawer.chance.integers(4)]
    return Sheet(drawer, width, height, int(drawer.chance.integers(*sizes)))


def _prose(drawer: Drawer) -> PrintedPage:
    sheet, chance = _sheet(drawer), drawer.chance
    y = 50
    for _ in range(int(chance.integers(2, 5))):
        y = sheet.paragraph(60, y, sheet.width - 130, int(chance.integers(3, 8))) + sheet.step
    return sheet.finish("prose")


def _columns(drawer: Drawer) -> PrintedPage:
    sheet, chance = _sheet(drawer), drawer.chance
    count = int(chance.integers(2, 4)) if sheet.width > 950 else 2
    gutter = int(chance.integers(36, 60))
    width = (sheet.width - 100 - gutter * (count - 1)) // count
    lines = int(chance.integers(8, 24))
    for column in range(count):
        sheet.paragraph(50 + column * (width + gutter), 60, width, lines)
    return sheet.finish("columns")


def _letter(drawer: Drawer) -> PrintedPage:
    """Sender and recipient side by side, prose, and small print at the foot."""
    sheet, chance = _sheet(drawer), drawer.chance
    for x in (60, sheet.width // 2 + 60):
        y = 50
        for text in (str(chance.choice(NAMES)), f"{chance.integers(1, 90)} Mill Lane", str(chance.choice(PLACES))):
            sheet.write(text, x, y)
            y += sheet.step
        sheet.block += 1
    sheet.paragraph(60, 50 + 5 * sheet.step, sheet.width - 130, int(chance.integers(5, 14)))
    sheet.font = sheet.font.font_variant(size=max(13, round(sheet.size_px * 0.7)))
    sheet.write("Registered in Bergen, number 4711, account 12 3456 789", 60, sheet.height - 60)
    sheet.block += 1
    return sheet.finish("letter")


def _table(drawer: Drawer) -> PrintedPage:
    sheet, chance = _sheet(drawer), drawer.chance
    sheet.write(str(chance.choice(SENTENCES)), 60, 40)
    sheet.block += 1
    columns = int(chance.integers(3, 6))
    pitch = (sheet.width - 320) // columns
    for row in range(int(chance.integers(6, 18))):
        y = 110 + row * round(sheet.step * 1.2)
        cells = [f"{chance.choice(WORDS)} {row + 1}"]
        cells += [f"{chance.uniform(0, 2000):.2f}" for _ in range(columns)]
        for column, cell in enumerate(cells):
            sheet.write(cell, 60 if column == 0 else 250 + (column - 1) * pitch, y)
    sheet.block += 1
    return sheet.finish("table")


FULL_KINDS: dict[str, Draw] = {"prose": _prose, "columns": _columns, "letter": _letter, "table": _table}
"""For coverage."""


def _rows(drawer: Drawer) -> PrintedPage:
    """A register in which every row says the same, with a title and a total."""
    sheet, chance = _sheet(drawer), drawer.chance
    row = (
        f"{chance.choice(['no defect found', 'nothing to report', 'not applicable', 'in good order'])}, "
        f"{chance.choice(['checked by', 'signed', 'seen by'])} {chance.choice(NAMES)}"
    )
    sheet.write(f"Register of {chance.choice(PLACES)}, hall {chance.integers(1, 40)}", 40, 30)
    count = int(chance.integers(6, (sheet.height - 160) // sheet.step))
    for number in range(count):
        sheet.write(row, 40, 90 + number * sheet.step)
    sheet.write(
        f"TOTAL {chance.integers(100, 9999)} euros, due on {chance.integers(1, 28)} May", 40, 110 + count * sheet.step
    )
    return sheet.finish("equal rows")


def _zeros(drawer: Drawer) -> PrintedPage:
    """A ledger of cells that say the same."""
    sheet, chance = _sheet(drawer), drawer.chance
    cell = str(chance.choice(["0.00", "0", "n/a", "none", "-.--"]))
    columns = int(chance.integers(4, 9))
    pitch = (sheet.width - 80) // columns
    count = int(chance.integers(6, 20))
    for number in range(count):
        for column in range(columns):
            sheet.write(cell, 40 + column * pitch, 40 + number * sheet.step)
    sheet.write(f"Signed in {chance.choice(PLACES)} by {chance.choice(NAMES)}", 40, 70 + count * sheet.step)
    return sheet.finish("equal cells")


def _form(drawer: Drawer) -> PrintedPage:
    """Questions with the same answers."""
    sheet, chance = _sheet(drawer), drawer.chance
    sheet.write(f"Form {chance.integers(10, 99)}, {chance.choice(PLACES)}", 40, 30)
    count = int(chance.integers(8, (sheet.height - 160) // sheet.step))
    for number in range(count):
        sheet.write("Yes [ ]  No [ ]  not applicable [x]", 40, 90 + number * sheet.step)
    sheet.write(f"Name {chance.choice(NAMES)}", 40, 110 + count * sheet.step)
    return sheet.finish("form")


def _numbers(drawer: Drawer) -> PrintedPage:
    """From 1 on, as many as there is room for."""
    sheet = _sheet(drawer, (16, 20))
    columns = sheet.width // 70
    for number in range(min(365, columns * ((sheet.height - 80) // sheet.step))):
        sheet.write(str(number + 1), 40 + number % columns * 66, 40 + number // columns * sheet.step)
    return sheet.finish("numbers")


def _leaders(drawer: Drawer) -> PrintedPage:
    """A table of contents."""
    sheet, chance = _sheet(drawer), drawer.chance
    sheet.write("Contents", 40, 30)
    for number in range(int(chance.integers(8, (sheet.height - 120) // sheet.step))):
        head, page = f"{number + 1} {chance.choice(WORDS)} ", str(number * 7 + 3)
        dots = int((sheet.width - 140 - sheet.font.getlength(head)) / sheet.font.getlength("."))
        sheet.write(head + "." * dots + " " + page, 40, 90 + number * sheet.step)
    return sheet.finish("leaders")


def _boilerplate(drawer: Drawer) -> PrintedPage:
    """The same clause of two lines after every heading."""
    sheet, chance = _sheet(drawer, (16, 22)), drawer.chance
    first, second = (str(each) for each in chance.choice(SENTENCES, 2, replace=False))
    y = 40
    while y + 3 * sheet.step < sheet.height - 60:
        sheet.write(first, 40, y)
        sheet.write(second, 40, y + sheet.step)
        y += round(2.6 * sheet.step)
    sheet.write(f"Signed in {chance.choice(PLACES)}", 40, y)
    return sheet.finish("boilerplate")


REPEATING_KINDS: dict[str, Draw] = {
    "equal rows": _rows, "equal cells": _zeros, "form": _form, "numbers": _numbers, "leaders": _leaders,
    "boilerplate": _boilerplate,
}  # fmt: skip


def draw(drawer: Drawer, kinds: dict[str, Draw], of_each: int) -> Iterator[PrintedPage]:
    """So many pages of each kind, kinds by turns."""
    for _ in range(of_each):
        for make in kinds.values():
            yield make(drawer)


def misread(text: str, share: float, chance: np.random.Generator) -> str:
    """A text with so many of its characters read wrongly: replaced, left out or doubled."""
    letters = np.array(list(string.ascii_lowercase + "   .,1l"))
    read: list[str] = []
    for character in text:
        if character == "\n" or chance.random() >= share:
            read.append(character)
        else:
            read.append(str(chance.choice(["", character * 2, str(chance.choice(letters))])))
    return "".join(read)


def share_of(lines: Sequence[PrintedLine], all_lines: Sequence[PrintedLine]) -> float:
    """Of the characters."""
    count = sum(len(line.text.replace(" ", "")) for line in lines)
    return count / sum(len(line.text.replace(" ", "")) for line in all_lines)
