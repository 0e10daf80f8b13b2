"""Rows of a page: what stands side by side on a line, a caption's column of brackets too, is one line of the truth."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from trainer.nano.fonts.glyphs import Glyphs
from trainer.nano.pages.layout import Column, TextStyle, break_line, place_line
from trainer.nano.pages.mosaic import BandedPage

_BLANK_LINES: Final = re.compile(r"\n{3,}")


@dataclass(frozen=True, slots=True)
class Cell:
    """A text of a row.

    Attributes:
        text: what it says; words that the face lacks, or that its room does not hold, are left out.
        x: left edge of its room in pixels.
        width: of its room in pixels.
        align: left, right or center.
        glyphs: another face than the row's.
    """

    text: str
    x: int
    width: int
    align: str = "left"
    glyphs: Glyphs | None = None


class Rows:
    """Rows of cells, set one below another on a page; each is a line of the truth, a blank one parts blocks."""

    def __init__(self, page: BandedPage, style: TextStyle, rng: Random, step_px: int) -> None:
        """Begin at the page's present position; `step_px` is the distance of two rows."""
        self._page = page
        self._style = replace(style, spacing=0, strokes=0.0, hyphenate=False)
        self._rng = rng
        self._lines: list[str] = []
        self._count = 0
        self.step_px = step_px
        self.margin: Callable[[int], Cell | None] | None = None
        """What the margin shows of a row, by its number from 0; rows of such a page are one block."""

    @property
    def size_px(self) -> int:
        """Em size of the rows' face."""
        return self._style.glyphs.size_px

    def glyph_width(self, text: str) -> int:
        """Width of a text in the rows' face, in pixels."""
        return self._style.glyphs.width(text)

    def add(self, *cells: Cell) -> bool:
        """Set a row, blank without cells; returns whether the page had room for it."""
        page, glyphs = self._page, self._style.glyphs
        if page.y + max(glyphs.ascent + glyphs.descent, self.step_px) > page.bottom or page.characters < 0:
            return False
        beside = self.margin(self._count) if self.margin else None
        texts = []
        for cell in (beside, *cells) if beside else cells:
            face = cell.glyphs or glyphs
            words = [word for word in cell.text.split() if page.drawable.issuperset(word)]
            while words and face.width(" ".join(words)) > cell.width:
                words.pop()
            if words:
                texts.append(" ".join(words))
                column = Column(page.sheet, cell.x, cell.width, page.y + glyphs.ascent - face.ascent, page.bottom)
                place_line(column, texts[-1], face, self._style, self._rng, cell.x, cell.width, cell.align)
        if texts or not self.margin:
            self._lines.append(" ".join(texts))
            page.characters -= len(self._lines[-1]) + 1
        self._count += 1
        page.y += self.step_px
        return True

    def prose(self, text: str, x: int, width: int, indent: int = 0, align: str = "left") -> bool:
        """Set running text row by row; returns whether all of it had room."""
        words = [word for word in text.split() if self._page.drawable.issuperset(word)]
        while words:
            line, words = break_line(words, self._style.glyphs, width - indent, self._style, self._rng)
            if not line or not self.add(Cell(line, x + indent, width - indent, align)):
                return False
            indent = 0
        return True

    def close(self) -> None:
        """Give the page the rows' truth."""
        text = _BLANK_LINES.sub("\n\n", "\n".join(self._lines)).strip("\n")
        if text:
            self._page.texts.append(text)
        self._lines = []
