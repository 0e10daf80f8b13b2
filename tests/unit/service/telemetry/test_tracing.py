from __future__ import annotations

import socket
import threading

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracer, SpanKind

from service.telemetry import tracing as module
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


def test_a_collector_that_says_nothing_does_not_hold_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHUTDOWN_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracing = Tracing(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces", version="1")
        with tracing.tracer.start_as_current_span("page"):
            pass
        tracing.shutdown()
        # It still waits for the collector, and `shutdown` did not.
        (flushing,) = [thread for thread in threading.enumerate() if thread.name == "spans"]
        # Let it end: a thread that outlives its collector writes of that while other tests run.
        connection, _ = silent.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            flushing.join(60)
        assert not flushing.is_alive()
