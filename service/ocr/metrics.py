"""Metrics and traces of reading documents; the only writer of the page and sequence metrics."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from opentelemetry.trace import Span, Status, StatusCode, Tracer

from service.engine.protocol import SequenceResult
from service.errors import DeepSynthError
from service.intake.pages import DecodedPage
from service.ocr.outcome import PageStatus
from service.telemetry.metrics import Metrics


class SequenceObserver:
    """Observes one sequence from submission to its last token."""

    def __init__(self, metrics: Metrics, span: Span) -> None:
        self._metrics = metrics
        self._span = span
        self._start_s = time.monotonic()
        self.is_finished = False

    def first_text(self) -> None:
        """Record the time to the first text."""
        self._metrics.histogram("time_to_first_token_seconds").observe(time.monotonic() - self._start_s)
        self._span.add_event("first_token")

    def finished(self, result: SequenceResult) -> None:
        """Record tokens, stages and finish reason."""
        self.is_finished = True
        metrics, timings = self._metrics, result.timings
        metrics.histogram("inference_latency_seconds").observe(time.monotonic() - self._start_s)
        metrics.counter("pages_total").inc()
        metrics.counter("input_tokens_total").inc(result.vision_tokens + result.prompt_tokens)
        metrics.counter("output_tokens_total").inc(result.completion_tokens)
        metrics.counter("output_characters_total").inc(len(result.text))
        metrics.counter("finished_total").labels(result.finish_reason).inc()
        metrics.histogram("queue_wait_seconds").observe(timings.queue_s)
        stages = metrics.histogram("stage_duration_seconds")
        stages.labels("encode").observe(timings.encode_s)
        stages.labels("prefill").observe(timings.prefill_s)
        stages.labels("generate").observe(timings.generate_s)
        if result.completion_tokens:
            per_token_s = timings.generate_s / result.completion_tokens
            metrics.histogram("time_per_output_token_seconds").observe(per_token_s)
        self._span.set_attributes(
            {
                "gen_ai.usage.input_tokens": result.vision_tokens + result.prompt_tokens,
                "gen_ai.usage.output_tokens": result.completion_tokens,
                "gen_ai.response.finish_reasons": [str(result.finish_reason)],
            }
        )


class TelemetryObserver:
    """Observes the stages of a request."""

    def __init__(self, metrics: Metrics, tracer: Tracer) -> None:
        self._metrics = metrics
        self._tracer = tracer

    @contextlib.contextmanager
    def _span(self, name: str) -> Iterator[Span]:
        # Exceptions are not recorded, since their text may quote a page.
        with self._tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as span:
            try:
                yield span
            except DeepSynthError as error:
                span.set_attribute("error.type", error.code)
                if error.status >= 500:
                    span.set_status(Status(StatusCode.ERROR))
                raise

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start_s = time.monotonic()
        try:
            yield
        finally:
            self._metrics.histogram("stage_duration_seconds").labels(name).observe(time.monotonic() - start_s)

    @contextlib.contextmanager
    def receiving(self) -> Iterator[Callable[[int], None]]:
        """Around receiving an upload; call the yielded function with the file's size in bytes."""
        with self._span("deepsynth.receive") as span, self._stage("receive"):

            def note(num_bytes: int) -> None:
                self._metrics.histogram("upload_bytes").observe(num_bytes)
                span.set_attribute("deepsynth.upload.bytes", num_bytes)

            yield note

    @contextlib.contextmanager
    def opening(self) -> Iterator[Callable[[int], None]]:
        """Around opening a document; call the yielded function with its number of pages."""
        with self._span("deepsynth.open") as span:
            yield lambda num_pages: span.set_attribute("deepsynth.page.count", num_pages)

    @contextlib.contextmanager
    def decoding(self) -> Iterator[Callable[[DecodedPage], None]]:
        """Around decoding one image; call the yielded function with the page."""
        with self._span("deepsynth.decode") as span, self._stage("decode"):

            def note(page: DecodedPage) -> None:
                pixels = page.width_px * page.height_px
                self._metrics.histogram("image_pixels").labels(page.file_format).observe(pixels)
                if page.ink.is_blank:
                    self._metrics.counter("blank_input_total").inc()
                span.set_attributes(
                    {
                        "deepsynth.image.format": page.file_format,
                        "deepsynth.image.width_px": page.width_px,
                        "deepsynth.image.height_px": page.height_px,
                        "deepsynth.page.number": page.page,
                    }
                )

            yield note

    def page_finished(self, status: PageStatus) -> None:
        """Count what became of a page."""
        self._metrics.counter("page_outcomes_total").labels(status).inc()

    def read_again(self, *, has_failed: bool) -> None:
        """Count a page that the first model was unsure of."""
        self._metrics.counter("cascade_pages_total").labels("failed" if has_failed else "read_again").inc()

    @contextlib.contextmanager
    def rendering(self, name: str) -> Iterator[None]:
        """Around writing a document in an output format."""
        with self._span("deepsynth.render") as span:
            span.set_attribute("deepsynth.format", name)
            yield

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a page slot."""
        with self._span("deepsynth.queue"), self._stage("queue"):
            yield

    @contextlib.contextmanager
    def inference(self, model_id: str) -> Iterator[SequenceObserver]:
        """Around one sequence."""
        with self._span("deepsynth.inference") as span:
            span.set_attribute("gen_ai.request.model", model_id)
            sequence = SequenceObserver(self._metrics, span)
            status = "cancelled"
            try:
                yield sequence
                status = "ok"
            except DeepSynthError:
                status = "failed"
                raise
            finally:
                status = "ok" if sequence.is_finished else status
                self._metrics.counter("inference_total").labels(self._metrics.model_label(model_id), status).inc()
