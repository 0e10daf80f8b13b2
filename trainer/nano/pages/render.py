"""Renders pages of clean ink with their exact text, by tier; degradation and models are elsewhere."""

from __future__ import annotations

import math
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, islice
from random import Random
from typing import Final

import numpy as np

from trainer.nano.corpus.corpus import Corpus
from trainer.nano.fonts.glyphs import FineGlyphSet, Glyphs, GlyphSet, Ink
from trainer.nano.fonts.library import FontFace, FontLibrary
from trainer.nano.pages import books
from trainer.nano.pages.blocks import Block, FixedLines, Paragraph
from trainer.nano.pages.documents import adapt_block, block_content, heading, line_content, page_content
from trainer.nano.pages.layout import Column, Sheet, TextStyle, set_block

CACHED_GLYPH_SETS: Final = 160
RECENT_FACES: Final = 12
REUSE: Final = 0.7
SHAPED_SHARE: Final = 0.15
FINE_SHARE: Final = 0.4
MAX_TRIES: Final = 12
# Possible additions to a crop's height: blank space above and below, and a line cut off.
CUT_LINE_ROOM_PX: Final = 48
CROP_ROOM_PX: Final = 2 * 40 + CUT_LINE_ROOM_PX


class Tier(StrEnum):
    """Amount of content of an image, from a curriculum's first step to its last."""

    LINE = "line"
    FEW = "few"
    BLOCK = "block"
    HALF = "half"
    PAGE = "page"
    CROP = "crop"
    SHEET = "sheet"


WHOLE_PAGES: Final = frozenset({Tier.PAGE, Tier.SHEET})
SCANS: Final = frozenset({Tier.CROP, Tier.SHEET})
"""Tiers of scans at 200 to 300 dpi with the typography of books and typescripts: wide strips, blocks, whole pages."""


@dataclass(frozen=True, slots=True)
class TierLimits:
    """Bounds of a tier.

    Attributes:
        width_px: least and most width of the text area.
        height_px: most height of the image.
        image_width_px: most width of the image.
        characters: most characters of the truth.
        lines: least and most lines asked for.
        size_px: least and most em size, drawn log-uniformly.
    """

    width_px: tuple[int, int]
    height_px: int
    image_width_px: int
    characters: int
    lines: tuple[int, int]
    size_px: tuple[int, int]


LIMITS: Final[dict[Tier, TierLimits]] = {
    Tier.LINE: TierLimits((60, 610), 120, 640, 90, (1, 1), (10, 48)),
    Tier.FEW: TierLimits((160, 610), 480, 640, 300, (2, 6), (10, 44)),
    Tier.BLOCK: TierLimits((280, 620), 640, 640, 900, (4, 40), (10, 40)),
    Tier.HALF: TierLimits((420, 1240), 1280, 1280, 1500, (8, 60), (11, 34)),
    Tier.PAGE: TierLimits((640, 1220), 1920, 1280, 3200, (20, 120), (11, 26)),
    Tier.CROP: TierLimits((600, 2510), 1280, 2560, 1200, (1, 16), (20, 64)),
    Tier.SHEET: TierLimits((1200, 1560), 2339, 1740, 3200, (20, 120), (20, 38)),
}


@dataclass(frozen=True, slots=True)
class RenderedPage:
    """An image of clean ink and its text.

    Attributes:
        ink: [height, width], 255 is paper, 0 is ink.
        text: the truth: lines as printed, blocks apart by a blank line.
        tier: which tier was asked for.
        fonts: file names of the faces used: running text, headings, code.
        sizes_px: their em sizes.
        marks: for each character of the truth, x and y of about its middle on the image, and the character.
    """

    ink: Ink
    text: str
    tier: Tier
    fonts: tuple[str, ...]
    sizes_px: tuple[int, ...]
    marks: tuple[tuple[int, int, str], ...]


