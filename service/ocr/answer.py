"""The JSON answer to a document that was read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from service.engine.protocol import SequenceTimings
from service.errors import DeepSynthError
from service.ocr.arrangement import Arranged
from service.ocr.confidence import CONFIDENCE_DIGITS, Granularity, PageConfidence, Span, mean_of
from service.ocr.reader import DocumentResult, PageResult
from service.schemas import (
    FigureAnswer,
    JoinAnswer,
    OcrAnswer,
    PageAnswer,
    PageError,
    PageWarning,
    RegionAnswer,
    SpanAnswer,
    TimingsAnswer,
    UsageAnswer,
)

_MS_DIGITS = 2


def _ms(seconds: float) -> float:
    return round(seconds * 1000, _MS_DIGITS)


def _rounded(confidence: float | None) -> float | None:
    return None if confidence is None else round(confidence, CONFIDENCE_DIGITS)


def to_answer(
    document: DocumentResult, answer_id: str, *, receive_s: float, latency_s: float, arranged: Arranged | None = None
) -> OcrAnswer:
    """The answer to a document.

    Args:
        document: As it was read.
        answer_id: By which the client can refer to it.
        receive_s: Time of its upload.
        latency_s: Time since the request arrived.
        arranged: The document as the client wants its text; None: as it was read.

    Returns:
        The answer.
    """
    arranged = arranged or Arranged(document.pages, document.text)
    results = document.results

    def stage(seconds: Callable[[SequenceTimings], float]) -> float:
        return _ms(sum(seconds(result.timings) for result in results))

    return OcrAnswer(
        id=answer_id,
        status="partial" if document.is_partial else "ok",
        text=well_formed(arranged.text),
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
        joins=to_joins(arranged),
        figures=to_figures(arranged),
    )


def to_joins(arranged: Arranged) -> list[JoinAnswer] | None:
    """What was joined across pages; None if that was not asked for."""
    if not arranged.wanted.join_pages:
        return None
    return [JoinAnswer(page=each.page, next_page=each.next_page, kind=each.kind) for each in arranged.joins]


def to_figures(arranged: Arranged) -> list[FigureAnswer] | None:
    """The figures that were cut out; None if that was not asked for."""
    if not arranged.wanted.figures:
        return None
    return [
        FigureAnswer(name=each.name, page=each.page, label=well_formed(each.label), box_px=each.box_px, image=url)
        for each, url in arranged.figures
    ]


def to_page_answer(page: PageResult) -> PageAnswer:
    """What the answer says of one page."""
    error, finish_reason = page.error, page.finish_reason
    return PageAnswer(
        page=page.page,
        status=page.status.value,
        error=None if error is None else to_page_error(error),
        model_id=page.model_id,
        warnings=list(_warnings(page)),
        text=well_formed(page.text),
        width_px=page.width_px,
        height_px=page.height_px,
        turned_degrees=page.turned_degrees,
        finish_reason=None if finish_reason is None else finish_reason.value,
        confidence=_rounded(page.confidence),
        coverage=_rounded(None if page.account is None else page.account.coverage),
        unread=list(page.account.unread) if page.account else [],
        regions=list(_regions(page)),
        **({} if page.words is None else _words(page.text, page.words)),
    )


def _warnings(page: PageResult) -> Iterator[PageWarning]:
    if page.is_damaged:
        yield "damaged_image"
    if page.is_partly_read:
        yield "partly_read"
    if page.words is not None and page.words.has_low_accuracy:
        yield "low_accuracy"
    if page.second_failed:
        yield "second_reading_failed"


def _regions(page: PageResult) -> Iterator[RegionAnswer]:
    is_fine = page.words is not None and page.words.granularity is not Granularity.PAGE
    words = page.words.regions if page.words is not None and is_fine else [()] * len(page.regions)
    for region, within in zip(page.regions, words, strict=True):
        yield RegionAnswer(
            label=well_formed(region.label),
            box_px=region.box_px,
            text=well_formed(region.text),
            confidence=_rounded(mean_of(within)),
            words_px=region.words_px,
        )


def _words(text: str, words: PageConfidence) -> dict[str, Any]:
    """The answer's members about words."""
    is_finest = words.granularity is Granularity.WORD
    return {
        "calibrated": words.is_calibrated,
        "word_accuracy": _rounded(words.word_accuracy),
        "lines": _spans(text, words.lines) if is_finest else None,
        "words": _spans(text, words.words) if is_finest else None,
        "doubtful_words": None if words.doubtful_words is None else _spans(text, words.doubtful_words),
        "doubtful_digits": None if words.doubtful_digits is None else _spans(text, words.doubtful_digits),
    }


def _spans(text: str, spans: Iterable[Span]) -> list[SpanAnswer]:
    return [
        # Without checks: a page may have thousands, all of them ours.
        SpanAnswer.model_construct(
            text=well_formed(text[span.start : span.end]),
            start=span.start,
            end=span.end,
            line=span.line,
            confidence=round(span.confidence, CONFIDENCE_DIGITS),
        )
        for span in spans
    ]


def to_page_error(error: DeepSynthError) -> PageError:
    """An error as an answer contains it."""
    return PageError(code=error.code, title=error.title, retryable=error.retryable, **error.public)


def well_formed(text: str) -> str:
    """Text that UTF-8 can encode: lone surrogates, which no Unicode text has, become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
