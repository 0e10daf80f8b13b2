"""From a reading to the wire's answer."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from service.ocr.reader import DocumentReading, PageReading
from service.schemas import OcrAnswer, PageAnswer, RegionAnswer, TimingsAnswer, UsageAnswer

_CONFIDENCE_DIGITS = 4
_MS_DIGITS = 2


def _ms(seconds: float) -> float:
    return round(seconds * 1000, _MS_DIGITS)


def to_answer(reading: DocumentReading, *, receive_s: float, latency_s: float) -> OcrAnswer:
    """Serialise a reading.

    Args:
        reading: What was read.
        receive_s: Time the upload took, in seconds.
        latency_s: Time since the request arrived, in seconds.

    Returns:
        The answer.
    """
    results = [page.result for page in reading.pages]

    def total(value: Callable[[PageReading], float]) -> float:
        return sum(value(page) for page in reading.pages)

    return OcrAnswer(
        id=f"ocr-{uuid.uuid4().hex}",
        text=reading.text,
        model_id=reading.model_id,
        seed=reading.seed,
        finish_reason=reading.finish_reason.value,
        confidence=round(reading.confidence, _CONFIDENCE_DIGITS),
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
        pages=[_page(page) for page in reading.pages],
    )


def _page(page: PageReading) -> PageAnswer:
    return PageAnswer(
        page=page.page,
        text=page.text,
        width_px=page.width_px,
        height_px=page.height_px,
        finish_reason=page.result.finish_reason.value,
        confidence=round(page.result.confidence, _CONFIDENCE_DIGITS),
        regions=[RegionAnswer(label=region.label, box_px=region.box_px, text=region.text) for region in page.regions],
    )
