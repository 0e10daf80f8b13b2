"""From the one answer to several pages that were read together, to the text and the result of each.

The model writes a mark before each page's text. Knows neither pages nor the engine's process.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace

from service.engine.protocol import SequenceResult, SequenceTimings
from shared.contract.answer import FinishReason
from shared.contract.confidence import TokenScores
from shared.contract.prompts import PAGE_MARK


class PageSplitter:
    """Cuts a growing answer at its marks; a mark that has only begun is held back.

    The first page has everything up to the second mark, the last one everything after its own. Pages whose mark never
    comes have no text.

    Args:
        num_pages: Pages of the pass.
    """

    def __init__(self, num_pages: int) -> None:
        self._num_pages = num_pages
        self._num_marks = 0
        self._held = ""

    @property
    def page(self) -> int:
        """The page that is being written, from 0."""
        return _page_after(self._num_marks, self._num_pages)

    def push(self, text: str) -> list[tuple[int, str]]:
        """Take more of the answer; returns the text that is certain now, in order, by page."""
        *whole, rest = (self._held + text).split(PAGE_MARK)
        self._held = _begun_mark(rest)
        found: list[tuple[int, str]] = []
        for piece in whole:
            found.append((self.page, piece))
            self._num_marks += 1
        found.append((self.page, rest.removesuffix(self._held)))
        return [(page, piece) for page, piece in found if piece]

    def finish(self) -> list[tuple[int, str]]:
        """What was held back; no more follows."""
        held, self._held = self._held, ""
        return [(self.page, held)] if held else []


def split_result(result: SequenceResult, vision_tokens: Sequence[int]) -> list[SequenceResult | None]:
    """The result of each page, so that each has its own confidence and end.

    Tokens are counted with the page that they begin in, those of the prompt and all times with the first page, and the
    vision tokens of pages that the answer did not reach with the last one that it did: sums are those of the pass.

    Args:
        result: Of the pass, with the scores of its tokens.
        vision_tokens: Of each page.

    Returns:
        As many as pages; None for a page whose mark the answer does not have. Texts are without spacing at their ends.
    """
    scores = result.token_scores or TokenScores((), (), ())
    pages = _segments(result.text, len(vision_tokens))
    begun = (bisect_left(scores.starts, segments[0][0] - len(PAGE_MARK)) for segments in pages[1:])
    bounds = [0, *begun, len(scores.starts)]
    num_tokens_left, num_vision_left = result.completion_tokens, sum(vision_tokens)
    results: list[SequenceResult | None] = []
    for index, segments in enumerate(pages):
        is_first, is_last = index == 0, index == len(pages) - 1
        log_probabilities = scores.log_probabilities[bounds[index] : bounds[index + 1]]
        num_tokens = num_tokens_left if is_last else len(log_probabilities)
        num_vision = num_vision_left if is_last else vision_tokens[index]
        num_tokens_left -= num_tokens
        num_vision_left -= num_vision
        text = _joined(result.text, segments)
        results.append(
            replace(
                result,
                text=text.strip(),
                finish_reason=result.finish_reason if is_last else FinishReason.STOP,
                confidence=_mean(log_probabilities),
                min_confidence=math.exp(min(log_probabilities, default=-math.inf)),
                vision_tokens=num_vision,
                prompt_tokens=result.prompt_tokens if is_first else 0,
                completion_tokens=num_tokens,
                timings=result.timings if is_first else SequenceTimings(0.0, 0.0, 0.0, 0.0),
                token_scores=_scores_of(scores, segments, len(text) - len(text.lstrip())),
            )
        )
    return [*results, *[None] * (len(vision_tokens) - len(results))]


def _page_after(num_marks: int, num_pages: int) -> int:
    """The page, from 0, that is written after so many marks."""
    return min(max(num_marks - 1, 0), num_pages - 1)


def _segments(text: str, num_pages: int) -> list[list[tuple[int, int]]]:
    """Start and end of the parts of each page that the answer reached; marks are in none."""
    pages: list[list[tuple[int, int]]] = [[]]
    at = 0
    for num_marks, piece in enumerate(text.split(PAGE_MARK)):
        if _page_after(num_marks, num_pages) == len(pages):
            pages.append([])
        pages[-1].append((at, at + len(piece)))
        at += len(piece) + len(PAGE_MARK)
    return pages


def _joined(text: str, segments: Sequence[tuple[int, int]]) -> str:
    return "".join(text[start:end] for start, end in segments)


def _scores_of(scores: TokenScores, segments: Sequence[tuple[int, int]], num_cut: int) -> TokenScores:
    """Scores of the tokens with a share in the segments, placed in their joined text without its first characters."""
    starts: list[int] = []
    ends: list[int] = []
    log_probabilities: list[float] = []
    alternatives: list[tuple[tuple[bytes, float], ...]] = []
    at = -num_cut
    for start, end in segments:
        first, last = bisect_right(scores.ends, start), bisect_left(scores.starts, end)
        starts += [max(at + max(place - start, 0), 0) for place in scores.starts[first:last]]
        ends += [max(at + min(place, end) - start, 0) for place in scores.ends[first:last]]
        log_probabilities += scores.log_probabilities[first:last]
        alternatives += scores.alternatives[first:last]
        at += end - start
    return TokenScores(tuple(starts), tuple(ends), tuple(log_probabilities), tuple(alternatives))


def _mean(log_probabilities: Sequence[float]) -> float:
    """Geometric mean of the probabilities; 0 without any."""
    return math.exp(sum(log_probabilities) / len(log_probabilities)) if log_probabilities else 0.0


def _begun_mark(text: str) -> str:
    """The end of a text that a mark may begin with."""
    return next((PAGE_MARK[:size] for size in range(len(PAGE_MARK) - 1, 0, -1) if text.endswith(PAGE_MARK[:size])), "")
