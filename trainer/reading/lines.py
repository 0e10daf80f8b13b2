"""Reads a page by its lines, as the service does: canvases in batches, what cannot be told apart again in halves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shared.contract.confidence import TokenScores, joined
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import GeometryConfig
from shared.deepseek_ocr.line_views import view_of
from shared.deepseek_ocr.read_strips import ReadStrip, is_worth_another_look, surer, unsure_rows
from shared.images.canvases import EM_PX, LARGE_EM_PX, Strip, pack
from shared.images.strip_text import PROBED_CANVASES, PageText, Span, first_line, is_texture, lines_of, shows_text
from trainer.reading.generation import Generated

ReadCanvases = Callable[[Sequence[PageViews]], Sequence[Generated]]
"""Reads canvases, in their order."""


@dataclass(frozen=True, slots=True)
class LinesAnswer:
    """The text of a page, and the scores of its tokens where all answers have them."""

    text: str
    token_scores: TokenScores | None


def read_lines(
    strips: Sequence[Strip], geometry: GeometryConfig, read: ReadCanvases, enlarge: Callable[[], Sequence[Strip]]
) -> LinesAnswer:
    """Read a page's strips.

    Args:
        strips: In reading order.
        geometry: The checkpoint's.
        read: Reads canvases, in their order.
        enlarge: Gives the page's strips with print of `LARGE_EM_PX`, for a page that was not read surely.

    Returns:
        The page's text; a strip whose answer never ended has none.
    """
    page, is_unsure = _read_strips(strips, geometry, read, EM_PX, has_probe=True)
    if is_unsure:
        unsure = unsure_rows(page)
        larger = [strip for strip in enlarge() if strip.row in unsure]
        page = surer(page, _read_strips(larger, geometry, read, LARGE_EM_PX)[0])
    text = PageText()
    scores: list[TokenScores | None] = []
    for each in page:
        at = text.add(each.strip, each.text)
        scores.append(each.scores and each.scores.within(0, len(each.text), at))
    known = [each for each in scores if each is not None]
    return LinesAnswer(text.text, joined(known) if len(known) == len(scores) else None)


def _read_strips(
    strips: Sequence[Strip], geometry: GeometryConfig, read: ReadCanvases, em_px: float, *, has_probe: bool = False
) -> tuple[list[ReadStrip], bool]:
    """What is on strips, and with a probe whether they are worth another look."""
    found: list[ReadStrip | None] = [None] * len(strips)
    waiting: list[tuple[int, tuple[Strip, ...]]] = []
    for canvas in pack(strips, em_px) if strips else ():
        first = waiting[-1][0] + len(waiting[-1][1]) if waiting else 0
        waiting.append((first, canvas.strips))

    def read_all(parts: Sequence[tuple[int, tuple[Strip, ...]]]) -> list[Generated]:
        return list(read([view_of(pack(part, em_px)[0], geometry) for _, part in parts])) if parts else []

    probed, rest = (waiting[:PROBED_CANVASES], waiting[PROBED_CANVASES:]) if has_probe else (waiting, [])
    # The first canvases tell whether the page shows text.
    answers = read_all(probed)
    is_nothing = has_probe and is_texture(
        [shows_text(each.text, confidence_of(each.text, each.token_scores), has_ended=each.ended) for each in answers]
    )
    if is_nothing:
        for first, part in rest:
            found[first : first + len(part)] = [_read_strip(strip, answers[0], (0, 0)) for strip in part]
        waiting = probed
    is_unsure = has_probe and not is_nothing and is_worth_another_look([(a.text, a.token_scores) for a in answers])
    if not is_nothing:
        answers += read_all(rest)
    gives_up = is_nothing
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
                found[index] = replace(_read_strip(strips[index], answer, span), canvas=first)
        waiting, gives_up = again, False
        answers = read_all(waiting)
    return [each for each in found if each is not None], is_unsure


def _read_strip(strip: Strip, answer: Generated, span: Span) -> ReadStrip:
    start, end = span
    return ReadStrip(strip, answer.text[start:end], answer.token_scores and answer.token_scores.within(start, end))


def confidence_of(text: str, scores: TokenScores | None) -> float:
    """How sure a reader is of a text's print, as the service has it; 1 where it is not known."""
    mean = scores.mean_of_print(text) if scores else None
    return 1.0 if mean is None else math.exp(mean)
