"""The JSON answer to a document that was read."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from service.engine.protocol import SequenceTimings
from service.ocr.arrangement import Arranged
from service.ocr.reader import DocumentResult, PageResult
from service.schemas import (
    FigureAnswer,
    JoinAnswer,
    OcrAnswer,
    PageAnswer,
    PageError,
    RegionAnswer,
    TimingsAnswer,
    UsageAnswer,
)

_CONFIDENCE_DIGITS = 4
_MS_DIGITS = 2


def _ms(seconds: float) -> float:
    return round(seconds * 1000, _MS_DIGITS)


def _rounded(confidence: float | None) -> float | None:
    return None if confidence is None else round(confidence, _CONFIDENCE_DIGITS)


def to_answer(
    document: DocumentResult, *, receive_s: float, latency_s: float, arranged: Arranged | None = None
) -> OcrAnswer:
    """The answer to a document.

    Args:
        document: As it was read.
        receive_s: Time of its upload.
        latency_s: Time since the request arrived.
        arranged: The document as the client wants its text; None: as it was read.

    Returns:
        The answer.
    """
    arranged = arranged or Arranged(document.pages, document.text)
    wanted = arranged.wanted
    results = document.results

    def stage(seconds: Callable[[SequenceTimings], float]) -> float:
        return _ms(sum(seconds(result.timings) for result in results))

    return OcrAnswer(
        id=f"ocr-{uuid.uuid4().hex}",
        status="partial" if document.is_partial else "ok",
        text=_well_formed(arranged.text),
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
        pages=[to_page_answer(page) for page in arranged.pages],
        joins=[JoinAnswer(page=each.page, next_page=each.next_page, kind=each.kind) for each in arranged.joins]
        if wanted.join_pages
        else None,
        figures=[
            FigureAnswer(name=each.name, page=each.page, label=_well_formed(each.label), box_px=each.box_px, image=url)
            for each, url in arranged.figures
        ]
        if wanted.figures
        else None,
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
        warnings=["damaged_image"] if page.is_damaged else [],
        text=_well_formed(page.text),
        width_px=page.width_px,
        height_px=page.height_px,
        finish_reason=None if finish_reason is None else finish_reason.value,
        confidence=_rounded(page.confidence),
        regions=[
            RegionAnswer(label=_well_formed(region.label), box_px=region.box_px, text=_well_formed(region.text))
            for region in page.regions
        ],
    )


def _well_formed(text: str) -> str:
    """Text that UTF-8 can encode: lone surrogates, which no Unicode text has, become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
