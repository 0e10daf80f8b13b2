"""Paragraphs and tables that go on across pages, joined in the text of a document.

A paragraph goes on where its last line on a page ends without a sentence's end and the next page begins with a small
letter, or where a word is divided. A table goes on where the next page begins with a table of as many columns that has
no head of its own. Headers, footers, page numbers and figures that the model labels as such may lie between; they
come after what was joined. Nothing is lost except the hyphen of a divided word and a table's repeated head.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from service.ocr import labels
from service.ocr.outcome import PageStatus
from service.ocr.pieces import pieces_of
from service.ocr.reader import PAGE_BREAK, PageResult
from service.ocr.tables import TableFormat, html_places, only_table
from shared.contract.answer import FinishReason

_AROUND = frozenset(labels.REPEATED) | labels.FOOTNOTES | labels.FIGURES | labels.FIGURE_CAPTIONS
"""Labels of what is printed around the text of a page, or floats in it."""
_PARAGRAPHS = frozenset({None, "text", "list", "references"})
"""Labels of what may go on; None where the model gives none."""
_BREAK = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE_END = frozenset(".!?:;\u2026\u3002\uff01\uff1f\u061f\u06d4\u0964")
_CLOSING = "\"')]}\u201d\u2019\u00bb\u203a*_"
_HYPHENS = "-\u2010\u00ad"
_HEADING = re.compile(r"#{1,6}\s|\s*[|>]|\s*(?:[-*+\u2022]|\d{1,3}[.)])\s|!\[")
"""Beginnings of headings, tables, quotations, list items and images."""

Kind = Literal["word", "paragraph", "table"]


@dataclass(frozen=True, slots=True)
class Join:
    """Something that goes on from one page to the next."""

    page: int
    next_page: int
    kind: Kind
    """`word`: a paragraph, within a divided word whose hyphen was removed."""


@dataclass(slots=True)
class _Block:
    """A paragraph, a table, or another part of the text."""

    text: str
    label: str | None
    page: int
    """Where it ends."""
    after: str
    """White space up to the next block."""

    @property
    def is_body(self) -> bool:
        return bool(self.text) and self.label not in _AROUND


def join_pages(pages: Sequence[PageResult]) -> tuple[str, tuple[Join, ...]]:
    """The text of a document.

    Args:
        pages: In order.

    Returns:
        The text, and what was joined in it. Pages that do not follow each other in the file are never joined.
    """
    blocks: list[_Block] = []
    joins: list[Join] = []
    previous: PageResult | None = None
    for page in pages:
        if not page.text:
            previous = None
            continue
        found = _blocks(page)
        if blocks:
            blocks[-1].after = PAGE_BREAK
        last = next((block for block in reversed(blocks) if block.is_body), None)
        first = next((block for block in found if block.is_body), None)
        if last is not None and first is not None and previous is not None and _goes_on(previous, page, last):
            joined = _joined(last, first)
            if joined is not None:
                kind, last.text = joined
                last.page = page.page
                # The rest of its page follows what it was joined to.
                last.after = PAGE_BREAK if last is not blocks[-1] or first is not found[0] else first.after
                found.remove(first)
                joins.append(Join(previous.page, page.page, kind))
        blocks += found
        previous = page
    return "".join(block.text + block.after for block in blocks).strip(), tuple(joins)


def _goes_on(page: PageResult, following: PageResult, last: _Block) -> bool:
    """Whether a block is the end of its page, read to its end, and another page follows at once."""
    is_next = following.page == page.page + 1 and last.page == page.page
    return is_next and page.status is PageStatus.OK and page.finish_reason is FinishReason.STOP


def _blocks(page: PageResult) -> list[_Block]:
    blocks: list[_Block] = []
    for piece in pieces_of(page.text, page.regions):
        body = piece.text.rstrip()
        after = piece.text[len(body) :]
        start = 0
        # A table may have blank lines in it.
        tables = list(html_places(body))
        for found in _BREAK.finditer(body):
            if any(begin < found.start() < stop for begin, stop in tables):
                continue
            blocks.append(_Block(body[start : found.start()], piece.label, page.page, found.group()))
            start = found.end()
        blocks.append(_Block(body[start:], piece.label, page.page, after))
    return blocks


def _joined(last: _Block, first: _Block) -> tuple[Kind, str] | None:
    above, below = only_table(last.text), only_table(first.text)
    if above is not None and below is not None:
        table = above[0].followed_by(below[0])
        if table is None:
            return None
        written = table.to_html() if above[1] is TableFormat.HTML else table.to_markdown()
        return None if written is None else ("table", written)
    if above is not None or below is not None or not {last.label, first.label} <= _PARAGRAPHS:
        return None
    return _joined_text(last.text, first.text, is_labelled=last.label == first.label == "text")


def _joined_text(above: str, below: str, *, is_labelled: bool) -> tuple[Kind, str] | None:
    last_line = above.rpartition("\n")[2].rstrip()
    # A line without letters may be a page number.
    if not any(character.isalpha() for character in last_line) or _HEADING.match(below) or above.startswith("#"):
        return None
    is_small = below[0].islower()
    if len(last_line) > 1 and last_line[-1] in _HYPHENS and last_line[-2].isalpha() and is_small:
        return "word", above.rstrip()[:-1] + below
    ended = last_line.rstrip(_CLOSING)
    if not ended or ended[-1] in _SENTENCE_END:
        return None
    # Scripts without small letters: only the model's labels tell a paragraph from a heading.
    if not is_small and not (is_labelled and unicodedata.category(below[0]) == "Lo"):
        return None
    if unicodedata.east_asian_width(above[-1]) == unicodedata.east_asian_width(below[0]) == "W":
        return "paragraph", above + below
    # Where lines are those of the page, the last one is a line of its own.
    return "paragraph", f"{above}\n{below}" if "\n" in above else f"{above} {below}"
