from __future__ import annotations

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, Tracer

from service.telemetry.links import MAX_BATCH_PAGES, MAX_BATCH_S, MAX_LOADS, BatchSpans, LoadSpans


def traced() -> tuple[Tracer, InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("test"), exporter


def batches(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == "deepsynth.batch"]


def test_pages_at_the_same_time_share_a_span_that_ends_with_the_last() -> None:
    tracer, exporter = traced()
    spans = BatchSpans(tracer)
    first, second = tracer.start_span("page"), tracer.start_span("page")
    one, two = spans.join(first), spans.join(second)
    assert one is two
    spans.leave(one, 5)
    assert batches(exporter) == []
    spans.leave(two, 7)
    (batch,) = batches(exporter)
    assert dict(batch.attributes or {}) == {"deepsynth.batch.pages": 2, "gen_ai.usage.output_tokens": 12}
    assert [link.context for link in batch.links] == [first.get_span_context(), second.get_span_context()]
    assert batch.parent is None


def test_a_page_that_comes_after_the_last_one_begins_another() -> None:
    tracer, exporter = traced()
    spans = BatchSpans(tracer)
    for _ in range(2):
        spans.leave(spans.join(tracer.start_span("page")), 1)
    assert len(batches(exporter)) == 2


def test_a_busy_engine_gets_another_span_after_a_while_and_after_many_pages() -> None:
    now_s = [0.0]
    tracer, exporter = traced()
    spans = BatchSpans(tracer, clock=lambda: now_s[0])
    joined = [spans.join(tracer.start_span("page")) for _ in range(MAX_BATCH_PAGES + 1)]
    assert joined[0] is joined[-2] is not joined[-1]
    now_s[0] += MAX_BATCH_S + 0.1
    late = spans.join(tracer.start_span("page"))
    assert late is not joined[-1]
    for batch in [*joined, late]:
        spans.leave(batch, 0)
    assert sorted(len(batch.links) for batch in batches(exporter)) == [1, 1, MAX_BATCH_PAGES]


def test_pages_that_are_not_recorded_cost_nothing() -> None:
    tracer, exporter = traced()
    spans, loads = BatchSpans(tracer), LoadSpans()
    page = NonRecordingSpan(tracer.start_span("other").get_span_context())
    batch = spans.join(page)
    assert batch is None
    spans.leave(batch, 3)
    loads.note("invoices@1", page)
    recorded = tracer.start_span("page")
    loads.link("invoices@1", recorded)
    recorded.end()
    assert [span.links for span in exporter.get_finished_spans()] == [()]


def test_newest_loads_are_remembered() -> None:
    tracer, exporter = traced()
    loads = LoadSpans()
    for number in range(MAX_LOADS + 1):
        loads.note(f"invoices@{number}", tracer.start_span("load"))
    for number in (0, 1, MAX_LOADS):
        page = tracer.start_span(str(number))
        loads.link(f"invoices@{number}", page)
        page.end()
    assert [(span.name, len(span.links)) for span in exporter.get_finished_spans()] == [
        ("0", 0),
        ("1", 1),
        (str(MAX_LOADS), 1),
    ]
