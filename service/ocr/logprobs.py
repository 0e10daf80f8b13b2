"""The tokens of a document's text with their log probabilities, for clients that look at those themselves."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from service.ocr.reader import LABELS_ARE_TEXT, PAGE_BREAK, PageResult
from shared.contract.confidence import TokenScores
from shared.contract.prompts import Task
from shared.deepseek_ocr.grounding import parse_grounded

CERTAIN = 0.0
"""Of text that the service adds."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of a text, or several that share a character."""

    text: str
    log_probability: float
    alternatives: tuple[tuple[bytes, float], ...] = ()
    """As `TokenScores` has them; of one token alone."""


def document_pieces(pages: Sequence[PageResult], task: Task) -> list[Piece]:
    """The tokens of a whole document.

    Args:
        pages: With token scores, their text as it was read.
        task: What was asked for.

    Returns:
        Pieces that joined are the document's text; the breaks between pages are certain.
    """
    pieces: list[Piece] = []
    for page in pages:
        if page.text:
            pieces += [Piece(PAGE_BREAK, CERTAIN)] if pieces else []
            pieces += _of_page(page, task)
    return pieces


def _of_page(page: PageResult, task: Task) -> list[Piece]:
    result = page.result
    assert result is not None
    assert result.token_scores is not None
    grounded = parse_grounded(
        result.text, page.width_px or 1, page.height_px or 1, labels_are_text=task in LABELS_ARE_TEXT
    )
    return text_pieces(page.text, result.text, grounded.sources, result.token_scores)


def text_pieces(text: str, answer: str, sources: Sequence[tuple[int, int]], tokens: TokenScores) -> list[Piece]:
    """Cut a text where its tokens end.

    Args:
        text: The clean text, not empty.
        answer: The model's answer that it was made from.
        sources: Start and end of the parts of the answer that the text consists of, in order; white space may differ.
        tokens: Of the answer.

    Returns:
        Pieces that joined are the text. Tokens that share a character are one piece, with the sum of their logarithms.
        Tokens of which nothing is in the text, such as those of boxes, are left out.
    """
    places = _places(text, answer, sources)
    if places is None:
        return [Piece(text, math.fsum(tokens.log_probabilities))]
    starts: list[int] = []
    spans: list[tuple[int, int]] = []
    for index, span in _spans(places, tokens):
        if spans and span[0] < spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], span[1]))
            continue
        # White space of the service's own goes with what follows it.
        starts.append(_skipped(places, index) if starts else 0)
        spans.append(span)
    ends = [*starts[1:], len(text)]
    return [
        Piece(
            text[start:end],
            math.fsum(tokens.log_probabilities[first:last]),
            tokens.alternatives[first] if tokens.alternatives and last == first + 1 else (),
        )
        for start, end, (first, last) in zip(starts, ends, spans, strict=True)
    ] or [Piece(text, CERTAIN)]


def _places(text: str, answer: str, sources: Sequence[tuple[int, int]]) -> list[int | None] | None:
    """Where each character of the text is in the answer, None for white space; None if they have other characters."""
    if text == answer:
        return list(range(len(text)))
    solid = [place for start, end in sources for place in range(start, end) if not answer[place].isspace()]
    shown = [place for place, character in enumerate(text) if not character.isspace()]
    if [answer[place] for place in solid] != [text[place] for place in shown]:
        return None
    places: list[int | None] = [None] * len(text)
    for place, source in zip(shown, solid, strict=True):
        places[place] = source
    return places


def _spans(places: Sequence[int | None], tokens: TokenScores) -> Iterator[tuple[int, tuple[int, int]]]:
    """Each character's index, and the tokens that have a share in it."""
    for index, place in enumerate(places):
        if place is not None:
            yield index, (bisect_right(tokens.ends, place), bisect_left(tokens.starts, place + 1))


def _skipped(places: Sequence[int | None], index: int) -> int:
    """The first of the characters without a place before this one."""
    while index and places[index - 1] is None:
        index -= 1
    return index
