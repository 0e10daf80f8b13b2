"""Pages with nothing to read, and pages with very little: what `outcomes.py` measures on.

Drawn from a seed with Pillow and numpy; fonts and photographs are the machine's own. Nothing here draws nano's training
pages, and thresholds were set on pages of other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Grey = NDArray[np.float32]
"""A page, `[height, width]`, 0 is black and 255 white."""

SIZES_PX = ((827, 1169), (1240, 1754), (1275, 1650), (1754, 1240), (640, 640), (600, 900))
WORDS = [
    "Paid",
    "Received",
    "Draft",
    "Copy",
    "Void",
    "Total",
    "Page",
    "Annex",
    "Appendix",
    "Confidential",
    "Continued",
    "Notes",
    "Index",
    "Contents",
    "Approved",
    "Original",
    "Cancelled",
    "Chapter",
    "Signed",
    "Sample",
    "Final",
    "Urgent",
    "Invoice",
    "Summary",
    "Exhibit",
    "Schedule",
]
SENTENCES = (
    "The goods remain our property until they have been paid for.",
    "Please return the signed copy within fourteen days.",
    "All prices are net and exclude value added tax.",
    "This page is intentionally left blank.",
    "Minutes of the meeting were read and approved.",
    "See the reverse side for terms and conditions.",
)


@dataclass(frozen=True, slots=True)
class OutcomePage:
    """A page whose outcome is known."""

    kind: str
    image: Image.Image
    text: str
    """What a person reads on it; empty where there is nothing."""


class Drawer:
    """Draws pages of every kind.

    Args:
        seed: The same seed draws the same pages on the same machine.
        fonts: Files of Latin faces; without, Pillow's own.
        photos: Files of photographs without text.
    """

    def __init__(self, seed: int, fonts: Sequence[Path], photos: Sequence[Path]) -> None:
        self.chance = np.random.default_rng(seed)
        self.fonts = fonts
        self.photos = photos

    def pages(self, of_each: int) -> Iterator[OutcomePage]:
        """So many pages of each kind, kinds by turns."""
        yield from self._drawn({**BLANK_KINDS, **(PHOTO_KINDS if self.photos else {}), **TEXT_KINDS}, of_each)

    def strips(self, of_each: int) -> Iterator[OutcomePage]:
        """The same of strips as low as a line."""
        photo = {"photo strip": _photo_strip} if self.photos else {}
        yield from self._drawn({**BARE_STRIP_KINDS, **photo, "line in shadow": _line_in_shadow}, of_each)

    def _drawn(self, kinds: dict[str, Draw], of_each: int) -> Iterator[OutcomePage]:
        for _ in range(of_each):
            for kind, draw in kinds.items():
                page, text = draw(self)
                yield OutcomePage(kind, to_image(page), text)

    def size(self) -> tuple[int, int]:
        """Width and height of a page, px."""
        width, height = SIZES_PX[self.chance.integers(len(SIZES_PX))]
        return int(width * self.chance.uniform(0.9, 1)), int(height * self.chance.uniform(0.9, 1))

    def strip_size(self) -> tuple[int, int]:
        """Width and height of a line that was cut out, px."""
        return int(self.chance.integers(60, 620)), int(self.chance.integers(18, 72))

    def font(self, size_px: int) -> ImageFont.FreeTypeFont:
        """A face, drawn at random."""
        if not self.fonts:
            return ImageFont.load_default(size_px)  # type: ignore[return-value]
        return ImageFont.truetype(str(self.fonts[int(self.chance.integers(len(self.fonts)))]), size_px)

    def paper(self, width: int | None = None, height: int | None = None) -> Grey:
        """Scanned paper: tone, uneven light, grain and fibres."""
        if width is None or height is None:
            width, height = self.size()
        chance = self.chance
        page = np.full((height, width), chance.uniform(205, 252), np.float32)
        page += self.clouds(width, height, cells=int(chance.integers(2, 6))) * chance.uniform(0, 18)
        page += self.clouds(width, height, cells=int(chance.integers(60, 200))) * chance.uniform(0, 5)
        return page + chance.normal(0, chance.uniform(0.3, 5), page.shape).astype(np.float32)

    def clouds(self, width: int, height: int, cells: int) -> Grey:
        """Smooth variation from -1 to 1."""
        values = self.chance.uniform(-1, 1, (cells, max(2, round(cells * width / height)))).astype(np.float32)
        return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC))

    def write(
        self, page: Grey, text: str, size_px: int, at: tuple[float, float], ink: float, blur: float = 0.6
    ) -> None:
        """Print a text, its upper left corner at shares of the free space; `ink` is how much it darkens."""
        font = self.font(size_px)
        left, top, right, bottom = font.getbbox(text)
        height, width = page.shape
        while right - left > width * 0.94 and size_px > 9:
            size_px = round(size_px * 0.9)
            font = font.font_variant(size=size_px)
            left, top, right, bottom = font.getbbox(text)
        sheet = Image.new("L", (width, height))
        x = (width - (right - left)) * at[0]
        y = (height - (bottom - top)) * at[1]
        ImageDraw.Draw(sheet).text((x - left, y - top), text, font=font, fill=255)
        print_HW = np.asarray(sheet.filter(ImageFilter.GaussianBlur(blur)), np.float32) / 255
        page -= print_HW * ink

    def place(self) -> tuple[float, float]:
        """Somewhere on the page, off its edges."""
        return float(self.chance.uniform(0.04, 0.96)), float(self.chance.uniform(0.04, 0.96))

    def paragraph(self, page: Grey, ink: float, blur: float = 0.6) -> str:
        """Some lines of print."""
        size = int(self.chance.integers(15, 26))
        lines = [str(self.chance.choice(SENTENCES)) for _ in range(int(self.chance.integers(3, 16)))]
        top = float(self.chance.uniform(0.05, 0.3))
        for number, line in enumerate(lines):
            y = min(top + number * size * 1.5 / page.shape[0], 0.97)
            self.write(page, line, size, (0.2, y), ink, blur)
        return "\n".join(lines)


Draw = Callable[[Drawer], tuple[Grey, str]]


def to_image(page: Grey) -> Image.Image:
    """A page as it is uploaded."""
    return Image.fromarray(np.clip(page, 0, 255).astype(np.uint8)).convert("RGB")


def _flat(drawer: Drawer) -> tuple[Grey, str]:
    width, height = drawer.size()
    tone = drawer.chance.choice([255, 0, drawer.chance.uniform(0, 255)])
    return np.full((height, width), tone, np.float32), ""


def _paper(drawer: Drawer) -> tuple[Grey, str]:
    return drawer.paper(), ""


def _show_through(drawer: Drawer) -> tuple[Grey, str]:
    """Print on the other side of the sheet: mirrored, blurred, pale."""
    page = drawer.paper()
    back = np.full(page.shape, 255, np.float32)
    drawer.paragraph(back, 200)
    drawer.paragraph(back, 200)
    mirrored = np.clip(255 - back[:, ::-1], 0, 255).astype(np.uint8)
    shade = Image.fromarray(mirrored).filter(ImageFilter.GaussianBlur(drawer.chance.uniform(1.8, 4)))
    return page - np.asarray(shade, np.float32) * drawer.chance.uniform(0.05, 0.16), ""


def _edges(drawer: Drawer) -> tuple[Grey, str]:
    """A scanner's or copier's dark border, straight or slanted."""
    page = drawer.paper()
    height, width = page.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    for _ in range(int(drawer.chance.integers(1, 4))):
        angle = drawer.chance.choice([0, math.pi / 2, math.pi, -math.pi / 2]) + drawer.chance.uniform(-0.03, 0.03)
        along = (columns - width / 2) * math.cos(angle) + (rows - height / 2) * math.sin(angle)
        reach = abs(width / 2 * math.cos(angle)) + abs(height / 2 * math.sin(angle))
        edge = reach - drawer.chance.uniform(4, 60)
        softness = drawer.chance.uniform(0.5, 25)
        page -= np.clip((along - edge) / softness, 0, 1) * drawer.chance.uniform(60, 240)
    return page, ""


def _dust(drawer: Drawer) -> tuple[Grey, str]:
    """Specks and hairs."""
    page = drawer.paper()
    height, width = page.shape
    sheet = Image.new("L", (width, height))
    draw = ImageDraw.Draw(sheet)
    for _ in range(int(drawer.chance.integers(3, 120))):
        x, y, size = drawer.chance.uniform(0, width), drawer.chance.uniform(0, height), drawer.chance.exponential(0.9)
        draw.ellipse(
            (x, y, x + size, y + size * drawer.chance.uniform(0.6, 1.6)), fill=int(drawer.chance.uniform(60, 255))
        )
    for _ in range(int(drawer.chance.integers(0, 3))):
        points = [(drawer.chance.uniform(0, width), drawer.chance.uniform(0, height))]
        heading = drawer.chance.uniform(0, 6.3)
        for _ in range(int(drawer.chance.integers(8, 40))):
            heading += drawer.chance.normal(0, 0.25)
            points.append((points[-1][0] + 4 * math.cos(heading), points[-1][1] + 4 * math.sin(heading)))
        draw.line(points, fill=int(drawer.chance.uniform(80, 200)), width=1)
    page -= np.asarray(sheet.filter(ImageFilter.GaussianBlur(0.5)), np.float32) * 0.7
    return page, ""


def _holes(drawer: Drawer) -> tuple[Grey, str]:
    """Punch holes over a dark lid, and staples' marks."""
    page = drawer.paper()
    height, width = page.shape
    sheet = Image.new("L", (width, height))
    draw = ImageDraw.Draw(sheet)
    radius, x = width * drawer.chance.uniform(0.008, 0.014), width * drawer.chance.uniform(0.02, 0.05)
    for y in ((0.5,), (0.37, 0.63), (0.12, 0.37, 0.63, 0.88))[drawer.chance.integers(3)]:
        draw.ellipse((x - radius, y * height - radius, x + radius, y * height + radius), fill=255)
    page -= np.asarray(sheet.filter(ImageFilter.GaussianBlur(0.8)), np.float32) * drawer.chance.uniform(0.3, 0.9)
    return page, ""


