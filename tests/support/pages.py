"""Pages as a model with boxes reads them, without an engine."""

from __future__ import annotations

from service.engine.protocol import SequenceResult, SequenceTimings
from service.ocr.outcome import PageStatus
from service.ocr.reader import PageResult
from shared.contract.answer import FinishReason
from shared.deepseek_ocr.grounding import parse_grounded


def tag(label: str, place: int = 0) -> str:
    """The mark of a box, in another row of the page for each `place`."""
    return f"<|ref|>{label}<|/ref|><|det|>[[10, {10 * place}, 900, {10 * place + 9}]]<|/det|>\n"


def grounded_page(answer: str, number: int = 1, *, reason: FinishReason = FinishReason.STOP) -> PageResult:
    """A page of 999 pixels that was read."""
    grounded = parse_grounded(answer, 999, 999)
    result = SequenceResult(
        "page", answer, reason, 0.9, 0.5, 1, 1, len(answer.split()), SequenceTimings(0.0, 0.0, 0.0, 0.0)
    )
    return PageResult(number, PageStatus.OK, 999, 999, text=grounded.text, regions=grounded.regions, result=result)
