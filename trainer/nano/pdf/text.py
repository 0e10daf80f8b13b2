"""What is written on a page of a born-digital PDF, where, and in which order; refuses pages whose text it cannot trust.

The text layer says what each character is and where it lies, and neither which words make a line nor which column
comes first. Words follow the file's order as long as it runs to the right or down; each such run is a block. Blocks are
then put into reading order by cutting the page along its white space, and a page whose file and whose white space tell
different orders is refused.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import pypdfium2 as pdfium  # type: ignore[import-untyped] # ships no types
import pypdfium2.raw as pdfium_c  # type: ignore[import-untyped]

from trainer.nano.corpus.charset import clean_text, shorten_runs

MAX_UNKNOWN_SHARE: Final = 0.04
"""Most of a page's words that may hold characters nano does not know; they are painted over."""
MAX_MOVED_SHARE: Final = 0.12
"""Most of a page's characters whose place the geometric order changes: running heads and feet, notes."""
MAX_PICTURE_SHARE: Final = 0.5
MAX_OVERLAP_SHARE: Final = 0.08
MIN_WORDS: Final = 12
ROOM: Final = 0.45
"""White space between two lines, as a share of their height, that counts as a blank line."""

_HYPHEN_AT_LINE_END: Final = 0x02
_SPELT_OUT: Final = str.maketrans(
    {
        "\ufb00": "ff", "\ufb01": "fi", "\ufb02": "fl", "\ufb03": "ffi", "\ufb04": "ffl", "\ufb05": "st",
        "\ufb06": "st", "\u2217": "*", "\u223c": "~", "\u02dc": "~", "\u02c6": "^", "\u2215": "/", "\u2223": "|",
        "\u2219": "·", "\u22c5": "·", "\uf0b7": "•", "\u25cf": "•",
    }
)  # fmt: skip
"""Ligatures, and characters that look like one nano knows."""


class RefusedPageError(ValueError):
    """The page's text cannot be trusted; the message says why in a word or two."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in points, y growing downwards from the page's upper edge."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def height(self) -> float:
        """In points."""
        return self.y1 - self.y0

    @property
    def area(self) -> float:
        """In square points; nothing where the box is inside out."""
        return max(self.x1 - self.x0, 0.0) * max(self.y1 - self.y0, 0.0)

    def joined(self, other: Box) -> Box:
        """The smallest box around both."""
        return Box(min(self.x0, other.x0), min(self.y0, other.y0), max(self.x1, other.x1), max(self.y1, other.y1))

    def holds(self, other: Box) -> bool:
        """Whether the other lies within this one."""
        return other.x0 >= self.x0 and other.y0 >= self.y0 and other.x1 <= self.x1 and other.y1 <= self.y1

    def shared(self, other: Box) -> float:
        """Area that both cover."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        return max(width, 0.0) * max(height, 0.0)


@dataclass(frozen=True, slots=True)
class Glyph:
    """A character of the text layer, or the letters of a ligature.

    Attributes:
        text: what it is; None where the file does not say.
        box: from the line's lower to its upper edge.
        size: of the font, in points.
        spaced: white space comes before it.
        upright: it is not turned.
    """

    text: str | None
    box: Box
    size: float
    spaced: bool
    upright: bool


@dataclass(frozen=True, slots=True)
class Word:
    """A word as printed; `text` is None where nano does not know all of its characters."""

    text: str | None
    box: Box
    size: float
    marks: tuple[tuple[float, float, str], ...]
    """Middle of each character, and the character."""


@dataclass(slots=True)
class Block:
    """Lines of words that the file tells one after another, to the right and down."""

    lines: list[list[Word]] = field(default_factory=list)

    @property
    def box(self) -> Box:
        """Around all words."""
        return _around(word.box for line in self.lines for word in line)

    @property
    def weight(self) -> int:
        """Characters of the block, at least one."""
        return max(sum(len(word.marks) for line in self.lines for word in line), 1)


