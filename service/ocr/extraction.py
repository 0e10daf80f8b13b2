"""Parts that a client wants apart from a page's text: figures and tables with a link in their place, headers, footers.

Knows where each part is in the text, so that words keep their places. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from service.ocr.pieces import pieces_of
from service.ocr.reader import PAGE_BREAK, PageResult
from service.ocr.tables import TableFormat, find_tables


@dataclass(frozen=True, slots=True)
class Cut:
    """A part of a text to take out."""

    start: int
    end: int
    """The same as `start` for what has no text of its own, such as a figure."""
    link: str = ""
    """What is left in its place."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A part of a text that stays."""

    start: int
    """In the text."""
    end: int
    at: int
    """Where it begins in what is left."""

    def moved(self, start: int, end: int) -> int | None:
        """Where a span of the text begins in what is left; None if it is not in this part."""
        return self.at + start - self.start if self.start <= start and end <= self.end else None


@dataclass(frozen=True, slots=True)
class ExtractedTable:
    """A table that is taken out of a page."""

    name: str
    start: int
    """In the page's text."""
    end: int
    content: str
    """In the form that was asked for."""
    is_as_read: bool
    """Whether that is how the model wrote it."""


def cut_out(text: str, cuts: Sequence[Cut]) -> tuple[str, tuple[Kept, ...]]:
    """Take parts out of a text.

    Args:
        text: Of a page.
        cuts: In any order; what two of them share is taken out once.

    Returns:
        What is left, with blank lines around each cut, and where its parts are from; the text as it is without cuts.
    """
    if not cuts:
        return text, (Kept(0, len(text), 0),)
    left, kept, end = "", [], 0
    for cut in (*sorted(cuts, key=lambda cut: (cut.start, cut.end)), Cut(len(text), len(text))):
        body = text[end : cut.start]
        part = body.strip()
        if part:
            left += PAGE_BREAK if left else ""
            start = end + len(body) - len(body.lstrip())
            kept.append(Kept(start, start + len(part), len(left)))
            left += part
        if cut.link:
            left += (PAGE_BREAK if left else "") + cut.link
        end = max(end, cut.end)
    return left, tuple(kept)


def labelled(page: PageResult, labels: Collection[str]) -> list[Cut]:
    """The parts of a page's text that the model labelled so, in order."""
    found, at = [], 0
    for piece in pieces_of(page.text, page.regions):
        if piece.label in labels:
            found.append(Cut(at, at + len(piece.text)))
        at += len(piece.text)
    return found


def tables_of(page: PageResult, to: TableFormat, number: int, without: Sequence[Cut] = ()) -> list[ExtractedTable]:
    """The tables of a page that can be written in a form.

    Args:
        page: The page.
        to: The form.
        number: Of the first one.
        without: Parts of the text that are not looked at.

    Returns:
        Tables in order, with names such as `tbl-3.html`.
    """
    tables: list[ExtractedTable] = []
    for found in find_tables(page.text):
        content = found.written(to)
        if content is None or any(found.start < cut.end and cut.start < found.end for cut in without):
            continue
        extension = "html" if to is TableFormat.HTML else "md"
        name = f"tbl-{number + len(tables)}.{extension}"
        is_as_read = content == page.text[found.start : found.end]
        tables.append(ExtractedTable(name, found.start, found.end, content, is_as_read))
    return tables
