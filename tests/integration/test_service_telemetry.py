"""Metrics, spans and logs of the assembled service: they add up, and nothing of a document is in them."""

from __future__ import annotations

import logging

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from service.routes.playground import WEB
from service.telemetry.logs import JsonFormatter
from service.telemetry.tracing import ALLOWED
from tests.support.pdf import make_pdf
from tests.support.service import encode, page_image, png, running_service

pytestmark = pytest.mark.integration

CANARY = "canary-4711"


async def test_every_request_is_counted_once_by_its_outcome() -> None:
    async with running_service() as service:
        await service.ocr(png())
        await service.ocr(make_pdf(["one", "two"]))
        await service.ocr(b"junk")
        await service.ocr(png(), model_id="other")
        await service.client.get("/ocr")
        metric = service.metric
        assert await metric('deepsynth_requests_total{code="ok",outcome="ok"}') == 2
        assert await metric('deepsynth_requests_total{code="unsupported_format",outcome="client_error"}') == 1
        assert await metric('deepsynth_requests_total{code="model_not_found",outcome="client_error"}') == 1
        assert await metric('deepsynth_request_duration_seconds_count{outcome="ok"}') == 2
        assert await metric('deepsynth_image_rejected_total{reason="unsupported_format"}') == 1
        assert await metric("deepsynth_pages_total") == 3
        assert await metric('deepsynth_inference_total{model_id="fake",status="ok"}') == 3
        assert await metric("deepsynth_inference_latency_seconds_count") == 3
        assert await metric('deepsynth_gpu_memory_bytes{device="cpu"}') == 0
        assert await metric("deepsynth_batch_size_count") > 0
        assert await metric("deepsynth_engine_steps_total") > 0
        assert await metric('deepsynth_image_pixels_count{format="pdf"}') == 2


async def test_http_metrics_know_routes_and_not_what_clients_write() -> None:
    async with running_service() as service:
        await service.client.get("/metrics")
        before = len((await service.client.get("/metrics")).text.splitlines())
        for number in range(30):
            await service.client.get(f"/{CANARY}/{number}?{CANARY}=1")
            await service.client.request(f"METHOD{number}", "/livez")
            await service.client.get("/livez", headers={"host": f"{CANARY}-{number}.example"})
        text = (await service.client.get("/metrics")).text
    assert CANARY not in text
    assert "METHOD" not in text
    assert 'handler="/livez"' in text
    # One new series of each HTTP metric for unknown paths, and one for /livez.
    assert len(text.splitlines()) - before < 40


async def test_metrics_can_be_switched_off() -> None:
    async with running_service(enable_metrics=False) as service:
        assert (await service.client.get("/metrics")).status_code == 404
        assert (await service.ocr(png())).status_code == 200


async def test_hostile_host_or_method_is_refused_before_anything_uses_it() -> None:
    async with running_service() as service:
        for host in ("a/?x=", "a#", "[::1", "a b", "x@y", "a,b", ""):
            response = await service.client.get("/livez", headers={"host": host})
            assert (response.status_code, response.json()["code"]) == (400, "invalid_host"), host
        for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "ocr.example.org", "my~svc"):
            assert (await service.client.get("/livez", headers={"host": host})).status_code == 200, host
        assert (await service.client.request("BREW", "/livez")).status_code == 405
        wrong = await service.client.get("/ocr")
    assert (wrong.status_code, wrong.json()["code"], wrong.headers["allow"]) == (405, "method_not_allowed", "POST")


async def test_only_allowed_hosts_are_served() -> None:
    async with running_service(allowed_hosts="ocr.example.org, 127.0.0.1,[::1]") as service:
        for host in ("ocr.example.org", "OCR.example.org:8000", "127.0.0.1:8000", "[::1]:8000"):
            assert (await service.client.get("/livez", headers={"host": host})).status_code == 200, host
        for host in ("example.org", "ocr.example.org.evil.org", "localhost"):
            assert (await service.client.get("/livez", headers={"host": host})).status_code == 400, host


async def test_two_hosts_are_refused() -> None:
    async with running_service() as service:
        headers = [("host", "a.example"), ("host", "b.example")]
        assert (await service.client.get("/livez", headers=headers)).json()["code"] == "invalid_host"


async def test_answers_are_not_stored_by_caches() -> None:
    async with running_service() as service:
        answers = [await service.ocr(png()), await service.client.get("/v1/models"), await service.client.get("/none")]
    assert {answer.headers["cache-control"] for answer in answers} == {"no-store"}