@dataclass(frozen=True, slots=True)
class PageText:
    """A page's words in reading order, line by line and block by block, and what else lies on it.

    Attributes:
        width: of the page in points.
        height: likewise.
        blocks: the words; those without a text are to be painted over.
        pictures: pictures, whose content is unknown.
    """

    width: float
    height: float
    blocks: tuple[Block, ...]
    pictures: tuple[Box, ...]

    @property
    def words(self) -> list[Word]:
        """All words in reading order."""
        return [word for block in self.blocks for line in block.lines for word in line]

    @property
    def box(self) -> Box:
        """Around all words."""
        return _around(word.box for word in self.words)

    @property
    def small_line(self) -> float:
        """Height in points that nine tenths of the characters reach."""
        heights = sorted((word.box.height, len(word.marks)) for word in self.words)
        rest = 0.1 * sum(count for _, count in heights)
        for height, count in heights:
            rest -= count
            if rest <= 0:
                return max(height, 1.0)
        return 10.0

    def text(self, inside: Box | None = None, *, keep_runs: bool = False) -> str:
        """The truth: lines as printed, and a blank line where the page leaves room.

        Args:
            inside: where given, only words that lie in it.
            keep_runs: keep every dot of a leader; else three stand for all.

        Returns:
            The text; empty where no word is left.
        """
        parts: list[str] = []
        for block in self.blocks:
            above: Box | None = None
            for line in block.lines:
                words = [w for w in line if w.text and (inside is None or inside.holds(w.box))]
                if not words:
                    continue
                row = _around(word.box for word in words)
                if parts and (above is None or row.y0 - above.y1 > ROOM * min(row.height, above.height)):
                    parts.append("")
                row_text = " ".join(word.text or "" for word in words)
                parts.append(row_text if keep_runs else shorten_runs(row_text))
                above = row
        return "\n".join(parts)


def read_page(page: pdfium.PdfPage, clean: Callable[[str], str | None] = clean_text) -> PageText:
    """Read a page's words and put them in order.

    Args:
        page: upright, of any producer.
        clean: normalises a word; None for one whose characters are not wanted.

    Returns:
        What is written on it.

    Raises:
        RefusedPageError: the text layer is missing, broken, turned, mathematical or in no order that can be told.
    """
    if page.get_rotation():
        raise RefusedPageError("turned")
    width, height = page.get_size()
    left, bottom, right, top = page.get_cropbox()
    if abs(right - left - width) > 1 or abs(top - bottom - height) > 1:
        # pdfium does not look up boxes that a page inherits, and says US letter.
        if page.get_mediabox(fallback_ok=False) is not None:
            raise RefusedPageError("cropped")
        left, top = 0.0, height
    pictures = _pictures(page, left, top)
    if sum(box.area for box in pictures) > MAX_PICTURE_SHARE * width * height:
        raise RefusedPageError("picture")
    glyphs = _glyphs(page, left, top)
    words = make_words(glyphs, clean)
    if len(words) < MIN_WORDS:
        raise RefusedPageError("empty")
    if sum(word.text is None for word in words) > MAX_UNKNOWN_SHARE * len(words):
        raise RefusedPageError("characters")
    sheet = Box(-1, -1, width + 1, height + 1)
    if not all(sheet.holds(word.box) for word in words):
        raise RefusedPageError("outside")
    if any(word.box.shared(picture) > 0.2 * word.box.area for word in words for picture in pictures):
        raise RefusedPageError("text on a picture")
    blocks = reading_order(make_blocks(words))
    return PageText(width, height, tuple(blocks), tuple(pictures))


def make_words(glyphs: Sequence[Glyph], clean: Callable[[str], str | None] = clean_text) -> list[Word]:
    """Join characters to words where no white space, no gap and no other line parts them."""
    words: list[list[Glyph]] = []
    for glyph in glyphs:
        last = words[-1][-1] if words else None
        if (
            last is None
            or glyph.spaced
            or last.upright != glyph.upright
            or not _same_row(last.box, glyph.box)
            or not -0.6 < (glyph.box.x0 - last.box.x1) / max(last.size, 1.0) < 0.3
        ):
            words.append([])
        words[-1].append(glyph)
    return [_word(each, clean) for each in words]


