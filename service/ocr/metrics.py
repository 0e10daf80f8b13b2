"""Metrics and traces of reading documents; the only writer of the page and sequence metrics."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from opentelemetry.trace import Span, Tracer

from service.engine.protocol import SequenceResult, SequenceTimings
from service.errors import DeepSynthError
from service.intake.pages import DecodedPage
from service.ocr.outcome import PageStatus
from service.telemetry.links import BatchSpans, LoadSpans
from service.telemetry.metrics import Metrics
from service.telemetry.spans import Noted, operation, record, step


class SequenceObserver:
    """Observes one sequence from submission to its last token."""

    def __init__(self, metrics: Metrics, tracer: Tracer, span: Span) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._span = span
        self.output_tokens = 0
        self._start_s = time.monotonic()
        self.is_finished = False

    def first_text(self) -> None:
        """Record the time to the first text."""
        self._metrics.histogram("time_to_first_token_seconds").observe(time.monotonic() - self._start_s)
        self._span.add_event("first_token")

    def finished(self, result: SequenceResult) -> None:
        """Record tokens, stages and finish reason."""
        self.is_finished = True
        self.output_tokens = result.completion_tokens
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
        if self._span.is_recording():
            self._trace_stages(timings)

    def _trace_stages(self, timings: SequenceTimings) -> None:
        """Spans of what the engine's process did, laid end to end before the last token: it reports durations alone."""
        stages = {
            "engine_queue": timings.queue_s,
            "encode": timings.encode_s,
            "prefill": timings.prefill_s,
            "generate": timings.generate_s,
        }
        begin_ns = time.time_ns() - sum(int(seconds * 1e9) for seconds in stages.values())
        for name, seconds in stages.items():
            end_ns = begin_ns + int(seconds * 1e9)
            record(self._tracer, f"deepsynth.{name}", self._span, begin_ns, end_ns)
            begin_ns = end_ns


class TelemetryObserver:
    """Observes the stages of a request."""

    def __init__(self, metrics: Metrics, tracer: Tracer, loads: LoadSpans | None = None) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._loads = loads or LoadSpans()
        self._batches = BatchSpans(tracer)

    def _span(self, name: str) -> contextlib.AbstractContextManager[Span]:
        return operation(self._tracer, name)

    def _step(self, name: str) -> contextlib.AbstractContextManager[Noted]:
        return step(self._tracer, name)

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
        with self._step("deepsynth.receive") as span, self._stage("receive"):

            def note(num_bytes: int) -> None:
                self._metrics.histogram("upload_bytes").observe(num_bytes)
                span.set_attributes({"deepsynth.upload.bytes": num_bytes})

            yield note

    @contextlib.contextmanager
    def opening(self) -> Iterator[Callable[[int], None]]:
        """Around opening a document; call the yielded function with its number of pages."""
        with self._step("deepsynth.open") as span:
            yield lambda num_pages: span.set_attributes({"deepsynth.page.count": num_pages})

    @contextlib.contextmanager
    def decoding(self) -> Iterator[Callable[[DecodedPage], None]]:
        """Around decoding one image; call the yielded function with the page."""
        with self._step("deepsynth.decode") as span, self._stage("decode"):

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

    def reading_again(self) -> contextlib.AbstractContextManager[Span]:
        """Around reading a page with the second model."""
        return self._span("deepsynth.cascade")

    def read_again(self, *, has_failed: bool) -> None:
        """Count a page that the first model was unsure of."""
        self._metrics.counter("cascade_pages_total").labels("failed" if has_failed else "read_again").inc()

    @contextlib.contextmanager
    def rendering(self, name: str) -> Iterator[None]:
        """Around writing a document in an output format."""
        with self._step("deepsynth.render") as span, self._stage("render"):
            span.set_attributes({"deepsynth.format": name})
            yield

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a page slot."""
        with self._step("deepsynth.queue"), self._stage("queue"):
            yield

    @contextlib.contextmanager
    def inference(self, model_id: str) -> Iterator[SequenceObserver]:
        """Around one sequence."""
        with self._span("deepsynth.inference") as span:
            span.set_attribute("gen_ai.request.model", model_id)
            self._loads.link(model_id, span)
            batch = self._batches.join(span)
            sequence = SequenceObserver(self._metrics, self._tracer, span)
            status = "cancelled"
            try:
                yield sequence
                status = "ok"
            except DeepSynthError:
                status = "failed"
                raise
            finally:
                self._batches.leave(batch, sequence.output_tokens)
                status = "ok" if sequence.is_finished else status
                self._metrics.counter("inference_total").labels(self._metrics.model_label(model_id), status).inc()
