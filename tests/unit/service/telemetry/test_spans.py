from __future__ import annotations

import asyncio
import contextlib

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    NonRecordingSpan,
    NoOpTracer,
    SpanContext,
    StatusCode,
    TraceFlags,
    get_current_span,
    use_span,
)

from service.errors import DeadlineError, InternalError, InvalidFieldError, InvalidHostError
from service.telemetry.spans import operation, step
from service.telemetry.tracing import Tracing


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (DeadlineError("page 3"), "deadline_exceeded", StatusCode.ERROR),
        (InvalidHostError("page 3"), "invalid_host", StatusCode.UNSET),
        (ValueError("page 3"), "ValueError", StatusCode.ERROR),
        (asyncio.CancelledError("page 3"), None, StatusCode.UNSET),
    ],
)
def test_an_error_is_noted_by_its_code_or_type_alone(
    error: BaseException, kind: str | None, status: StatusCode
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with pytest.raises(type(error)), operation(provider.get_tracer("test"), "step"):
        raise error
    (span,) = exporter.get_finished_spans()
    assert (span.attributes or {}).get("error.type") == kind
    assert span.status.status_code is status
    assert not span.events
    assert "page 3" not in span.to_json()


def test_without_tracing_the_spans_around_stay_current_and_errors_pass() -> None:
    provider = TracerProvider()
    with provider.get_tracer("test").start_as_current_span("around") as around:
        with pytest.raises(DeadlineError), operation(NoOpTracer(), "step"):
            raise DeadlineError
        with operation(NoOpTracer(), "outer"), operation(NoOpTracer(), "inner") as span:
            assert not span.is_recording()
            assert get_current_span() is around


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    return Tracing(endpoint=None, version="1", exporter=exporter)


def told(span: ReadableSpan) -> tuple[object, ...]:
    """All that an exporter writes, without ids and times."""
    assert span.context is not None
    assert span.parent is not None
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time <= span.end_time
    assert span.instrumentation_scope is not None
    return (
        span.parent.span_id,
        span.context.trace_id,
        span.context.trace_flags,
        span.kind,
        dict(span.attributes or {}),
        span.status.status_code,
        span.resource,
        span.instrumentation_scope.name,
    )


@pytest.mark.parametrize("error", [None, InternalError(), InvalidFieldError(), ValueError("secret")])
def test_a_step_is_what_an_operation_is(tracing, exporter, error: Exception | None) -> None:
    with operation(tracing.tracer, "request"):
        for around in (operation, step):
            expected = contextlib.nullcontext() if error is None else pytest.raises(type(error))
            with expected, around(tracing.tracer, "part") as span:
                span.set_attributes({"deepsynth.format": "json"})
                if error is not None:
                    raise error
    first, second, _ = exporter.get_finished_spans()
    assert told(first) == told(second)
    assert first.context.span_id != second.context.span_id
    assert (second.status.status_code is StatusCode.ERROR) == isinstance(error, InternalError | ValueError)


def test_a_step_without_a_parent_is_a_trace(tracing, exporter) -> None:
    with step(tracing.tracer, "part"):
        pass
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


def test_no_step_of_a_request_that_is_not_recorded(tracing, exporter) -> None:
    skipped = NonRecordingSpan(SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(0)))
    with use_span(skipped), step(tracing.tracer, "part") as span:
        span.set_attributes({"deepsynth.format": "json"})
    with step(NoOpTracer(), "part") as span:
        span.set_attributes({"deepsynth.format": "json"})
    assert exporter.get_finished_spans() == ()
