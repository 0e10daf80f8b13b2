"""The JSON answer to a document that was read."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Literal

from service.engine.protocol import SequenceTimings
from service.ocr.reader import DocumentResult, PageResult
from service.schemas import OcrAnswer, PageAnswer, PageError, RegionAnswer, TimingsAnswer, UsageAnswer

_CONFIDENCE_DIGITS = 4
_MS_DIGITS = 2


def _ms(seconds: float) -> float:
    return round(seconds * 1000, _MS_DIGITS)


def _rounded(confidence: float | None) -> float | None:
    return None if confidence is None else round(confidence, _CONFIDENCE_DIGITS)


def to_answer(document: DocumentResult, *, receive_s: float, latency_s: float) -> OcrAnswer:
    """The answer; `receive_s` is the upload's time, `latency_s` the time since the request arrived."""
    results = document.results

    def stage(seconds: Callable[[SequenceTimings], float]) -> float:
        return _ms(sum(seconds(result.timings) for result in results))

    return OcrAnswer(
        id=f"ocr-{uuid.uuid4().hex}",
        status="partial" if document.is_partial else "ok",
        text=_well_formed(document.text),
        model_id=document.model_id,
        seed=document.seed,
        finish_reason=document.finish_reason.value,
        confidence=_rounded(document.confidence),
        latency_ms=_ms(latency_s),
        timings_ms=TimingsAnswer(
            receive=_ms(receive_s),
            decode=_ms(sum(page.decode_s for page in document.pages)),
            queue=_ms(
                sum(page.slot_wait_s for page in document.pages) + sum(result.timings.queue_s for result in results)
            ),
            encode=stage(lambda timings: timings.encode_s),
            prefill=stage(lambda timings: timings.prefill_s),
            generate=stage(lambda timings: timings.generate_s),
        ),
        usage=UsageAnswer(
            vision_tokens=sum(result.vision_tokens for result in results),
            prompt_tokens=sum(result.prompt_tokens for result in results),
            completion_tokens=sum(result.completion_tokens for result in results),
        ),
        pages=[to_page_answer(page) for page in document.pages],
    )


def to_page_answer(page: PageResult) -> PageAnswer:
    """What the answer says of one page."""
    error, finish_reason = page.error, page.finish_reason
    return PageAnswer(
        page=page.page,
        status=page.status.value,
        error=None
        if error is None
        else PageError(code=error.code, title=error.title, retryable=error.retryable, **error.public),
        warnings=_warnings(page),
        text=_well_formed(page.text),
        width_px=page.width_px,
        height_px=page.height_px,
        turned_degrees=page.turned_degrees,
        finish_reason=None if finish_reason is None else finish_reason.value,
        confidence=_rounded(page.confidence),
        coverage=_rounded(None if page.account is None else page.account.coverage),
        unread=list(page.account.unread) if page.account else [],
        regions=[
            RegionAnswer(label=_well_formed(region.label), box_px=region.box_px, text=_well_formed(region.text))
            for region in page.regions
        ],
    )


def _warnings(page: PageResult) -> list[Literal["damaged_image", "partly_read"]]:
    warnings: list[Literal["damaged_image", "partly_read"]] = []
    if page.is_damaged:
        warnings.append("damaged_image")
    if page.is_partly_read:
        warnings.append("partly_read")
    return warnings


def _well_formed(text: str) -> str:
    """Text that UTF-8 can encode: lone surrogates, which no Unicode text has, become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
