"""What people should know of pages that were read, in a header where the answer itself cannot say it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from service.schemas import PageAnswer

NOTES_HEADER = "x-ocr-pages"
"""On answers that are not JSON: pages that failed, are unreadable, were cut or have warnings."""
MOST_NOTED = 50
"""Pages in the header, so that it fits the buffers of proxies."""
_NOTED = re.compile(r"([1-9][0-9]{0,8}) (ok|unreadable|failed)((?: [a-z0-9_]{1,40}){0,8})")


@dataclass(frozen=True, slots=True)
class PageNote:
    """A page that is not simply read or blank."""

    page: int
    """Number in the document, from 1."""
    status: str
    """`ok`, `unreadable` or `failed`."""
    words: tuple[str, ...] = ()
    """The code of its error, or its warnings, and `length` or `repetition` if its text was cut."""


def notes_of(pages: Sequence[PageAnswer]) -> list[PageNote]:
    """What is to be told of the pages of an answer, in their order."""
    notes: list[PageNote] = []
    for page in pages:
        is_cut = page.status == "ok" and page.finish_reason not in {"stop", None}
        code = [page.error.code] if page.error is not None else []
        words = *code, *page.warnings, *([str(page.finish_reason)] if is_cut else [])
        if words or page.status in {"unreadable", "failed"}:
            notes.append(PageNote(page.page, page.status, words))
    return notes


def to_header(notes: Sequence[PageNote]) -> str:
    """Notes as a header's value, such as `3 failed undecodable_file, 5 ok partly_read`; `...` after the first 50."""
    shown = [" ".join((str(note.page), note.status, *note.words)) for note in notes[:MOST_NOTED]]
    return ", ".join([*shown, "..."] if len(notes) > MOST_NOTED else shown)


def from_header(value: str) -> list[PageNote]:
    """Notes that `to_header` wrote; what cannot be read is left out, since another version may say more."""
    found = (_NOTED.fullmatch(part.strip()) for part in value.split(","))
    return [PageNote(int(each[1]), each[2], tuple(each[3].split())) for each in found if each is not None]
