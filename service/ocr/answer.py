"""The JSON answer to a document that was read."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from service.ocr.reader import DocumentResult, PageResult
from service.schemas import OcrAnswer, PageAnswer, RegionAnswer, TimingsAnswer, UsageAnswer

_CONFIDENCE_DIGITS = 4
_MS_DIGITS = 2


def _ms(seconds: float) -> float:
    return round(seconds * 1000, _MS_DIGITS)


def to_answer(document: DocumentResult, *, receive_s: float, latency_s: float) -> OcrAnswer:
    """The answer; `receive_s` is the upload's time, `latency_s` the time since the request arrived."""
    results = [page.result for page in document.pages]

    def total(value: Callable[[PageResult], float]) -> float:
        return sum(value(page) for page in document.pages)

    return OcrAnswer(
        id=f"ocr-{uuid.uuid4().hex}",
        text=document.text,
        model_id=document.model_id,
        seed=document.seed,
        finish_reason=document.finish_reason.value,
        confidence=round(document.confidence, _CONFIDENCE_DIGITS),
        latency_ms=_ms(latency_s),
        timings_ms=TimingsAnswer(
            receive=_ms(receive_s),
            decode=_ms(total(lambda page: page.decode_s)),
            queue=_ms(total(lambda page: page.slot_wait_s + page.result.timings.queue_s)),
            encode=_ms(total(lambda page: page.result.timings.encode_s)),
            prefill=_ms(total(lambda page: page.result.timings.prefill_s)),
            generate=_ms(total(lambda page: page.result.timings.generate_s)),
        ),
        usage=UsageAnswer(
            vision_tokens=sum(result.vision_tokens for result in results),
            prompt_tokens=sum(result.prompt_tokens for result in results),
            completion_tokens=sum(result.completion_tokens for result in results),
        ),
        pages=[_page(page) for page in document.pages],
    )


def _page(page: PageResult) -> PageAnswer:
    return PageAnswer(
        page=page.page,
        text=page.text,
        width_px=page.width_px,
        height_px=page.height_px,
        finish_reason=page.result.finish_reason.value,
        confidence=round(page.result.confidence, _CONFIDENCE_DIGITS),
        regions=[RegionAnswer(label=region.label, box_px=region.box_px, text=region.text) for region in page.regions],
    )