def _folds(drawer: Drawer) -> tuple[Grey, str]:
    """Folds, creases and a torn corner over a dark lid."""
    page = drawer.paper()
    height, width = page.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    for _ in range(int(drawer.chance.integers(1, 4))):
        angle = drawer.chance.uniform(0, math.pi)
        along = columns * math.cos(angle) + rows * math.sin(angle)
        at = drawer.chance.uniform(0.2, 0.8) * (width * abs(math.cos(angle)) + height * math.sin(angle))
        page -= np.exp(-(((along - at) / drawer.chance.uniform(2, 8)) ** 2)) * drawer.chance.uniform(5, 45)
    cut = drawer.chance.uniform(0.03, 0.15) * width
    jagged = np.interp(
        np.arange(height), np.arange(0, height + 12, 12), drawer.chance.normal(0, 3, len(range(0, height + 12, 12)))
    )
    page[columns + rows < cut + jagged[:, None]] = drawer.chance.uniform(0, 90)
    return page, ""


def _rules(drawer: Drawer) -> tuple[Grey, str]:
    """Ruled or squared paper, or an empty frame."""
    page = drawer.paper()
    height, width = page.shape
    ink, step = drawer.chance.uniform(25, 170), int(drawer.chance.integers(20, 60))
    kind = drawer.chance.integers(3)
    if kind < 2:
        for y in range(step * 2, height - step, step):
            page[y : y + int(drawer.chance.integers(1, 3)), :] -= ink
    if kind == 1:
        for x in range(step, width - step, step):
            page[:, x : x + 1] -= ink
    if kind == 2:
        left, top = int(width * drawer.chance.uniform(0.04, 0.2)), int(height * drawer.chance.uniform(0.04, 0.2))
        page[top : top + 3, left : width - left] -= ink
        page[height - top : height - top + 3, left : width - left] -= ink
        page[top : height - top, left : left + 3] -= ink
        page[top : height - top, width - left : width - left + 3] -= ink
    return page, ""