def make_blocks(words: Sequence[Word]) -> list[Block]:
    """Group words in the file's order: to the right in a row, or down to a line below the block; else a new block."""
    blocks: list[Block] = []
    reach = Box(0, 0, 0, 0)
    for word in words:
        last = blocks[-1].lines[-1] if blocks else None
        if last is not None and _same_row(last[-1].box, word.box) and word.box.x0 > last[-1].box.x1 - 0.3 * word.size:
            last.append(word)
        elif last is not None and _follows(_around(each.box for each in last), reach, word):
            blocks[-1].lines.append([word])
        else:
            if blocks:
                # The next cell of a table's row: what stands above the row is a block of its own.
                lines = blocks[-1].lines
                row = next((i for i, line in enumerate(lines) if _same_row(line[-1].box, word.box)), 0)
                if row > 0 and word.box.x0 > lines[row][-1].box.x1:
                    blocks[-1:] = [Block(lines[:row]), Block(lines[row:])]
            blocks.append(Block([[word]]))
            reach = word.box
            continue
        reach = reach.joined(word.box)
    return blocks


def _follows(row: Box, reach: Box, word: Word) -> bool:
    """Whether a word begins the line below a row of a block; a column to the right or a cell to the left does not."""
    below = word.box.y0 > row.y1 - 0.35 * row.height and word.box.y0 > row.y0 + 0.5 * row.height
    return below and reach.x0 - 4 * word.size < word.box.x0 < reach.x1


def reading_order(blocks: Sequence[Block]) -> list[Block]:
    """Order blocks by cutting the page along white space, where that agrees with the file's order.

    Args:
        blocks: in the file's order.

    Returns:
        The same blocks as a person would read them.

    Raises:
        RefusedPageError: blocks overlap, no cut parts them, or the two orders differ by more than heads and feet.
    """
    boxes = [block.box for block in blocks]
    for i, box in enumerate(boxes):
        for other in boxes[:i]:
            if box.shared(other) > MAX_OVERLAP_SHARE * min(box.area, other.area):
                raise RefusedPageError("overlap")
    order = _cut(list(range(len(blocks))), boxes)
    weights = [blocks[i].weight for i in order]
    # The heaviest part of the page that keeps its order.
    best = list(weights)
    for i in range(len(order)):
        best[i] += max((best[j] for j in range(i) if order[j] < order[i]), default=0)
    if max(best) < (1 - MAX_MOVED_SHARE) * sum(weights):
        raise RefusedPageError("order")
    return [blocks[i] for i in order]


def line_key(line: str) -> str | None:
    """Key by which lines of evaluation pages are told: a hash of the letters and digits, None for short lines."""
    bare = "".join(character for character in line.casefold() if character.isalnum())
    return hashlib.sha256(bare.encode()).hexdigest()[:16] if len(bare) >= 24 else None


def _cut(members: list[int], boxes: Sequence[Box]) -> list[int]:
    """Order members by the cut that changes the file's order least; `members` ascend."""
    if len(members) == 1:
        return members
    options: list[tuple[int, int, list[list[int]]]] = []
    for first, last in (("y0", "y1"), ("x0", "x1")):
        parts = _parts(members, boxes, first, last)
        if len(parts) > 1:
            flat = [member for part in parts for member in part]
            swaps = sum(flat[i] > flat[j] for j in range(len(flat)) for i in range(j))
            options.append((swaps, len(options), parts))
    if not options:
        raise RefusedPageError("no cut")
    return [member for part in min(options)[2] for member in _cut(part, boxes)]


def _parts(members: list[int], boxes: Sequence[Box], first: str, last: str) -> list[list[int]]:
    parts: list[list[int]] = []
    end = -math.inf
    for member in sorted(members, key=lambda i: float(getattr(boxes[i], first))):
        start = getattr(boxes[member], first)
        # Boxes of lines reach a little beyond their letters.
        if start > end - 0.2 * min(boxes[member].height, 10.0) if first == "y0" else start > end:
            parts.append([])
        parts[-1].append(member)
        end = max(end, getattr(boxes[member], last))
    return [sorted(part) for part in parts]


def _same_row(a: Box, b: Box) -> bool:
    shared = min(a.y1, b.y1) - max(a.y0, b.y0)
    smaller, larger = sorted((a.height, b.height))
    return shared > (0.5 if smaller > 0.8 * larger else 0.3) * smaller


