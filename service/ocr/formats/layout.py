"""Where a page's text is: blocks from the model's boxes, lines and words at estimated places in them.

The model gives boxes of blocks at most. Lines are spread evenly over the height of their block, a line that is far too
long for its block is wrapped, and counts of characters place words along their line. A page without boxes is one block.
"""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from service.ocr.formats.markup import plain_text, xml_text
from service.ocr.formats.word_confidence import confidences_of
from service.schemas import PageAnswer, RegionAnswer

BoxPx = tuple[int, int, int, int]
"""Left, top, right, bottom on the upright page."""

_CHARACTER_PER_PITCH = 0.42
"""Width of a narrow character by the distance of two lines: half an em, lines 1.2 em apart."""
_MIN_WRAPPED = 20
"""Characters of the shortest line that wrapping makes."""
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Word:
    """A word at its estimated place."""

    text: str
    box_px: BoxPx
    confidence: float | None = None
    """None where it is not known."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line at its estimated place; single spaces between words, which are in reading order."""

    text: str
    box_px: BoxPx
    is_rtl: bool
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A box of the model, or the page; without lines, a picture."""

    box_px: BoxPx
    lines: tuple[Line, ...]


def blocks_of(page: PageAnswer, *, is_markdown: bool) -> list[Block]:
    """The blocks of a page in reading order.

    Args:
        page: The page.
        is_markdown: Whether its text is Markdown, whose marks are left out.

    Returns:
        Blocks that together have all of the page's text, each piece once; none for a page without text.
    """
    if not page.width_px or not page.height_px:
        # It could not be decoded.
        return []
    size = page.width_px, page.height_px
    passages = list(_passages(page))
    blocks: list[Block] = []
    for index, (region, text) in enumerate(passages):
        box_px = _between(size, passages, index) if region is None else region.box_px
        plain = xml_text(plain_text(text, is_markdown=is_markdown))
        texts = [" ".join(line.split()) for line in plain.split("\n") if line.strip()]
        if texts or (region is not None and not region.text):
            known = region.words_px if region is not None else ()
            blocks.append(Block(box_px, tuple(_known_line(texts, box_px, known) or _lines(texts, box_px))))
    return _with_confidences(blocks, page) if page.words else blocks


def _with_confidences(blocks: list[Block], page: PageAnswer) -> list[Block]:
    texts = (word.text for block in blocks for line in block.lines for word in line.words)
    confidences = iter(confidences_of(texts, page.text, page.words or ()))
    return [
        replace(
            block,
            lines=tuple(
                replace(line, words=tuple(replace(word, confidence=next(confidences)) for word in line.words))
                for line in block.lines
            ),
        )
        for block in blocks
    ]


def _passages(page: PageAnswer) -> Iterator[tuple[RegionAnswer | None, str]]:
    """The page's text cut into the regions' texts, and what lies between them without a box.

    Compared without white space, which the answer's text has lost in part. A region whose text was placed with another
    box, as where one label has several, is left out.
    """
    text = page.text
    places = [place for place, character in enumerate(text) if not character.isspace()]
    solid = "".join(text[place] for place in places)
    places.append(len(text))
    at = 0
    previous: RegionAnswer | None = None
    for region in page.regions:
        key = "".join(region.text.split())
        found = solid.find(key, at)
        is_repeated = previous is not None and (previous.label, previous.text) == (region.label, region.text)
        previous = region
        if found < 0 or (key and is_repeated and found > at):
            continue
        if key and found > at:
            yield None, text[places[at] : places[found]]
        yield region, region.text
        if key:
            at = found + len(key)
    if at < len(solid):
        yield None, text[places[at] :]


def _between(size_px: tuple[int, int], passages: list[tuple[RegionAnswer | None, str]], index: int) -> BoxPx:
    """Where text without a box may be: between the boxes before and after it, else anywhere on the page."""
    before = next((region for region, _ in reversed(passages[:index]) if region is not None), None)
    after = next((region for region, _ in passages[index + 1 :] if region is not None), None)
    top = before.box_px[3] if before else 0
    bottom = after.box_px[1] if after else size_px[1]
    return (0, top, size_px[0], bottom) if top < bottom else (0, 0, size_px[0], size_px[1])


def _known_line(texts: list[str], box_px: BoxPx, words_px: Sequence[BoxPx]) -> list[Line]:
    """The line of a box whose words have boxes of their own; none where these are not as many as its words."""
    words = texts[0].split() if len(texts) == 1 else []
    if not words or len(words) != len(words_px):
        return []
    placed = tuple(Word(text, box) for text, box in zip(words, words_px, strict=True))
    return [Line(texts[0], box_px, _is_rtl(texts[0]), placed)]


def _lines(texts: list[str], box_px: BoxPx) -> Iterator[Line]:
    if not texts:
        return
    left, top, right, bottom = box_px
    width, height = right - left, bottom - top
    rows = [row for text in texts for row in _wrapped(text, width, height / len(texts))]
    widest = max(_advance(row) for row in rows)
    pitch = height / len(rows)
    for index, row in enumerate(rows):
        is_rtl = _is_rtl(row)
        length = width * _advance(row) / widest
        start, direction = (right, -1) if is_rtl else (left, 1)
        vertical = (round(top + pitch * index), round(top + pitch * (index + 1)))
        scale = direction * length / _advance(row)
        words = tuple(
            Word(
                found.group(),
                _box(start, scale, _advance(row[: found.start()]), _advance(row[: found.end()]), vertical),
            )
            for found in _WORD.finditer(row)
        )
        yield Line(row, _box(start, scale, 0, _advance(row), vertical), is_rtl, words)


def _box(start: int, scale: float, begin: int, end: int, vertical: tuple[int, int]) -> BoxPx:
    left, right = sorted((round(start + scale * begin), round(start + scale * end)))
    return left, vertical[0], right, vertical[1]


def _wrapped(text: str, width: int, pitch: float) -> list[str]:
    """A line cut into as many as its block has room for, if it is a whole paragraph."""
    estimate = math.sqrt(_advance(text) * _CHARACTER_PER_PITCH * pitch / max(width, 1))
    num_rows = min(round(estimate), len(text) // _MIN_WRAPPED)
    if num_rows <= 1:
        return [text]
    return textwrap.wrap(text, math.ceil(len(text) / num_rows), break_on_hyphens=False)


def _advance(text: str) -> int:
    """Width in narrow characters: those of East Asian scripts are twice as wide."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _is_rtl(text: str) -> bool:
    """By the first character with a direction (Unicode Standard Annex 9, rules P2 and P3)."""
    directions = (unicodedata.bidirectional(character) for character in text)
    return next((each for each in directions if each in {"L", "R", "AL"}), "L") != "L"