def _stains(drawer: Drawer) -> tuple[Grey, str]:
    """A thumb at the edge, a cup's ring, water."""
    page = drawer.paper()
    height, width = page.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    for _ in range(int(drawer.chance.integers(1, 4))):
        x, y = drawer.chance.uniform(0, width), drawer.chance.uniform(0, height)
        distance = np.hypot(columns - x, rows - y)
        radius = drawer.chance.uniform(30, 130)
        if drawer.chance.random() < 0.5:
            page -= np.exp(-(((distance - radius) / drawer.chance.uniform(3, 9)) ** 2)) * drawer.chance.uniform(8, 60)
        else:
            page -= np.clip((radius - distance) / drawer.chance.uniform(4, 40), 0, 1) * drawer.chance.uniform(8, 80)
    return page, ""


def _noise(drawer: Drawer) -> tuple[Grey, str]:
    """A sensor's noise at any strength, or snow."""
    width, height = drawer.size()
    if drawer.chance.random() < 0.3:
        return drawer.chance.integers(0, 256, (height, width)).astype(np.float32), ""
    tone, spread = drawer.chance.uniform(30, 230), drawer.chance.uniform(8, 90)
    return drawer.chance.normal(tone, spread, (height, width)).astype(np.float32), ""


def _speckle(drawer: Drawer) -> tuple[Grey, str]:
    """Salt and pepper, as a bad bilevel scan has it."""
    page = np.full(drawer.size()[::-1], 255, np.float32)
    page[drawer.chance.random(page.shape) < drawer.chance.uniform(0.0005, 0.02)] = 0
    return page, ""


