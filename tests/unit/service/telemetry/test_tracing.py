from __future__ import annotations

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracer, SpanKind

from service.telemetry.tracing import Tracing


def test_tracing_is_off_without_an_endpoint() -> None:
    tracing = Tracing(endpoint=None, version="1")
    assert isinstance(tracing.tracer, NoOpTracer)
    assert tracing.provider is None
    tracing.shutdown()


def test_only_listed_attributes_leave() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(endpoint=None, version="1", exporter=exporter)
    with tracing.tracer.start_as_current_span("deepsynth.decode") as span:
        span.set_attributes({"deepsynth.image.format": "png", "http.url": "http://x/?q=secret", "note": "secret"})
        span.record_exception(ValueError("secret"))
    (sent,) = exporter.get_finished_spans()
    assert sent.attributes == {"deepsynth.image.format": "png"}
    assert [dict(event.attributes or {}) for event in sent.events] == [{"exception.type": "ValueError"}]
    assert sent.resource.attributes["service.name"] == "deepsynth-ocr"
    tracing.shutdown()


def test_old_http_names_are_renamed_and_unmatched_paths_left_out() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(endpoint=None, version="1", exporter=exporter)
    attributes = {"http.method": "GET", "http.status_code": 404, "http.target": "/secret"}
    tracing.tracer.start_span("GET /secret", kind=SpanKind.SERVER, attributes=attributes).end()
    (sent,) = exporter.get_finished_spans()
    assert sent.name == "GET"
    assert sent.attributes == {"http.request.method": "GET", "http.response.status_code": 404}
    tracing.shutdown()
