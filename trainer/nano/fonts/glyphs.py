"""Draws lines of text fast: glyphs of one face and size are drawn once and joined to lines.

Drawing a line of 75 characters with Pillow takes about a millisecond; joining cached cells takes a tenth of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Ink = npt.NDArray[np.uint8]

_TALL: Final = "ÅÉŠfdlgjpqyÇ(|@{Qß$"
_GAP: Final = "      "


@dataclass(frozen=True, slots=True)
class _Cell:
    """A glyph cut at its advance: `core` [rows, advance]; the ink that sticks out left and right, if any."""

    core: Ink
    advance: int
    left: Ink | None
    right: Ink | None


@dataclass(frozen=True, slots=True)
class LineInk:
    """A drawn line.

    Attributes:
        ink: [rows, columns], 255 where there is full ink.
        origin: column of the line's left edge inside `ink`; ink may stick out to its left.
        baseline: row of the baseline inside `ink`.
        width: advance width in pixels, without what sticks out.
    """

    ink: Ink
    origin: int
    baseline: int
    width: int


class GlyphSet:
    """One face at one size."""

    def __init__(
        self, font: ImageFont.FreeTypeFont, size_px: int, shaped_font: ImageFont.FreeTypeFont | None = None
    ) -> None:
        """Measure the face.

        Args:
            font: the face at its size, with basic layout.
            size_px: em size.
            shaped_font: the same face with the full shaper; lines are then drawn whole, with kerning and ligatures.
        """
        self.size_px = size_px
        self._font = font
        self._shaped = shaped_font
        box = font.getbbox(_TALL, anchor="ls")
        self._above = max(-int(box[1]), size_px) + 2
        self._below = max(int(box[3]), size_px // 3) + 2
        self._margin = size_px
        self._cells: dict[str, _Cell] = {}
        self._widths: dict[str, int] = {}

    @property
    def ascent(self) -> int:
        """Rows above the baseline in tall letters."""
        return self._above - 2

    @property
    def descent(self) -> int:
        """Rows below the baseline in deep letters."""
        return self._below - 2

    def width(self, text: str, spacing: int = 0) -> int:
        """Advance width of a line in pixels; `spacing` is added after each character."""
        widths = self._widths
        total = 0
        for character in text:
            width = widths.get(character)
            if width is None:
                width = self._cell(character).advance
            total += width
        return total + spacing * len(text)

    def draw(self, text: str, spacing: int = 0, stretch_to: int | None = None) -> LineInk:
        """Draw a line; `spacing` is added after each character, and spaces are widened to the width `stretch_to`."""
        natural = self.width(text, spacing)
        gaps = text.count(" ")
        extra = max(stretch_to - natural, 0) if stretch_to is not None and gaps else 0
        if self._shaped is not None and not spacing and not extra:
            return self._draw_shaped(text)
        return self.draw_cells(text, spacing, extra)

    def draw_cells(self, text: str, spacing: int = 0, extra: int = 0) -> LineInk:
        """Draw a line from cells without kerning, as wide as `width`, with `extra` pixels spread over its spaces."""
        gaps = text.count(" ")
        margin = self._margin
        for character in text:
            self._cell(character)  # drawn first: a very tall glyph changes the height of all cells
        rows = self._above + self._below
        parts: list[Ink] = [np.zeros((rows, margin), dtype=np.uint8)]
        overhangs: list[tuple[int, Ink]] = []
        gap = np.zeros((rows, spacing), dtype=np.uint8) if spacing else None
        x, seen_gaps = margin, 0
        for character in text:
            cell = self._cells[character]
            parts.append(cell.core)
            if cell.left is not None:
                overhangs.append((x - cell.left.shape[1], cell.left))
            x += cell.advance
            if cell.right is not None:
                overhangs.append((x, cell.right))
            if gap is not None:
                parts.append(gap)
                x += spacing
            if extra and character == " ":
                more = extra * (seen_gaps + 1) // gaps - extra * seen_gaps // gaps
                seen_gaps += 1
                parts.append(np.zeros((rows, more), dtype=np.uint8))
                x += more
        parts.append(np.zeros((rows, margin), dtype=np.uint8))
        ink = np.concatenate(parts, axis=1)
        for column, piece in overhangs:
            region = ink[:, column : column + piece.shape[1]]
            np.maximum(region, piece, out=region)
        return LineInk(ink, margin, self._above, x - margin)

    def _draw_shaped(self, text: str) -> LineInk:
        if self._shaped is None:
            raise ValueError("this glyph set has no shaped font")
        width = round(self._shaped.getlength(text))
        margin = self._margin
        canvas = Image.new("L", (width + 2 * margin, self._above + self._below), 0)
        ImageDraw.Draw(canvas).text((margin, self._above), text, font=self._shaped, fill=255, anchor="ls")
        return LineInk(np.asarray(canvas), margin, self._above, width)

    def ensure(self, text: str) -> None:
        """Draw the missing glyphs of a text together, which is several times faster than one by one."""
        missing = [character for character in sorted(set(text)) if character not in self._cells]
        if len(missing) > 2:
            self._make_cells(missing)

    def _cell(self, character: str) -> _Cell:
        cell = self._cells.get(character)
        if cell is None:
            self._make_cells([character])
            cell = self._cells[character]
        return cell

    def _make_cells(self, characters: list[str]) -> None:
        """Draw glyphs on one strip, without touching, and cut it."""
        lengths = [self._font.getlength(character) for character in characters]
        gap = self._font.getlength(_GAP)
        text = _GAP + _GAP.join(characters) + _GAP
        total = gap * (len(characters) + 1) + sum(lengths)
        _, top, _, bottom = (int(edge) for edge in self._font.getbbox(text, anchor="ls"))
        is_exact = len(characters) == 1 or (gap.is_integer() and self._font.getlength(text) == total)
        if not is_exact or not all(length.is_integer() for length in lengths):
            if len(characters) > 1:
                for character in characters:
                    self._make_cells([character])
                return
            lengths = [float(max(round(lengths[0]), 1))]
        if -top > self._above or bottom > self._below:
            self._above, self._below = max(self._above, 2 - top), max(self._below, bottom + 2)
            characters = [*self._cells, *characters]
            self._cells = {}
            self._make_cells(characters)
            return
        canvas = Image.new("L", (round(total) + 2 * self.size_px, self._above + self._below), 0)
        ImageDraw.Draw(canvas).text((self.size_px, self._above), text, font=self._font, fill=255, anchor="ls")
        strip = np.asarray(canvas)
        x = self.size_px + round(gap)
        for character, length in zip(characters, lengths, strict=True):
            self._cut_cell(strip, character, x, int(length), round(gap) // 2)
            x += int(length) + round(gap)

    def _cut_cell(self, strip: Ink, character: str, x: int, advance: int, around: int) -> None:
        before, after = strip[:, x - around : x], strip[:, x + advance : x + advance + around]
        used_before, used_after = before.max(axis=0, initial=0), after.max(axis=0, initial=0)
        first = around - int((used_before > 0).argmax()) if used_before.any() else 0
        last = around - int((used_after[::-1] > 0).argmax()) if used_after.any() else 0
        self._margin = max(self._margin, first + 2, last + 2)
        self._cells[character] = _Cell(
            core=strip[:, x : x + advance],
            advance=advance,
            left=before[:, around - first :] if first else None,
            right=after[:, :last] if last else None,
        )
        self._widths[character] = advance


class FineGlyphSet:
    """One face at one size, drawn at twice the size and halved: letters fall between pixels, as in rasterised PDFs.

    Has the interface of `GlyphSet`.
    """

    def __init__(self, double: GlyphSet) -> None:
        """Halve a glyph set of twice the size."""
        self._double = double
        self.size_px = double.size_px // 2

    @property
    def ascent(self) -> int:
        """Rows above the baseline in tall letters."""
        return -(-self._double.ascent // 2)

    @property
    def descent(self) -> int:
        """Rows below the baseline in deep letters."""
        return -(-self._double.descent // 2)

    def ensure(self, text: str) -> None:
        """Draw the missing glyphs of a text together."""
        self._double.ensure(text)

    def width(self, text: str, spacing: int = 0) -> int:
        """Advance width of a line in pixels, rounded up; `spacing` is added after each character."""
        return -(-self._double.width(text, 2 * spacing) // 2)

    def draw(self, text: str, spacing: int = 0, stretch_to: int | None = None) -> LineInk:
        """Draw a line; `spacing` is added after each character, and spaces are widened to the width `stretch_to`."""
        return _halved(self._double.draw(text, 2 * spacing, None if stretch_to is None else 2 * stretch_to))

    def draw_cells(self, text: str, spacing: int = 0) -> LineInk:
        """Draw a line from cells without kerning, as wide as `width`."""
        return _halved(self._double.draw_cells(text, 2 * spacing))


Glyphs = GlyphSet | FineGlyphSet


def _halved(line: LineInk) -> LineInk:
    """Halve a drawn line; its baseline and left edge fall on whole pixels."""
    top, left = line.baseline % 2, line.origin % 2
    bottom, right = (line.ink.shape[0] + top) % 2, (line.ink.shape[1] + left) % 2
    ink = np.pad(line.ink, ((top, bottom), (left, right))).astype(np.uint16)
    rows = ink[0::2] + ink[1::2]
    small = ((rows[:, 0::2] + rows[:, 1::2] + 2) // 4).astype(np.uint8)
    return LineInk(small, (line.origin + left) // 2, (line.baseline + top) // 2, -(-line.width // 2))