async def test_a_clients_tracestate_goes_nowhere() -> None:
    exporter = InMemorySpanExporter()
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with running_service(app_options={"span_exporter": exporter}) as service:
        headers = {"traceparent": parent, "tracestate": "spy=secret"}
        await service.client.post("/ocr", files={"file": ("p.png", png())}, headers=headers)
    spans = exporter.get_finished_spans()
    assert any(span.context and f"{span.context.trace_id:032x}" == parent[3:35] for span in spans)
    assert not any(span.context.trace_state for span in spans if span.context)


def tree(spans: tuple[ReadableSpan, ...]) -> dict[str, str | None]:
    names = {span.context.span_id: span.name for span in spans if span.context}
    return {span.name: names.get(span.parent.span_id) if span.parent else None for span in spans}


async def test_spans_of_a_request_form_one_tree() -> None:
    exporter = InMemorySpanExporter()
    async with running_service(app_options={"span_exporter": exporter}) as service:
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        files = {"file": (f"{CANARY}.png", png(CANARY))}
        await service.client.post(
            f"/ocr?task=locate&query={CANARY}", files=files, headers={"traceparent": parent, "user-agent": CANARY}
        )
        await service.client.get("/livez")
        await service.client.get("/metrics")
    spans = exporter.get_finished_spans()
    assert tree(spans) == {
        "POST /ocr": None,
        "deepsynth.receive": "POST /ocr",
        "deepsynth.open": "POST /ocr",
        "deepsynth.queue": "POST /ocr",
        "deepsynth.decode": "POST /ocr",
        "deepsynth.inference": "POST /ocr",
        "deepsynth.engine_queue": "deepsynth.inference",
        "deepsynth.encode": "deepsynth.inference",
        "deepsynth.prefill": "deepsynth.inference",
        "deepsynth.generate": "deepsynth.inference",
        "deepsynth.render": "POST /ocr",
        "deepsynth.batch": None,
    }
    traces = {span.name: f"{span.context.trace_id:032x}" for span in spans if span.context}
    assert traces.pop("deepsynth.batch") != parent.split("-")[1]
    assert set(traces.values()) == {parent.split("-")[1]}
    by_name = {span.name: dict(span.attributes or {}) for span in spans}
    assert all(set(attributes) <= ALLOWED for attributes in by_name.values())
    assert by_name["POST /ocr"]["http.response.status_code"] == 200
    assert by_name["deepsynth.decode"]["deepsynth.image.width_px"] == 320
    assert by_name["deepsynth.render"]["deepsynth.format"] == "json"
    assert by_name["deepsynth.inference"]["gen_ai.request.model"] == "fake"
    assert by_name["deepsynth.inference"]["gen_ai.usage.output_tokens"] > 0
    assert CANARY not in str([span.to_json() for span in spans])


async def test_refused_file_is_an_error_type_and_no_exception_text() -> None:
    exporter = InMemorySpanExporter()
    async with running_service(app_options={"span_exporter": exporter}) as service:
        await service.ocr(CANARY.encode())
    by_name = {span.name: span for span in exporter.get_finished_spans()}
    assert dict(by_name["deepsynth.open"].attributes or {}) == {"error.type": "unsupported_format"}
    assert by_name["deepsynth.open"].status.status_code is StatusCode.UNSET
    assert by_name["POST /ocr"].status.status_code is StatusCode.UNSET


async def test_nothing_of_a_document_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with running_service() as service:
        name = f"{CANARY}.png"
        marked = encode(page_image(CANARY), exif=CANARY.encode())
        read = await service.client.post(
            f"/ocr?query={CANARY}", files={"file": (name, marked)}, data={"task": "locate"}
        )
        await service.ocr(CANARY.encode(), name=name)
        await service.ocr(png(), name=name, query=CANARY, task="locate")
        await service.ocr(png(), name=name, model_id=CANARY)
    lines = [JsonFormatter().format(record) for record in caplog.records if record.name.startswith("service")]
    requests = [line for line in lines if '"message": "request"' in line]
    assert len(requests) == 4
    assert '"code": "model_not_found"' in requests[3]
    assert not [line for line in lines if CANARY in line or read.json()["text"] in line]


async def test_playground_is_served_with_a_strict_policy() -> None:
    async with running_service() as service:
        page = await service.client.get("/")
        scripts = [await service.client.get(f"/web/{path.name}") for path in WEB.glob("*.js")]
        style = await service.client.get("/web/style.css")
        missing = await service.client.get("/web/../config.py")
        other = await service.client.get("/web/secret")
    assert "<h1>DeepSynth" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert {script.headers["content-type"] for script in scripts} == {"text/javascript; charset=utf-8"}
    assert style.headers["content-type"] == "text/css; charset=utf-8"
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval("):
        assert not [script.url for script in scripts if way in script.text]
    assert " style=" not in page.text
    assert "onclick" not in page.text
    assert (missing.status_code, other.status_code) == (404, 404)
