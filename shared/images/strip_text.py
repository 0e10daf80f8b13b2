"""From a reader's lines to the text of a page: which line is which strip's, and how strips join. Knows no pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from shared.images.canvases import Box, Strip

Span = tuple[int, int]
"""Start and end, in code points."""
_TOKENS_A_STRIP, _LEAST_TOKENS = 64, 40
"""A strip holds some 60 characters, of which few take a token each."""


def most_tokens(count: int) -> int:
    """Longest answer to a canvas of so many strips, in tokens; one that goes on is no text."""
    return _LEAST_TOKENS + _TOKENS_A_STRIP * count


PROBED_CANVASES = 8
"""As many of a page, from its beginning, tell whether it shows text."""
LEAST_CONFIDENCE = 0.4
"""Of an answer that is on the page: what nano invents for photos has 0.1 to 0.3, what it reads of scans 0.7 and more
(benchmarks/LOG.md)."""


def shows_text(answer: str, confidence: float, *, has_ended: bool, least: float = LEAST_CONFIDENCE) -> bool | None:
    """What the answer to a canvas says of it.

    Args:
        answer: The text.
        confidence: Of the answer, 0 to 1.
        has_ended: Whether it has an end.
        least: Confidence of an answer that is on the page.

    Returns:
        Whether there is print; None for an empty answer, as the canvas of a page may have nothing but dirt.
    """
    if has_ended and not answer.strip():
        return None
    return has_ended and confidence >= least


def is_texture(canvases: Sequence[bool | None]) -> bool:
    """Whether a page shows no text, so that no more of its canvases are read.

    Args:
        canvases: Of those that were probed, whether they show text.

    Returns:
        False for a single canvas, of which a hard line may be the reason.
    """
    known = [each for each in canvases if each is not None]
    return len(known) > 1 and 2 * sum(known) < len(known)


def lines_of(answer: str, count: int) -> list[Span] | None:
    """Find the line of each strip in the answer to a canvas.

    Args:
        answer: A line for each strip.
        count: Strips on the canvas.

    Returns:
        Where each line is, without white space around it; None where the answer has another number of lines, so that
        none can be trusted to be where it seems.
    """
    if count == 1 and "\n" in answer.strip():
        return None
    spans: list[Span] = []
    at = 0
    for line in (answer.strip("\n") if count == 1 else answer).split("\n"):
        start = at + len(line) - len(line.lstrip())
        spans.append((start, start + len(line.strip())))
        at += len(line) + 1
    if len(spans) == count:
        return spans
    # Room between strips may be read as that between blocks.
    written = [span for span in spans if span[0] < span[1]]
    return written if len(written) == count else None


def first_line(answer: str) -> Span:
    """The first line with text of an answer to a single strip, which can have no other."""
    for start in range(len(answer)):
        if not answer[start].isspace():
            end = answer.find("\n", start)
            end = len(answer) if end < 0 else end
            return start, start + len(answer[start:end].rstrip())
    return 0, 0


@dataclass(frozen=True, slots=True)
class TextLine:
    """A line of a page's text."""

    text: str
    box_px: Box
    words_px: tuple[Box, ...]
    """One for each word of the text; none where the print has too few gaps."""


class PageText:
    """A page's text, growing strip by strip in reading order."""

    def __init__(self) -> None:
        self.text = ""
        self.lines: list[tuple[int, TextLine]] = []
        """With the place of each in the text."""
        self._last: Strip | None = None

    def add(self, strip: Strip, text: str) -> int:
        """Add a strip's text.

        Args:
            strip: The next one.
            text: One line, without white space around it; may be empty.

        Returns:
            Where its text begins in the page's.
        """
        if not text:
            return len(self.text)
        last, self._last = self._last, strip
        if last is not None and last.row == strip.row:
            start = len(self.text) + 1
            self.text += f" {text}"
            at, line = self.lines[-1]
            words_px = word_boxes(strip.parts_px, len(text.split()))
            words_px = line.words_px + words_px if line.words_px and words_px else ()
            joined = TextLine(f"{line.text} {text}", _around(line.box_px, strip.box_px), words_px)
            self.lines[-1] = at, joined
            return start
        if last is not None:
            self.text += "\n" if last.block == strip.block else "\n\n"
        start = len(self.text)
        self.text += text
        words_px = word_boxes(strip.parts_px, len(text.split()))
        self.lines.append((start, TextLine(text, strip.box_px, words_px)))
        return start


def word_boxes(parts_px: Sequence[Box], count: int) -> tuple[Box, ...]:
    """Boxes of words: the parts of a line's print joined over its narrowest gaps.

    Args:
        parts_px: From left to right.
        count: Words of its text.

    Returns:
        As many boxes; none where there are fewer parts.
    """
    if not 0 < count <= len(parts_px):
        return ()
    gaps = [right[0] - left[2] for left, right in pairwise(parts_px)]
    widest = sorted(range(len(gaps)), key=lambda place: -gaps[place])[: count - 1]
    words: list[Box] = []
    start = 0
    for end in [*sorted(widest), len(parts_px) - 1]:
        word = parts_px[start]
        for part in parts_px[start + 1 : end + 1]:
            word = _around(word, part)
        words.append(word)
        start = end + 1
    return tuple(words)


def page_text(strips: Sequence[Strip], texts: Sequence[str]) -> PageText:
    """The text of a page.

    Args:
        strips: In reading order.
        texts: Of each, one line.

    Returns:
        Strips of one row are joined by a space, blocks parted by a blank line.
    """
    page = PageText()
    for strip, text in zip(strips, texts, strict=True):
        page.add(strip, text)
    return page


def _around(one: Box, other: Box) -> Box:
    return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])
