"""Gives the words of a layout the confidences of the answer's words.

A layout has the page's text without Markdown's marks, so a word of it may be a part of a word of the text, as a cell of
a table is. Both have the same order.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from service.schemas import SpanAnswer

_REACH = 400
"""Code points in which a word is looked for: marks between two words are shorter, and a word that the layout has
changed must not take the place of one further down."""


def confidences_of(layout_words: Iterable[str], text: str, words: Sequence[SpanAnswer]) -> list[float | None]:
    """The lowest confidence of the words that each word of a layout is in.

    Args:
        layout_words: In the order of the text.
        text: Of the page.
        words: Of the page, with their confidences.

    Returns:
        One for each word of the layout; None where it is not found.
    """
    starts, ends = [word.start for word in words], [word.end for word in words]
    at = 0
    found: list[float | None] = []
    for layout_word in layout_words:
        start = text.find(layout_word, at, at + _REACH + len(layout_word))
        if start < 0:
            found.append(None)
            continue
        at = start + len(layout_word)
        within = words[bisect_right(ends, start) : bisect_left(starts, at)]
        found.append(min((word.confidence for word in within), default=None))
    return found
