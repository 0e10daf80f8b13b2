from __future__ import annotations

import asyncio

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracer, StatusCode, get_current_span

from service.errors import DeadlineError, InvalidHostError
from service.telemetry.spans import operation


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
