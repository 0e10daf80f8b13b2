"""The field `pages`: which pages of a document to read, such as `1-3,7`."""

from __future__ import annotations

import re

from service.errors import InvalidFieldError, PageOutOfRangeError, TooManyPagesError

MAX_PAGE_NUMBER = 10_000
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")


def parse_pages(text: str, limit: int) -> tuple[int, ...]:
    """Read a selection.

    Args:
        text: Page numbers from 1 and ranges of them, separated by commas.
        limit: Most pages it may name.

    Returns:
        Page numbers in ascending order, each once.

    Raises:
        InvalidFieldError: It cannot be read.
        TooManyPagesError: It names more than `limit` pages.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise InvalidFieldError(public={"field": "pages", "expected": "page numbers such as 1-3,7"})
        first = int(match[1])
        last = int(match[2] or match[1])
        if not 1 <= first <= last <= MAX_PAGE_NUMBER:
            raise InvalidFieldError(
                public={"field": "pages", "expected": f"rising numbers from 1 to {MAX_PAGE_NUMBER}"}
            )
        if last - first >= limit:
            raise TooManyPagesError(public={"limit": limit})
        chosen.update(range(first, last + 1))
    if len(chosen) > limit:
        raise TooManyPagesError(public={"limit": limit})
    return tuple(sorted(chosen))


def select(selection: tuple[int, ...] | None, num_pages: int, limit: int) -> tuple[int, ...]:
    """Apply a selection to a document.

    Args:
        selection: What `parse_pages` read; None for every page.
        num_pages: Pages the document has.
        limit: Most pages of a document of this kind.

    Returns:
        Page numbers to read.

    Raises:
        PageOutOfRangeError: The document ends earlier.
        TooManyPagesError: There are more than `limit`.
    """
    pages = tuple(range(1, num_pages + 1)) if selection is None else selection
    if len(pages) > limit:
        raise TooManyPagesError(public={"limit": limit})
    if pages[-1] > num_pages:
        raise PageOutOfRangeError(public={"pages": num_pages})
    return pages
