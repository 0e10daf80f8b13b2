"""Lays out blocks of content in a column of lines: breaking, alignment, tables; places ink on a sheet.

Placed lines and the truth are the same strings; a line that does not fit is not placed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain
from random import Random
from typing import Final

import numpy as np

from trainer.nano.fonts.glyphs import Glyphs, Ink
from trainer.nano.pages.blocks import Block, FixedLines, Heading, Items, Paragraph, Table

HYPHENATED_MIN: Final = 7
# With room for fewer characters no further line is started.
SHORTEST: Final = 8
_VOWELS: Final = frozenset("aeiouyáéíóúàèäöüâêîôûåæøąęěů")


@dataclass(frozen=True, slots=True)
class TextStyle:
    """How text is set.

    Attributes:
        glyphs: face and size of running text.
        heading: face and size of headings.
        fixed: face and size of code.
        leading: distance of baselines as a multiple of the text's size.
        spacing: extra pixels between characters.
        align: left, right, center or justify.
        indent: pixels before a paragraph's first line.
        hyphenate: words may be broken at line ends.
        gap: blank space between blocks as a multiple of the text's size.
        ruled: tables have lines between rows, and between columns where 2.
        strokes: chance that a line is underlined or struck through.
    """

    glyphs: Glyphs
    heading: Glyphs
    fixed: Glyphs
    leading: float = 1.3
    spacing: int = 0
    align: str = "left"
    indent: int = 0
    hyphenate: bool = False
    gap: float = 0.6
    ruled: int = 0
    strokes: float = 0.0


@dataclass(slots=True)
class Sheet:
    """A canvas of ink (255 is ink) with a border that text must leave blank.

    Attributes:
        ink: [height + 2 border, width + 2 border].
        border: rows and columns around the page proper; ink there would be cut off.
        marks: where each character of the truth stands: x and y of about its middle on the page, and itself.
    """

    ink: Ink
    border: int
    marks: list[tuple[int, int, str]] = field(default_factory=list)

    @classmethod
    def blank(cls, width_px: int, height_px: int, border: int = 72) -> Sheet:
        """An empty sheet."""
        return cls(np.zeros((height_px + 2 * border, width_px + 2 * border), dtype=np.uint8), border)

    def place(self, ink: Ink, x: int, y: int) -> None:
        """Draw ink `[rows, columns]` with its upper left corner at a column and row of the page, which may be negative.

        Parts beyond the border are dropped.
        """
        left, top = x + self.border, y + self.border
        skip_x, skip_y = max(-left, 0), max(-top, 0)
        region = self.ink[max(top, 0) : top + ink.shape[0], max(left, 0) : left + ink.shape[1]]
        if region.size:
            np.maximum(region, ink[skip_y : skip_y + region.shape[0], skip_x : skip_x + region.shape[1]], out=region)

    def rule(self, x0: int, y0: int, x1: int, y1: int, strength: int = 255) -> None:
        """Draw a filled rectangle inside the page.

        Args:
            x0: left edge.
            y0: upper edge.
            x1: right edge, exclusive.
            y1: lower edge, exclusive.
            strength: amount of ink.
        """
        height, width = self.ink.shape[0] - 2 * self.border, self.ink.shape[1] - 2 * self.border
        rows = slice(self.border + min(max(y0, 0), height), self.border + min(max(y1, 0), height))
        columns = slice(self.border + min(max(x0, 0), width), self.border + min(max(x1, 0), width))
        np.maximum(self.ink[rows, columns], strength, out=self.ink[rows, columns])

    def invert(self, x0: int, y0: int, x1: int, y1: int, strength: int = 255) -> None:
        """Turn what is in a rectangle inside the page into light text on a dark ground.

        Args:
            x0: left edge.
            y0: upper edge.
            x1: right edge, exclusive.
            y1: lower edge, exclusive.
            strength: amount of ink of the ground.
        """
        region = self.page()[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
        region[:] = strength - np.minimum(region, strength)

    def is_border_blank(self) -> bool:
        """Whether the border has no ink, so that nothing is cut off."""
        edge = self.border
        return not (
            self.ink[:edge].any() or self.ink[-edge:].any() or self.ink[:, :edge].any() or self.ink[:, -edge:].any()
        )

    def page(self) -> Ink:
        """The page `[height, width]` without the border, 255 is ink."""
        return self.ink[self.border : -self.border, self.border : -self.border]


@dataclass(slots=True)
class Column:
    """A column of lines being set from top to bottom.

    Attributes:
        sheet: where ink goes.
        x: left edge.
        width: its width.
        y: where the next line's top may lie.
        bottom: where the last line must end.
        characters: how many characters may still be set.
        lines: how many lines may still be set.
        blocks: the truth so far: lines by block.
    """

    sheet: Sheet
    x: int
    width: int
    y: int
    bottom: int
    characters: int = 10_000
    lines: int = 1_000
    blocks: list[list[str]] = field(default_factory=list)

    def text(self) -> str:
        """The truth: lines joined by a line break, blocks by a blank line."""
        return "\n\n".join("\n".join(lines) for lines in self.blocks if lines)

    @property
    def is_full(self) -> bool:
        """Stop accepting lines."""
        return self.lines <= 0 or self.characters <= (SHORTEST if any(self.blocks) else 0)


def set_block(column: Column, block: Block, style: TextStyle, rng: Random) -> bool:
    """Lay out as much of a block as fits into the column; returns whether at least one line did."""
    before = sum(map(len, column.blocks))
    start = column.y
    if column.blocks:
        column.y += round(style.gap * style.glyphs.size_px)
    column.blocks.append([])
    if isinstance(block, Paragraph):
        _set_paragraph(column, block.text, style, rng)
    elif isinstance(block, Heading):
        _set_heading(column, block, style, rng)
    elif isinstance(block, FixedLines):
        _set_fixed(column, block, style, rng)
    elif isinstance(block, Items):
        _set_items(column, block, style, rng)
    else:
        _set_table(column, block, style, rng)
    placed = sum(map(len, column.blocks)) > before
    if not placed:
        column.blocks.pop()
        column.y = start
    return placed


def break_line(words: list[str], glyphs: Glyphs, room: int, style: TextStyle, rng: Random) -> tuple[str, list[str]]:
    """Split words into what fits on a line of `room` pixels ("" if not even a letter fits) and the rest."""
    space = glyphs.width(" ", style.spacing)
    used, count = 0, 0
    for word in words:
        width = glyphs.width(word, style.spacing) + (space if count else 0)
        if used + width > room:
            break
        used += width
        count += 1
    if count == len(words):
        return " ".join(words), []
    rest = words[count]
    if (style.hyphenate and rng.random() < 0.7) or not count:
        head, tail = _split_word(rest, glyphs, room - used - (space if count else 0), style, force=not count)
        if head:
            return " ".join([*words[:count], head]), [tail, *words[count + 1 :]]
    return " ".join(words[:count]), words[count:]


def _split_word(word: str, glyphs: Glyphs, room: int, style: TextStyle, *, force: bool) -> tuple[str, str]:
    if force:
        cut = len(word)
        while cut > 0 and glyphs.width(word[:cut], style.spacing) > room:
            cut -= 1
        return word[:cut], word[cut:]
    if len(word) < HYPHENATED_MIN or not word.isalpha():
        return "", word
    for cut in range(len(word) - 3, 2, -1):
        legal = word[cut - 1].lower() in _VOWELS and word[cut].lower() not in _VOWELS
        if legal and glyphs.width(word[:cut] + "-", style.spacing) <= room:
            return word[:cut] + "-", word[cut:]
    return "", word


def _fits(column: Column, glyphs: Glyphs) -> bool:
    return not column.is_full and column.y + glyphs.ascent + glyphs.descent <= column.bottom


def place_line(
    column: Column,
    text: str,
    glyphs: Glyphs,
    style: TextStyle,
    rng: Random,
    x: int,
    room: int,
    align: str,
    *,
    last: bool = True,
) -> None:
    """Draw a line at the column's position and advance it; the caller has checked that it fits."""
    stretch = room if align == "justify" and not last else None
    if stretch is not None and room - glyphs.width(text, style.spacing) > glyphs.size_px * (text.count(" ") + 1):
        stretch = None  # spaces would be too wide: such a line stays ragged
    line = glyphs.draw(text, style.spacing, stretch)
    if line.width > room:
        line = glyphs.draw_cells(text, style.spacing)
    slack = max(room - line.width, 0)
    x += slack if align == "right" else slack // 2 if align == "center" else 0
    baseline = column.y + glyphs.ascent
    column.sheet.place(line.ink, x - line.origin, baseline - line.baseline)
    _mark(column.sheet, text, glyphs, style.spacing, x, baseline - round(0.3 * glyphs.size_px), line.width)
    if style.strokes and rng.random() < style.strokes:
        thickness = max(glyphs.size_px // 16, 1)
        y = baseline + max(glyphs.size_px // 9, 2) if rng.random() < 0.8 else baseline - glyphs.size_px // 4
        column.sheet.rule(x, y, x + line.width, y + thickness)
    column.y += max(round(glyphs.size_px * style.leading), 1)


def _mark(sheet: Sheet, text: str, glyphs: Glyphs, spacing: int, x: int, y: int, width: int) -> None:
    """Record the positions of a line's characters; extra width was spread over its spaces."""
    advances = [float(glyphs.width(character, spacing)) for character in text]
    natural, gaps = max(sum(advances), 1.0), text.count(" ")
    stretch = (width - natural) / gaps if gaps and width > natural else 0.0
    scale = 1.0 if stretch else width / natural
    passed = 0.0
    for character, advance in zip(text, advances, strict=True):
        if character != " ":
            sheet.marks.append((x + round((passed + (advance - spacing) / 2) * scale), y, character))
        passed += advance + (stretch if character == " " else 0.0)


def _record(column: Column, text: str) -> None:
    column.blocks[-1].append(text)
    column.characters -= len(text) + 1
    column.lines -= 1


def _set_words(
    column: Column,
    words: list[str],
    glyphs: Glyphs,
    style: TextStyle,
    rng: Random,
    x: int,
    room: int,
    align: str,
    indent: int = 0,
) -> None:
    glyphs.ensure(" ".join(words))
    while words and _fits(column, glyphs):
        line, words = break_line(words, glyphs, room - indent, style, rng)
        if not line:
            break
        if len(line) > column.characters:
            keep = line[: column.characters].rpartition(" ")[0]
            line, words = keep, []
            if not line:
                column.characters = 0
                break
        place_line(column, line, glyphs, style, rng, x + indent, room - indent, align, last=not words)
        _record(column, line)
        indent = 0


def _set_paragraph(column: Column, text: str, style: TextStyle, rng: Random) -> None:
    indent = min(style.indent, column.width // 4)
    _set_words(column, text.split(), style.glyphs, style, rng, column.x, column.width, style.align, indent)


def _set_heading(column: Column, heading: Heading, style: TextStyle, rng: Random) -> None:
    align = "center" if style.align == "center" or (heading.level == 0 and rng.random() < 0.6) else "left"
    bare = replace(style, hyphenate=False, spacing=0, leading=min(style.leading, 1.3))
    _set_words(column, heading.text.split(), style.heading, bare, rng, column.x, column.width, align)


def _set_fixed(column: Column, block: FixedLines, style: TextStyle, rng: Random) -> None:
    glyphs = style.fixed if block.monospaced else style.glyphs
    bare = replace(style, hyphenate=False)
    align = "left" if style.align == "justify" or block.monospaced else style.align
    for line in block.lines:
        _set_words(column, line.split(), glyphs, bare, rng, column.x, column.width, align)


def _set_items(column: Column, block: Items, style: TextStyle, rng: Random) -> None:
    hang = min(round(style.glyphs.size_px * rng.choice((0.0, 1.2, 2.0))), column.width // 5)
    bare = replace(style, hyphenate=False)
    for item in block.items:
        mark, _, body = item.partition(" ")
        room = column.width - hang
        if not _fits(column, style.glyphs):
            return
        if not hang or style.glyphs.width(f"{mark} ") > hang or style.glyphs.width(body) > room:
            _set_words(column, item.split(), style.glyphs, bare, rng, column.x, column.width, "left")
            continue
        if len(item) > column.characters:
            column.characters = 0
            return
        # The mark is to the left of its text, with a wider gap than a space.
        ink = style.glyphs.draw_cells(mark, style.spacing)
        column.sheet.place(ink.ink, column.x - ink.origin, column.y + style.glyphs.ascent - ink.baseline)
        body = " ".join(body.split())
        place_line(column, body, style.glyphs, replace(bare, spacing=0), rng, column.x + hang, room, "left")
        _record(column, f"{mark} {body}")


def _set_table(column: Column, table: Table, style: TextStyle, rng: Random) -> None:
    glyphs = style.glyphs
    glyphs.ensure("".join(chain.from_iterable(table.rows)))
    pad = max(glyphs.size_px // rng.choice((1, 2)), 7)
    widths = [max(glyphs.width(cell) for cell in cells) + 2 * pad for cells in zip(*table.rows, strict=True)]
    while len(widths) > 1 and sum(widths) > column.width:
        widths.pop()
    if sum(widths) > column.width:
        return
    spare = rng.random() * (column.width - sum(widths)) / len(widths)
    widths = [width + int(spare) for width in widths]
    aligns = ["left", *(rng.choice(("left", "right")) for _ in widths[1:])]
    step = round(glyphs.size_px * max(style.leading, 1.25)) + (pad // 2 if style.ruled else 0)
    top = column.y
    for index, row in enumerate(table.rows):
        cells = row[: len(widths)]
        text = " ".join(cell for cell in cells if cell)
        if not _fits(column, glyphs) or len(text) > column.characters:
            break
        start, x = column.y, column.x
        if style.ruled:
            _rule_row(column, widths, start, index == 1 and table.header)
            column.y = start + pad // 4 + 2
        for cell, width, align in zip(cells, widths, aligns, strict=True):
            line_y = column.y
            place_line(column, cell, glyphs, replace(style, spacing=0, strokes=0), rng, x + pad, width - 2 * pad, align)
            column.y = line_y
            x += width
        _record(column, text)
        column.y = start + step
    if style.ruled and column.blocks[-1]:
        _rule_row(column, widths, column.y, False)
        if style.ruled > 1:
            x = column.x
            for width in [0, *widths]:
                x += width
                column.sheet.rule(x, top, x + 1, column.y + 1)
        column.y += 4


def _rule_row(column: Column, widths: list[int], y: int, strong: bool) -> None:
    column.sheet.rule(column.x, y, column.x + sum(widths), y + (2 if strong else 1))