def _gradient(drawer: Drawer) -> tuple[Grey, str]:
    width, height = drawer.size()
    return 128 + drawer.clouds(width, height, int(drawer.chance.integers(2, 12))) * 127, ""


def _tiny(drawer: Drawer) -> tuple[Grey, str]:
    """From a single pixel to an icon's size, of one tone or noise."""
    side = int(drawer.chance.choice([1, 2, 5, 16, 48]))
    return np.full((side, side), drawer.chance.uniform(0, 255), np.float32), ""


def _photo(drawer: Drawer) -> tuple[Grey, str]:
    """A part of a photograph without text."""
    with Image.open(drawer.photos[int(drawer.chance.integers(len(drawer.photos)))]) as file:
        photo = file.convert("L")
    photo.thumbnail((1600, 1600))
    width, height = (max(64, round(side * drawer.chance.uniform(0.5, 1))) for side in photo.size)
    x, y = (
        int(drawer.chance.uniform(0, max(1, whole - part)))
        for whole, part in zip(photo.size, (width, height), strict=True)
    )
    return np.asarray(photo.crop((x, y, x + width, y + height)), np.float32), ""


def _page_number(drawer: Drawer) -> tuple[Grey, str]:
    page = drawer.paper()
    text = str(drawer.chance.integers(1, 400))
    x = float(drawer.chance.choice([0.06, 0.5, 0.94]))
    drawer.write(page, text, int(drawer.chance.integers(15, 26)), (x, float(drawer.chance.choice([0.03, 0.96]))), 180)
    return page, text


