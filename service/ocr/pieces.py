"""A page's text cut where the model saw something new, and put together again after some of it was changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from service.ocr.reader import PageResult
from shared.deepseek_ocr.grounding import Region, tidied


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a page's text; all of them joined are the text."""

    text: str
    """With the white space that follows."""
    regions: tuple[Region, ...] = ()
    """Where it is, of one label; none for text outside all boxes."""

    @property
    def label(self) -> str | None:
        """The model's, where it gave one."""
        return self.regions[0].label if self.regions else None


def pieces_of(text: str, regions: Sequence[Region]) -> list[Piece]:
    """Cut a page.

    Args:
        text: Of the page.
        regions: Of the page, in the order of their places in the text.

    Returns:
        A piece for each region, or for several in a row with the same text at the same place, and for text between.
    """
    pieces: list[Piece] = []
    end = 0
    for region in regions:
        last = pieces[-1].regions[-1] if pieces and pieces[-1].regions else None
        if last is not None and (last.label, last.text, last.start) == (region.label, region.text, region.start):
            pieces[-1] = replace(pieces[-1], regions=(*pieces[-1].regions, region))
            continue
        start = max(region.start, end)
        if text[end:start]:
            pieces.append(Piece(text[end:start]))
        end = _end(text, start, region.text)
        pieces.append(Piece(text[start:end], (region,)))
    return [*pieces, Piece(text[end:])] if text[end:] else pieces


def _end(text: str, start: int, of_region: str) -> int:
    """Where a region's text ends, with the white space that follows; only white space may differ."""
    at = start
    for character in of_region:
        if character.isspace():
            continue
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text) or text[at] != character:
            break
        at += 1
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def with_pieces(page: PageResult, pieces: Iterable[Piece]) -> PageResult:
    """Put a page together again.

    Args:
        page: The page.
        pieces: What is left of its own, changed or not.

    Returns:
        The page with their text, and with their regions at their new places.
    """
    text, starts, regions = "", [], []
    for piece in pieces:
        begin = len(text) + len(piece.text) - len(piece.text.lstrip())
        starts += [begin] * len(piece.regions)
        regions += [replace(region, text=piece.text.strip()) for region in piece.regions]
        text += piece.text
    whole, starts = tidied(text, starts)
    placed = tuple(replace(region, start=start) for region, start in zip(regions, starts, strict=True))
    return replace(page, text=whole, regions=placed)
