"""Reads a page by its lines, as the service does: canvases in batches, what cannot be told apart again in halves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.contract.confidence import TokenScores
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import GeometryConfig
from shared.deepseek_ocr.line_views import view_of
from shared.images.canvases import Strip, pack
from shared.images.strip_text import PROBED_CANVASES, PageText, Span, first_line, is_texture, lines_of, shows_text
from trainer.reading.generation import Generated


@dataclass(frozen=True, slots=True)
class LinesAnswer:
    """The text of a page, and the scores of its tokens where all answers have them."""

    text: str
    token_scores: TokenScores | None


def read_lines(
    strips: Sequence[Strip], geometry: GeometryConfig, read: Callable[[Sequence[PageViews]], Sequence[Generated]]
) -> LinesAnswer:
    """Read a page's strips.

    Args:
        strips: In reading order.
        geometry: The checkpoint's.
        read: Reads canvases, in their order.

    Returns:
        The page's text; a strip whose answer never ended has none.
    """
    found: list[tuple[Generated, Span] | None] = [None] * len(strips)
    waiting: list[tuple[int, tuple[Strip, ...]]] = []
    for canvas in pack(strips):
        first = waiting[-1][0] + len(waiting[-1][1]) if waiting else 0
        waiting.append((first, canvas.strips))
    probed, rest = waiting[:PROBED_CANVASES], waiting[PROBED_CANVASES:]
    # The first canvases tell whether the page shows text.
    answers = list(read([view_of(pack(part)[0], geometry) for _, part in probed]))
    gives_up = is_texture([shows_text(each.text, _confidence(each), has_ended=each.ended) for each in answers])
    if gives_up:
        nothing = answers[0], (0, 0)
        for first, part in rest:
            found[first : first + len(part)] = [nothing] * len(part)
        waiting = probed
    elif rest:
        answers += read([view_of(pack(part)[0], geometry) for _, part in rest])
    while waiting:
        again: list[tuple[int, tuple[Strip, ...]]] = []
        for (first, part), answer in zip(waiting, answers, strict=True):
            spans = lines_of(answer.text, len(part)) if answer.ended else None
            if gives_up and not answer.ended:
                spans = [(0, 0)] * len(part)
            if spans is None and len(part) > 1:
                middle = (len(part) + 1) // 2
                again += [(first, part[:middle]), (first + middle, part[middle:])]
                continue
            if spans is None:
                spans = [first_line(answer.text) if answer.ended else (0, 0)]
            for index, span in enumerate(spans, first):
                found[index] = answer, span
        waiting, gives_up = again, False
        answers = list(read([view_of(pack(part)[0], geometry) for _, part in waiting])) if waiting else []
    page, scores = PageText(), _Scores()
    for strip, entry in zip(strips, found, strict=True):
        assert entry is not None
        answer, (start, end) = entry
        scores.add(answer.token_scores, (start, end), page.add(strip, answer.text[start:end]))
    return LinesAnswer(page.text, scores.whole())


def _confidence(answer: Generated) -> float:
    """As the service has it; 1 where it is not known."""
    mean = answer.token_scores.mean_of_print(answer.text) if answer.token_scores else None
    return 1.0 if mean is None else math.exp(mean)


class _Scores:
    """Scores of the tokens of lines, at their places in a page's text."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, float]] | None = []

    def add(self, scores: TokenScores | None, span: Span, at: int) -> None:
        """Add a line's; `span` is where it is in the answer, `at` in the page's text."""
        if scores is None or self._rows is None:
            self._rows = None
            return
        begin, end = span
        rows = zip(scores.starts, scores.ends, scores.log_probabilities, strict=True)
        self._rows += [
            (at + max(low - begin, 0), at + min(high, end) - begin, log)
            for low, high, log in rows
            if low < end and high > begin
        ]

    def whole(self) -> TokenScores | None:
        """Of all lines; None if one had none."""
        if self._rows is None:
            return None
        starts, ends, logs = (tuple(row[column] for row in self._rows) for column in range(3))
        return TokenScores(starts, ends, logs)  # type: ignore[arg-type] # columns of one type each