def _word(drawer: Drawer) -> tuple[Grey, str]:
    page, text = drawer.paper(), str(drawer.chance.choice(WORDS))
    drawer.write(page, text, int(drawer.chance.integers(16, 60)), drawer.place(), drawer.chance.uniform(110, 200))
    return page, text


def _line(drawer: Drawer) -> tuple[Grey, str]:
    page, text = drawer.paper(), str(drawer.chance.choice(SENTENCES))
    drawer.write(page, text, int(drawer.chance.integers(15, 30)), drawer.place(), drawer.chance.uniform(110, 200))
    return page, text


def _faint(drawer: Drawer) -> tuple[Grey, str]:
    """A thermal head that is worn, or the fourth copy."""
    page = drawer.paper()
    return page, drawer.paragraph(page, drawer.chance.uniform(38, 70), 0.7)


def _stamp(drawer: Drawer) -> tuple[Grey, str]:
    """A word in a frame, turned a little, ink uneven."""
    page, text = drawer.paper(), str(drawer.chance.choice(WORDS)).upper()
    font = drawer.font(int(drawer.chance.integers(26, 60)))
    left, top, right, bottom = font.getbbox(text)
    stamp = Image.new("L", (round(right - left) + 40, round(bottom - top) + 40))
    draw = ImageDraw.Draw(stamp)
    draw.rectangle((3, 3, stamp.width - 4, stamp.height - 4), outline=255, width=3)
    draw.text((20 - left, 20 - top), text, font=font, fill=255)
    stamp = stamp.rotate(drawer.chance.uniform(-9, 9), Image.Resampling.BICUBIC, expand=True)
    stamp.thumbnail((page.shape[1] - 20, page.shape[0] - 20))
    patchy = np.asarray(stamp, np.float32) * (0.75 + 0.25 * drawer.clouds(stamp.width, stamp.height, 12))
    x = int(drawer.chance.uniform(5, page.shape[1] - stamp.width - 5))
    y = int(drawer.chance.uniform(5, page.shape[0] - stamp.height - 5))
    page[y : y + stamp.height, x : x + stamp.width] -= patchy * drawer.chance.uniform(0.4, 0.7)
    return page, text


def _print(drawer: Drawer) -> tuple[Grey, str]:
    page = drawer.paper()
    return page, drawer.paragraph(page, drawer.chance.uniform(110, 200))


def _dirty_print(drawer: Drawer) -> tuple[Grey, str]:
    """One line on paper with edges, dust or show-through."""
    dirty = (_edges, _dust, _show_through, _holes, _folds)[drawer.chance.integers(5)]
    page, _ = dirty(drawer)
    text = str(drawer.chance.choice(SENTENCES))
    drawer.write(page, text, int(drawer.chance.integers(16, 30)), (0.5, float(drawer.chance.uniform(0.2, 0.8))), 170)
    return page, text


def _reversed(drawer: Drawer) -> tuple[Grey, str]:
    """White print on black."""
    page, text = _line(drawer)
    return 255 - page, text


def _in_shadow(drawer: Drawer, strip: Grey) -> Grey:
    """Light that falls off within a few centimetres, as next to a hand or in the fold of a book."""
    shade = (drawer.clouds(strip.shape[1], strip.shape[0], 3) + 1) / 2
    return strip * np.asarray(1 - drawer.chance.uniform(0.15, 0.7) * np.clip(shade, 0, 1), np.float32)


def _shaded_strip(drawer: Drawer) -> tuple[Grey, str]:
    return _in_shadow(drawer, drawer.paper(*drawer.strip_size())), ""


def _smooth_strip(drawer: Drawer) -> tuple[Grey, str]:
    """A shadow alone, as a camera smooths it."""
    width, height = drawer.strip_size()
    return _in_shadow(drawer, np.full((height, width), drawer.chance.uniform(170, 255), np.float32)), ""


