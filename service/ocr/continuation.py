"""Reading on where an answer was cut because it repeated itself: which parts of the page, and one result of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from service.engine.protocol import SequenceResult, SequenceTimings
from service.intake.limits import Box
from shared.contract.answer import FinishReason
from shared.contract.confidence import TokenScores
from shared.images.accounting import Account

MOST_PARTS = 4
"""With more unread places, a page is unlikely to consist of rows."""
_MARGIN = 0.6
"""Around a part, by its height, as a line needs paper around it."""
_MOST_MARGIN_PX = 40


def parts_to_read(account: Account, width_px: int, height_px: int) -> list[Box]:
    """Parts of a page to read on in, from top to bottom.

    Args:
        account: What of the page's print has been read.
        width_px: Of the page.
        height_px: Of the page.

    Returns:
        Boxes with some paper around the print; none if there are too many.
    """
    if len(account.unread) > MOST_PARTS:
        return []
    parts = []
    for x1, y1, x2, y2 in account.unread:
        margin = round(min(_MARGIN * (y2 - y1), _MOST_MARGIN_PX)) + 2
        parts.append(
            (max(0, x1 - margin), max(0, y1 - margin), min(width_px, x2 + margin), min(height_px, y2 + margin))
        )
    return parts


def separator(text: str) -> str:
    """What comes between an answer and that for the next part."""
    return "" if not text or text.endswith("\n") else "\n"


def joined(first: SequenceResult, rest: Sequence[SequenceResult]) -> SequenceResult:
    """One result of an answer and those for the parts that it left; they ended by themselves if the parts' did."""
    text, results, offsets = first.text, [first, *rest], [0]
    for result in rest:
        text += separator(text)
        offsets.append(len(text))
        text += result.text
    tokens = sum(result.completion_tokens for result in results)
    logs = sum(result.completion_tokens * math.log(max(result.confidence, 1e-9)) for result in results)
    ended = bool(rest) and all(result.finish_reason is FinishReason.STOP for result in rest)
    return replace(
        first,
        text=text,
        finish_reason=FinishReason.STOP if ended else first.finish_reason,
        confidence=math.exp(logs / tokens) if tokens else first.confidence,
        min_confidence=min(result.min_confidence for result in results),
        token_scores=_joined_scores(results, offsets),
        vision_tokens=sum(result.vision_tokens for result in results),
        prompt_tokens=sum(result.prompt_tokens for result in results),
        completion_tokens=tokens,
        timings=SequenceTimings(
            queue_s=sum(result.timings.queue_s for result in results),
            encode_s=sum(result.timings.encode_s for result in results),
            prefill_s=sum(result.timings.prefill_s for result in results),
            generate_s=sum(result.timings.generate_s for result in results),
        ),
    )


def _joined_scores(results: Sequence[SequenceResult], offsets: Sequence[int]) -> TokenScores | None:
    """Scores of all tokens, each answer's moved to where its text begins; None if an answer has none."""
    starts: list[int] = []
    ends: list[int] = []
    log_probabilities: list[float] = []
    alternatives: list[tuple[tuple[bytes, float], ...]] = []
    for result, offset in zip(results, offsets, strict=True):
        if result.token_scores is None:
            return None
        starts += [start + offset for start in result.token_scores.starts]
        ends += [end + offset for end in result.token_scores.ends]
        log_probabilities += result.token_scores.log_probabilities
        alternatives += result.token_scores.alternatives
    return TokenScores(tuple(starts), tuple(ends), tuple(log_probabilities), tuple(alternatives))