def _around(boxes: Iterable[Box]) -> Box:
    x0, y0, x1, y1 = zip(*((box.x0, box.y0, box.x1, box.y1) for box in boxes), strict=True)
    return Box(min(x0), min(y0), max(x1), max(y1))


def _word(glyphs: Sequence[Glyph], clean: Callable[[str], str | None]) -> Word:
    box = _around(glyph.box for glyph in glyphs)
    size = max(glyph.size for glyph in glyphs)
    letters = [glyph.text if glyph.upright else None for glyph in glyphs]
    text = None if None in letters else clean("".join(filter(None, letters)))
    marks: list[tuple[float, float, str]] = []
    for glyph in glyphs if text else ():
        known = clean(glyph.text or "") or ""
        step = (glyph.box.x1 - glyph.box.x0) / max(len(known), 1)
        middle = (glyph.box.y0 + glyph.box.y1) / 2
        marks += [(glyph.box.x0 + step * (i + 0.5), middle, character) for i, character in enumerate(known)]
    return Word(text if text and " " not in text else None, box, size, tuple(marks))


def _glyphs(page: pdfium.PdfPage, left: float, top: float) -> list[Glyph]:
    textpage = page.get_textpage()
    raw = textpage.raw
    glyphs: list[Glyph] = []
    spaced = True
    x0, x1, y0, y1 = (ctypes.c_double() for _ in range(4))
    loose = pdfium_c.FS_RECTF()
    for i in range(pdfium_c.FPDFText_CountChars(raw)):
        code = pdfium_c.FPDFText_GetUnicode(raw, i)
        if code == _HYPHEN_AT_LINE_END:
            code = ord("-")
        elif pdfium_c.FPDFText_IsGenerated(raw, i) == 1 or chr(code).isspace() or code == 0xAD:
            spaced = True
            continue
        broken = pdfium_c.FPDFText_HasUnicodeMapError(raw, i) == 1 or code < 0x20
        text = None if broken else chr(code).translate(_SPELT_OUT)
        pdfium_c.FPDFText_GetCharBox(raw, i, x0, x1, y0, y1)
        last = glyphs[-1] if glyphs else None
        if last is not None and not spaced and (x0.value - left, x1.value - left) == (last.box.x0, last.box.x1):
            # pdfium gives a ligature as its letters, all with the box of the whole.
            joined = None if text is None or last.text is None else last.text + text
            glyphs[-1] = replace(last, text=joined)
            continue
        pdfium_c.FPDFText_GetLooseCharBox(raw, i, ctypes.byref(loose))
        size = pdfium_c.FPDFText_GetFontSize(raw, i)
        angle = pdfium_c.FPDFText_GetCharAngle(raw, i)
        low, high = min(loose.bottom, y0.value), max(loose.top, y1.value)
        # Some fonts claim several lines for themselves: no line is much taller than its letters' size.
        if high - low > 1.6 * (y1.value - y0.value) + 1.2 * size:
            low, high = y0.value - 0.2 * size, y1.value + 0.2 * size
        box = Box(x0.value - left, top - high, x1.value - left, top - low)
        glyphs.append(Glyph(text, box, size, spaced, abs(math.sin(angle)) < 0.02 and math.cos(angle) > 0))
        spaced = False
    textpage.close()
    if not glyphs:
        raise RefusedPageError("no text")
    if sum(glyph.text is None for glyph in glyphs) > MAX_UNKNOWN_SHARE * len(glyphs):
        raise RefusedPageError("unmapped characters")
    if sum(not glyph.upright for glyph in glyphs) > MAX_UNKNOWN_SHARE * len(glyphs):
        raise RefusedPageError("turned text")
    return glyphs


def _pictures(page: pdfium.PdfPage, left: float, top: float) -> list[Box]:
    boxes = []
    for thing in page.get_objects(max_depth=4):
        if thing.type == pdfium_c.FPDF_PAGEOBJ_IMAGE:
            if thing.level:
                raise RefusedPageError("nested picture")
            x0, y0, x1, y1 = thing.get_bounds()
            boxes.append(Box(x0 - left, top - y1, x1 - left, top - y0))
    return boxes