def _grainy_strip(drawer: Drawer) -> tuple[Grey, str]:
    strip = drawer.paper(*drawer.strip_size())
    height, width = strip.shape
    grain = drawer.chance.normal(0, 1, ((height + 1) // 2, (width + 1) // 2)).astype(np.float32)
    grain *= drawer.chance.uniform(3, 12)
    soft = np.asarray(Image.fromarray(grain).resize((width, height), Image.Resampling.BILINEAR), np.float32)
    return _in_shadow(drawer, strip + soft), ""


def _cloth_strip(drawer: Drawer) -> tuple[Grey, str]:
    """Wood, cloth, brushed metal: a texture with a direction."""
    width, height = drawer.strip_size()
    long, short = int(drawer.chance.integers(1, 40)), int(drawer.chance.integers(1, 5))
    cells = drawer.chance.normal(0, 1, (max(2, height // short), max(2, width // long))).astype(np.float32)
    cells *= drawer.chance.uniform(3, 30)
    cells += drawer.chance.uniform(90, 230)
    return np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC), np.float32), ""


def _back_strip(drawer: Drawer) -> tuple[Grey, str]:
    """A line on the other side of the sheet: mirrored, blurred, pale."""
    strip = drawer.paper(*drawer.strip_size())
    back = np.full(strip.shape, 255, np.float32)
    drawer.write(back, str(drawer.chance.choice(SENTENCES)), max(10, strip.shape[0] // 2), (0.3, 0.5), 255)
    shade = Image.fromarray((255 - np.clip(back, 0, 255)).astype(np.uint8)[:, ::-1])
    through = np.asarray(shade.filter(ImageFilter.GaussianBlur(drawer.chance.uniform(1.5, 3))), np.float32)
    return _in_shadow(drawer, strip - through * drawer.chance.uniform(0.05, 0.16)), ""


def _photo_strip(drawer: Drawer) -> tuple[Grey, str]:
    photo, _ = _photo(drawer)
    width, height = (min(sides) for sides in zip(drawer.strip_size(), photo.shape[::-1], strict=True))
    x, y = (
        int(drawer.chance.uniform(0, max(1, whole - part)))
        for whole, part in zip(photo.shape[::-1], (width, height), strict=True)
    )
    return photo[y : y + height, x : x + width], ""


def _line_in_shadow(drawer: Drawer) -> tuple[Grey, str]:
    """A line that was cut out close to its letters, in a shadow."""
    words = str(drawer.chance.choice(SENTENCES)).split()
    text = " ".join(words[: int(drawer.chance.integers(1, len(words) + 1))])
    size = int(drawer.chance.integers(14, 40))
    left, top, right, bottom = drawer.font(size).getbbox("Ag" + text)
    margin = int(drawer.chance.integers(4, 16))
    strip = drawer.paper(int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    drawer.write(strip, text, size, (0.5, 0.5), drawer.chance.uniform(110, 200))
    return _in_shadow(drawer, np.clip(strip, 0, 255)), text


BLANK_KINDS: dict[str, Draw] = {
    "flat": _flat, "paper": _paper, "show-through": _show_through, "edges": _edges, "dust": _dust, "holes": _holes,
    "folds": _folds, "rules": _rules, "stains": _stains, "noise": _noise, "speckle": _speckle, "gradient": _gradient,
    "tiny": _tiny,
}  # fmt: skip
PHOTO_KINDS: dict[str, Draw] = {"photo": _photo}
TEXT_KINDS: dict[str, Draw] = {
    "page number": _page_number, "word": _word, "line": _line, "faint": _faint, "stamp": _stamp, "print": _print,
    "dirty print": _dirty_print, "reversed": _reversed,
}  # fmt: skip
BARE_STRIP_KINDS: dict[str, Draw] = {
    "shaded strip": _shaded_strip, "smooth strip": _smooth_strip, "grainy strip": _grainy_strip,
    "cloth strip": _cloth_strip, "back of a line": _back_strip,
}  # fmt: skip
