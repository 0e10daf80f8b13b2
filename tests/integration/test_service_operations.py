"""Every operation of the service leaves a span, and every span is an operation of this list."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.telemetry.logs import JsonFormatter
from service.telemetry.tracing import UNTRACED
from tests.integration.test_service_webhooks import SECRET, receiver, settled
from tests.support.fake_engine import SteeredEngine
from tests.support.live_adapters import LiveService, live_service
from tests.support.service import eventually, png, running_service

pytestmark = pytest.mark.integration

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = PARENT[3:35]
OPERATIONS = {
    "receive": "the upload is received",
    "open": "a file is opened and its pages are counted",
    "queue": "a page waits for a place",
    "decode": "a page is decoded or rendered in an image process",
    "inference": "the engine has a page, from submission to its last token",
    "engine_queue": "a page waits in the engine",
    "encode": "the vision encoder reads a page",
    "prefill": "the decoder takes the page and the prompt",
    "generate": "the decoder writes",
    "render": "the answer is written in a format",
    "persist": "a sample or a page of a job is stored",
    "batch": "pages are in work together",
    "cascade": "a page is read again by the second model",
    "adapter.load": "a version of an adapter is taken into service",
    "adapter.verify": "its files are copied and checked",
    "adapter.place": "it is put into a slot",
    "adapter.canary": "a page is read with it",
    "job": "a job is read",
    "webhook": "the end of a job is announced",
}


@contextlib.asynccontextmanager
async def busy_service(folder: Path, spans: InMemorySpanExporter, webhooks: str) -> AsyncIterator[LiveService]:
    """A service with everything on, whose second reader is its adapter."""
    async with live_service(
        ocr_save_samples=True,
        ocr_privacy_allowed=True,
        sample_dir=folder / "samples",
        job_dir=folder / "jobs",
        job_webhook_origins=webhooks,
        job_webhook_secret=SECRET,
        cascade_model="invoices",
        cascade_min_confidence=1.0,
        app_options={"span_exporter": spans},
    ) as live:
        yield live


def named(spans: InMemorySpanExporter) -> dict[str, list[ReadableSpan]]:
    found: dict[str, list[ReadableSpan]] = defaultdict(list)
    for span in spans.get_finished_spans():
        found[span.name].append(span)
    return found


def targets(span: ReadableSpan) -> set[int]:
    return {link.context.span_id for link in span.links}


async def test_every_operation_is_a_span_and_every_span_an_operation(tmp_path: Path) -> None:
    spans = InMemorySpanExporter()
    async with receiver() as hook, busy_service(tmp_path, spans, hook.origin) as live:
        live.publish()
        await live.serves("invoices", 1)
        await live.answer("auto")
        await live.answer("invoices")
        await settled(live.service, hook.url)
        samples = live.service.services.samples
        assert samples is not None
        await eventually(lambda: samples.num_waiting == 0)
        await eventually(lambda: "deepsynth.webhook" in named(spans))
    inner = {name.removeprefix("deepsynth.") for name in named(spans) if name.startswith("deepsynth.")}
    assert inner == OPERATIONS.keys()
    by_id = {span.context.span_id: span for each in named(spans).values() for span in each if span.context}
    roots = {span.name for span in by_id.values() if span.parent is None and span.name.startswith("deepsynth.")}
    # These outlive a request, or have several as their cause.
    assert roots == {"deepsynth.batch", "deepsynth.adapter.load", "deepsynth.job", "deepsynth.webhook"}
    # No span has a parent that was never sent.
    assert [span.name for span in by_id.values() if span.parent and span.parent.span_id not in by_id] == []


async def test_pages_are_linked_with_their_batch_and_with_the_load_of_their_adapter() -> None:
    spans = InMemorySpanExporter()
    async with live_service(app_options={"span_exporter": spans}) as live:
        live.publish()
        await live.serves("invoices", 1)
        engine = live.service.engine
        engine.hold()
        reading = [asyncio.create_task(live.answer(model)) for model in (None, "invoices")]
        await eventually(lambda: engine.fake.stats().waiting + engine.fake.stats().running == 2)
        engine.release()
        await asyncio.gather(*reading)
    found = named(spans)
    (batch,) = (span for span in found["deepsynth.batch"] if len(span.links) == 2)
    (load,) = found["deepsynth.adapter.load"]
    pages = found["deepsynth.inference"]
    assert targets(batch) == {page.context.span_id for page in pages if page.context}
    assert batch.attributes is not None
    assert batch.attributes["deepsynth.batch.pages"] == 2
    for page in pages:
        adapted = (page.attributes or {})["gen_ai.request.model"] == "invoices@1"
        expected = [batch, load] if adapted else [batch]
        assert targets(page) == {span.context.span_id for span in expected if span.context}


async def test_stages_of_the_engine_fill_the_time_before_its_last_token() -> None:
    spans = InMemorySpanExporter()
    async with running_service(app_options={"span_exporter": spans}) as service:
        await service.ocr(png())
    found = named(spans)
    stages = [found[f"deepsynth.{name}"][0] for name in ("engine_queue", "encode", "prefill", "generate")]
    for before, after in pairwise(stages):
        assert before.end_time == after.start_time
    (page,) = found["deepsynth.inference"]
    times = [time or 0 for stage in stages for time in (stage.start_time, stage.end_time)]
    assert times[0] > 0
    assert times == sorted(times)
    assert times[-1] <= (page.end_time or 0)


async def test_sample_is_stored_in_the_trace_of_its_request(tmp_path: Path) -> None:
    spans = InMemorySpanExporter()
    options = {"ocr_save_samples": True, "ocr_privacy_allowed": True, "sample_dir": tmp_path}
    async with running_service(app_options={"span_exporter": spans}, **options) as service:
        await service.client.post("/ocr", files={"file": ("p.png", png())}, headers={"traceparent": PARENT})
        await eventually(lambda: "deepsynth.persist" in named(spans))
        assert await service.metric('deepsynth_stage_duration_seconds_count{stage="persist"}') == 1
    (stored,) = named(spans)["deepsynth.persist"]
    (request,) = named(spans)["POST /ocr"]
    assert stored.parent
    assert stored.context
    assert request.context
    assert stored.parent.span_id == request.context.span_id
    assert f"{stored.context.trace_id:032x}" == TRACE


async def test_every_route_is_traced_under_its_template() -> None:
    spans = InMemorySpanExporter()
    async with running_service(app_options={"span_exporter": spans}) as service:
        included = [each.original_router for each in service.app.routes if hasattr(each, "original_router")]
        routes = [route for router in included for route in router.routes if isinstance(route, APIRoute)]
        for route in routes:
            for method in route.methods:
                await service.client.request(method, re.sub(r"{.*?}", "secret", route.path))
    expected = {f"{method} {route.path}" for route in routes for method in route.methods}
    untraced = {f"GET /{name}" for name in UNTRACED.split(",")}
    assert untraced < expected
    assert {name for name in named(spans) if not name.startswith("deepsynth.")} == expected - untraced
    assert "secret" not in str([span.to_json() for span in spans.get_finished_spans()])


async def test_errors_and_log_lines_name_their_trace(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running_service(app_options={"span_exporter": InMemorySpanExporter()}) as service:
        refused = await service.client.post("/ocr", files={"file": b"junk"}, headers={"traceparent": PARENT})
        lines = [JsonFormatter().format(record) for record in caplog.records if record.getMessage() == "request"]
    assert refused.json()["trace_id"] == TRACE
    assert refused.json()["request_id"] == refused.headers["x-request-id"]
    assert len(lines) == 1
    async with running_service() as service:
        plain = await service.client.post("/ocr", files={"file": b"junk"}, headers={"traceparent": PARENT})
    # Without tracing there is no trace to look for.
    assert "trace_id" not in plain.json()


async def test_a_log_line_is_formatted_with_the_trace_that_is_current(caplog: pytest.LogCaptureFixture) -> None:
    class Formatted(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    lines: list[dict[str, object]] = []
    handler, logger = Formatted(), logging.getLogger("service")
    caplog.set_level(logging.INFO, "service")
    logger.addHandler(handler)
    try:
        async with running_service(app_options={"span_exporter": InMemorySpanExporter()}) as service:
            await service.client.post("/ocr", files={"file": ("p.png", png())}, headers={"traceparent": PARENT})
    finally:
        logger.removeHandler(handler)
    assert [line["trace_id"] for line in lines if line["message"] == "request"] == [TRACE]


async def test_an_engine_that_fails_leaves_an_error_type_and_ends_its_batch() -> None:
    spans = InMemorySpanExporter()
    engine = SteeredEngine()
    async with running_service(engine, app_options={"span_exporter": spans}) as service:
        engine.hold()
        reading = asyncio.create_task(service.ocr(png()))
        await eventually(lambda: engine.submitted)
        engine.lose()
        assert (await reading).status_code == 503
        await eventually(lambda: "deepsynth.batch" in named(spans))
    (page,) = named(spans)["deepsynth.inference"]
    assert (page.attributes or {})["error.type"] == "engine_lost"
    assert page.status.status_code.name == "ERROR"