class PageRenderer:
    """Renders pages from one library of faces and one corpus, the same for the same seed."""

    def __init__(self, fonts: FontLibrary, corpus: Corpus, seed: int) -> None:
        """Start with empty caches; each worker needs its own seed."""
        self._fonts = fonts
        self._corpus = corpus
        self._rng = Random(seed)
        self._glyph_sets: OrderedDict[tuple[str, int, bool, bool], Glyphs] = OrderedDict()
        self._recent: dict[Tier, list[tuple[FontFace, int]]] = {tier: [] for tier in Tier}

    def render(
        self, tier: Tier, *, max_characters: int | None = None, size_px: tuple[int, int] | None = None
    ) -> RenderedPage:
        """Render one image.

        Args:
            tier: amount of content.
            max_characters: a smaller limit than the tier's.
            size_px: another range of em sizes than the tier's.

        Returns:
            The image; its text is never empty, and no glyph is cut off.

        Raises:
            RuntimeError: no attempt gave a page (fonts or texts are unusable).
        """
        for _ in range(MAX_TRIES):
            page = self._attempt(tier, max_characters or LIMITS[tier].characters, size_px or LIMITS[tier].size_px)
            if page is not None:
                return page
        raise RuntimeError(f"no {tier} could be set in {MAX_TRIES} tries: check the fonts and the corpus")

    def render_blocks(
        self,
        blocks: list[Block],
        width_px: int,
        height_px: int,
        size_px: int,
        margin_px: int,
        face: FontFace | None = None,
    ) -> RenderedPage:
        """Render given content on an image of a given size.

        Args:
            blocks: the content, from top to bottom.
            width_px: width of the image.
            height_px: height of the image.
            size_px: em size of running text.
            margin_px: blank space at each side.
            face: a face of the library; None for a random one that can draw the text.

        Returns:
            The image; content that does not fit is in neither image nor truth.

        Raises:
            RuntimeError: ink would be cut off.
        """
        style, faces = self._style(face or self._fonts.pick(self._rng, _text_of(blocks)), size_px, plain=True)
        sheet = Sheet.blank(width_px, height_px)
        column = Column(sheet, margin_px, width_px - 2 * margin_px, margin_px, height_px - margin_px)
        for block in blocks:
            set_block(column, block, style, self._rng)
        if not sheet.is_border_blank():
            raise RuntimeError("the given blocks do not fit into the image")
        return _finished(sheet.page(), column.text(), Tier.PAGE, style, faces, sheet.marks)

    def _attempt(self, tier: Tier, characters: int, size_range: tuple[int, int]) -> RenderedPage | None:
        rng, limits = self._rng, LIMITS[tier]
        face, size = self._face_and_size(tier, size_range)
        style, faces = self._style(face, size)
        if tier in SCANS:
            style = books.book_style(style, rng)
        drawable = frozenset.intersection(*(frozenset(each.characters) | {" "} for each in faces))
        width, height, margin = self._frame(tier, limits, size)
        sheet = Sheet.blank(width, height)
        lines = books.crop_lines(rng) if tier is Tier.CROP else rng.randint(*limits.lines)
        column = Column(sheet, margin, width - 2 * margin, margin, height - margin, characters, lines)
        adapted = (adapt_block(block, drawable) for block in self._content(tier))
        blocks = (block for block in adapted if block is not None)
        if tier in WHOLE_PAGES:
            text = self._set_page(sheet, column, blocks, style, drawable)
        else:
            fill(column, blocks, style, rng)
            text = column.text()
        if not text or not sheet.is_border_blank():
            return None
        self._decorate(sheet, column, tier, margin)
        ink, left, top = self._cropped(sheet.page(), tier, limits, margin, column, style)
        marks = [(x - left, y - top, character) for x, y, character in sheet.marks]
        return _finished(ink, text, tier, style, faces, marks)

    def _content(self, tier: Tier) -> Iterator[Block]:
        if tier is Tier.LINE:
            return iter([line_content(self._rng, self._corpus) for _ in range(3)])
        if tier is Tier.FEW and self._rng.random() < 0.5:
            return (line_content(self._rng, self._corpus) for _ in range(8))
        if tier in WHOLE_PAGES:
            return page_content(self._rng, self._corpus)
        if tier is Tier.CROP:
            return islice(books.book_content(self._rng, self._corpus), 60)
        return islice(block_content(self._rng, self._corpus), 60)

    def _set_page(
        self, sheet: Sheet, column: Column, blocks: Iterator[Block], style: TextStyle, drawable: frozenset[str]
    ) -> str:
        """Lay out title, one or two columns and a page number; returns the truth in reading order."""
        rng = self._rng
        footer_room = round(style.glyphs.size_px * 2.5)
        column.bottom -= footer_room
        title = adapt_block(heading(rng, self._corpus, level=0), drawable)
        if title is not None and rng.random() < 0.6:
            set_block(column, title, style, rng)
            column.y += style.glyphs.size_px
        parts = [column]
        if column.width > 46 * style.glyphs.size_px or (
            column.width > 34 * style.glyphs.size_px and rng.random() < 0.4
        ):
            parts += self._two_columns(column, style)
        for part in parts if len(parts) == 1 else parts[1:]:
            fill(part, blocks, style, rng, limit=60)
        texts = [part.text() for part in parts if part.blocks]
        column.y = max(part.y for part in parts)
        if rng.random() < 0.5:
            number = str(rng.randint(1, 999))
            label = FixedLines(
                (rng.choice((number, f"- {number} -", f"Page {number}", f"{number} / {rng.randint(1, 999)}")),)
            )
            end = max(part.y for part in parts) + style.glyphs.size_px
            foot = Column(sheet, column.x, column.width, end, end + footer_room + column.x)
            if set_block(foot, label, style, rng):
                texts.append(foot.text())
                column.y = foot.y
        return "\n\n".join(text for text in texts if text)

    def _two_columns(self, column: Column, style: TextStyle) -> list[Column]:
        gutter = round(style.glyphs.size_px * self._rng.uniform(1.8, 3.0))
        width = (column.width - gutter) // 2
        used = sum(len(line) + 1 for lines in column.blocks for line in lines)
        share = max((column.characters - used) // 2, 200)
        top = column.y
        columns = [
            Column(column.sheet, column.x + index * (width + gutter), width, top, column.bottom, share)
            for index in range(2)
        ]
        if self._rng.random() < 0.2:
            middle = column.x + width + gutter // 2
            column.sheet.rule(middle, top, middle + 1, column.bottom)
        return columns

    def _face_and_size(self, tier: Tier, size_range: tuple[int, int], kind: str | None = None) -> tuple[FontFace, int]:
        """Pick a face and a size, often a recent one, whose glyphs are cached."""
        rng, recent = self._rng, self._recent[tier]
        usable = [
            (face, size)
            for face, size in recent
            if size_range[0] <= size <= size_range[1] and kind in (None, face.kind)
        ]
        if len(usable) >= RECENT_FACES // 2 and rng.random() < REUSE:
            return rng.choice(usable)
        size = round(math.exp(rng.uniform(math.log(size_range[0]), math.log(size_range[1]))))
        if tier in SCANS:
            kind = books.pick_kind(rng)
        pair = (self._fonts.pick(rng, kind=kind), size)
        recent.append(pair)
        if len(recent) > RECENT_FACES:
            recent.pop(0)
        return pair

    def _style(self, face: FontFace, size: int, *, plain: bool = False) -> tuple[TextStyle, list[FontFace]]:
        rng = self._rng
        # Bound to face and size, so that cached glyphs are reused.
        luck = zlib.crc32(f"{face.file}/{size}".encode()) % 100
        fine = plain or luck < 100 * FINE_SHARE
        shaped = plain or luck % 20 < 20 * SHAPED_SHARE
        companions = self._fonts.companions(face) or [face]
        head_face = rng.choice(companions) if rng.random() < 0.7 else face
        code_face = self._fonts.pick(rng, kind="mono") if rng.random() < 0.25 else face
        if plain:
            head_face = next((other for other in companions if other.style == "bold"), face)
        head_size = min(round(size * rng.choice((1.0, 1.15, 1.4, 1.7))), 60)
        style = TextStyle(
            glyphs=self._glyphs(face, size, shaped=shaped, fine=fine),
            heading=self._glyphs(head_face, head_size, shaped=False, fine=fine),
            fixed=self._glyphs(code_face, size, shaped=False, fine=fine),
            leading=1.35 if plain else rng.uniform(1.05, 1.75),
            spacing=rng.randint(1, max(size // 9, 1)) if not plain and rng.random() < 0.06 else 0,
            align="left" if plain else rng.choices(("left", "justify", "center", "right"), (0.55, 0.3, 0.1, 0.05))[0],
            indent=round(size * rng.uniform(1, 3)) if not plain and rng.random() < 0.2 else 0,
            hyphenate=not plain and rng.random() < 0.25,
            gap=0.8 if plain else rng.choice((0.35, 0.6, 1.0)),
            ruled=1 if plain else rng.choices((0, 1, 2), (0.5, 0.25, 0.25))[0],
            strokes=rng.choice((0.1, 0.3)) if not plain and rng.random() < 0.06 else 0.0,
        )
        return style, [face, head_face, code_face]

    def _glyphs(self, face: FontFace, size: int, *, shaped: bool, fine: bool) -> Glyphs:
        key = (face.file, size, shaped, fine)
        glyphs = self._glyph_sets.get(key)
        if glyphs is None:
            em = 2 * size if fine else size
            whole = self._fonts.load(face, em, shaped=True) if shaped else None
            plain = GlyphSet(self._fonts.load(face, em), em, whole)
            glyphs = FineGlyphSet(plain) if fine else plain
            self._glyph_sets[key] = glyphs
            if len(self._glyph_sets) > CACHED_GLYPH_SETS:
                self._glyph_sets.popitem(last=False)
        else:
            self._glyph_sets.move_to_end(key)
        return glyphs

    def _frame(self, tier: Tier, limits: TierLimits, size: int) -> tuple[int, int, int]:
        """Choose image width, image height and margin."""
        rng = self._rng
        least, most = limits.width_px
        text_width = rng.randint(min(max(least, 4 * size), most), most)
        if tier in {Tier.LINE, Tier.BLOCK} and rng.random() < 0.5:
            text_width = most
        height = limits.height_px
        if tier is Tier.HALF:
            is_wide = rng.random() < 0.5
            text_width = rng.randint(800, 1240) if is_wide else rng.randint(420, 610)
            height = 640 if is_wide else 1280
        elif tier in WHOLE_PAGES:
            text_width = min(text_width, 70 * size)
        elif tier is Tier.CROP:
            # Most are one tile high.
            text_width = books.crop_width_px(rng, size)
            height = (limits.height_px if rng.random() < 0.2 else limits.height_px // 2) - CROP_ROOM_PX
        most_margin = max((limits.image_width_px - text_width) // 2, 3)
        if tier is Tier.HALF and text_width <= 610:
            most_margin = (640 - text_width) // 2
        margin = rng.randint(3, max(min(most_margin, 24 if tier not in WHOLE_PAGES else 110), 3))
        if tier in {Tier.LINE, Tier.FEW}:
            margin = min(most_margin, max(size // 2, 12))
        return text_width + 2 * margin, height, margin

    def _decorate(self, sheet: Sheet, column: Column, tier: Tier, margin: int) -> None:
        """Draw frames and rules that are not text, clear of it."""
        rng = self._rng
        if margin < 8 or tier is Tier.LINE or rng.random() > 0.12:
            return
        away = rng.randint(3, margin - 4)
        left, right, top = column.x - away, column.x + column.width + away, margin - away
        bottom = column.y + away
        thickness = rng.choice((1, 1, 2, 3))
        sides = rng.choice(("frame", "left", "top", "bottom"))
        page = sheet.page()
        for side, box in {
            "left": (left, top, left + thickness, bottom),
            "right": (right - thickness, top, right, bottom),
            "top": (left, top, right, top + thickness),
            "bottom": (left, bottom, right, bottom + thickness),
        }.items():
            x0, y0, x1, y1 = box
            if sides in {"frame", side} and not page[max(y0, 0) : y1, max(x0, 0) : x1].any():
                sheet.rule(x0, y0, x1, y1)

    def _cropped(
        self, page: Ink, tier: Tier, limits: TierLimits, margin: int, column: Column, style: TextStyle
    ) -> tuple[Ink, int, int]:
        """Crop blank space; returns the image, and the page's column and row of its first pixel."""
        rng = self._rng
        first_column = first_row = 0
        rows, columns = np.flatnonzero(page.any(axis=1)), np.flatnonzero(page.any(axis=0))
        if tier in {Tier.LINE, Tier.FEW, Tier.CROP}:
            spare = limits.image_width_px - int(columns[-1] - columns[0]) - 1
            beside, above = (80, 40) if tier is Tier.CROP else (24, 20)
            left = rng.randint(2, max(min(beside, spare // 2), 2))
            right = rng.randint(2, max(min(beside, spare - left), 2))
            upper, lower = rng.randint(2, above), rng.randint(2, above)
            ink = page[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            ink = np.pad(ink, ((upper, lower), (left, right)))
            first_column, first_row = int(columns[0]) - left, int(rows[0]) - upper
        else:
            keeps_blank = rng.random() < (0.35 if tier is Tier.BLOCK else 0.2)
            end = page.shape[0] if keeps_blank else min(int(rows[-1]) + 1 + margin, page.shape[0])
            ink = page[:end]
        if tier is Tier.CROP:
            if rng.random() < 0.25:
                room = min(size := style.glyphs.size_px, CUT_LINE_ROOM_PX)
                ink = np.pad(ink, ((0, room), (0, 0)))
                ink = self._with_neighbour(ink, column, style, round(size * rng.uniform(0.1, 0.4)), 120)
        elif tier not in WHOLE_PAGES and rng.random() < 0.04:
            ink = self._with_neighbour(ink, column, style, max(style.glyphs.size_px // 6, 1), 40)
        return ink, first_column, first_row

    def _with_neighbour(self, ink: Ink, column: Column, style: TextStyle, visible: int, characters: int) -> Ink:
        """Show the tops of another line at the lower edge: too little to be read, so not in the truth."""
        size = style.glyphs.size_px
        words = " ".join(self._corpus.words(self._rng, -(-characters // 7), "en"))
        line = style.glyphs.draw_cells("".join(mark for mark in words if mark.isascii())[:characters])
        rows = np.flatnonzero(line.ink.any(axis=1))
        if not len(rows):
            return ink
        strip = line.ink[rows[0] : rows[0] + visible, : ink.shape[1] - column.x]
        grown = np.array(ink)
        region = grown[-strip.shape[0] :, column.x : column.x + strip.shape[1]]
        if grown[-(visible + size // 3) :].any():
            return ink
        np.maximum(region, strip, out=region)
        return grown


def fill(column: Column, blocks: Iterator[Block], style: TextStyle, rng: Random, limit: int = 40) -> None:
    """Lay out blocks until a column is full, or after `limit` blocks."""
    misses = 0
    for block in islice(blocks, limit):
        if column.is_full or misses > 1:
            break
        misses += not set_block(column, block, style, rng)


def _finished(
    page: Ink, text: str, tier: Tier, style: TextStyle, faces: list[FontFace], marks: list[tuple[int, int, str]]
) -> RenderedPage:
    sizes = (style.glyphs.size_px, style.heading.size_px, style.fixed.size_px)
    return RenderedPage(255 - page, text, tier, tuple(face.file for face in faces), sizes, tuple(marks))


def _text_of(blocks: list[Block]) -> str:
    parts = chain.from_iterable([block.text] if isinstance(block, Paragraph) else [repr(block)] for block in blocks)
    return " ".join(parts)
