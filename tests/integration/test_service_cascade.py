"""The model `auto`: two services, of which the second reads what the first is unsure of."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.config import load_settings
from service.engine import fake
from service.engine.fake import FakeEngine
from service.engine.protocol import SequenceResult
from service.errors import ConfigurationError
from service.ocr.cascade import RemoteReader
from shared.contract.samples import parse_record, record_files
from shared.deepseek_ocr.geometry import GeometryConfig, Mode
from tests.support.fake_engine import SteeredEngine
from tests.support.pdf import make_pdf
from tests.support.programs import free_port
from tests.support.service import RunningService, eventually, png, running_service

pytestmark = pytest.mark.integration

TEXTS = [f"Page {number} of a report with many words" if number != 3 else "" for number in range(1, 8)]
PDF = make_pdf(TEXTS)


@contextlib.asynccontextmanager
async def two_services(small: SteeredEngine, **options: Any) -> AsyncIterator[tuple[RunningService, RunningService]]:
    """A service with the model `auto`, and the one that it asks."""
    async with (
        running_service() as larger,
        running_service(small, cascade_url="http://larger.invalid", **options) as service,
    ):
        second_client(service)._transport = larger.client._transport
        yield service, larger


def second_client(service: RunningService) -> httpx.AsyncClient:
    cascade = service.services.cascade
    assert cascade is not None
    assert isinstance(cascade._second, RemoteReader)
    return cascade._second._client


def url(page: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(page).decode()}"


def chat_body(*images: bytes, **members: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url(image)}} for image in images]
    return {"model": "auto", "messages": [{"role": "user", "content": parts}], **members}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> SteeredEngine:
    """An engine that reads other words than the larger one, and is sure of some pages alone."""
    make_result = fake._result

    def unsure(entry: Any, reason: Any) -> SequenceResult:
        return replace(make_result(entry, reason), confidence=0.95 if len(entry.done) % 2 else 0.4)

    monkeypatch.setattr(fake, "_result", unsure)
    engine = FakeEngine(geometry=replace(GeometryConfig(), default_mode=Mode.TINY))
    engine._info = replace(engine.info, model_id="small")
    return SteeredEngine(engine)


def pages_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["pages"]
    return found


async def test_larger_service_reads_the_doubtful_pages_alone(small: SteeredEngine) -> None:
    async with two_services(small) as (service, larger):
        theirs = pages_of(await larger.ocr(PDF))
        alone = pages_of(await service.ocr(PDF, model_id="small"))
        answer = await service.ocr(PDF, model_id="auto")
        listed = (await service.client.get("/v1/models")).json()["data"]
        doubtful = {page["page"] for page in alone if page["status"] == "ok" and page["confidence"] < 0.9}
        assert await service.metric('deepsynth_cascade_pages_total{outcome="read_again"}') == len(doubtful)
        asked = await larger.metric('deepsynth_requests_total{code="ok",outcome="ok"}')
    assert 0 < len(doubtful) < 6, "all pages are of one kind: it shows nothing"
    assert asked == 1 + len(doubtful)
    pages = pages_of(answer)
    for page, ours, other in zip(pages, alone, theirs, strict=True):
        chosen = other if page["page"] in doubtful else ours
        assert (page["page"], page["text"], page["confidence"]) == (ours["page"], chosen["text"], chosen["confidence"])
        assert page["model_id"] == (None if page["status"] == "blank" else chosen["model_id"])
        assert page["warnings"] == []
    assert {page["model_id"] for page in pages} == {"small", "fake", None}
    assert answer.json()["model_id"] == "auto"
    assert answer.json()["text"] == "\n\n".join(page["text"] for page in pages if page["text"])
    assert ("auto", "small") in {(model["id"], model["root"]) for model in listed}


async def test_turn_and_coverage_of_the_larger_services_page_are_kept(small: SteeredEngine) -> None:
    kept = {"turned_degrees": 90, "coverage": 0.5, "unread": [[1, 2, 3, 4]], "confidence": 0.4}
    kept["warnings"] = ["partly_read"]
    asked: list[bytes] = []
    async with two_services(small) as (service, larger):
        answer = (await larger.ocr(png(), blank_pages="read")).json()
        answer["pages"][0] |= kept

        def reply(request: httpx.Request) -> httpx.Response:
            asked.append(request.read())
            return httpx.Response(200, json=answer)

        second_client(service)._transport = httpx.MockTransport(reply)
        pages = pages_of(await service.ocr(PDF, model_id="auto", orientation="as-is", min_coverage="0.7"))
    again = [page for page in pages if page["model_id"] == "fake"]
    assert len(again) == len(asked) > 0
    assert all({name: page[name] for name in kept} == kept for page in again)
    for name, value in (("orientation", "as-is"), ("min_coverage", "0.7")):
        assert f'name="{name}"\r\n\r\n{value}\r\n'.encode() in asked[0]


async def test_stream_has_each_page_once_as_it_is_in_the_answer(small: SteeredEngine) -> None:
    image = png("An image with enough words on it")
    async with two_services(small) as (service, _):
        answer = pages_of(await service.ocr(PDF, model_id="auto"))
        streamed = await service.ocr(PDF, model_id="auto", stream="true")
        chat = await service.client.post("/v1/chat/completions", json=chat_body(image, stream=True))
        single = (await service.ocr(image, model_id="auto")).json()
    events = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line.startswith("data: ")]
    names = [line.removeprefix("event: ") for line in streamed.text.splitlines() if line.startswith("event: ")]
    told = [json.loads(data) for name, data in zip(names, events, strict=True) if name == "page"]
    assert sorted(told, key=lambda page: page["page"]) == answer
    chunks = [json.loads(line[6:]) for line in chat.text.splitlines() if line.startswith("data: {")]
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])
    assert said == single["text"]
    assert {chunk["model"] for chunk in chunks} == {"auto"}


async def test_larger_service_that_is_not_there_costs_a_warning(small: SteeredEngine) -> None:
    async with running_service(small, cascade_url=f"http://127.0.0.1:{free_port()}") as service:
        alone = pages_of(await service.ocr(PDF, model_id="small"))
        pages = pages_of(await service.ocr(PDF, model_id="auto"))
        doubtful = [page["page"] for page in alone if page["status"] == "ok" and page["confidence"] < 0.9]
        assert await service.metric('deepsynth_cascade_pages_total{outcome="failed"}') == len(doubtful)
    assert [page["text"] for page in pages] == [page["text"] for page in alone]
    assert [page["page"] for page in pages if page["warnings"] == ["second_reading_failed"]] == doubtful


async def test_pages_of_several_files_are_found_again(small: SteeredEngine) -> None:
    images = [png(f"image number {number} of several") for number in range(5)]
    async with two_services(small) as (service, larger):
        pages = pages_of(await service.client.post("/v1/chat/completions", json=chat_body(*images)))
        theirs = [(await larger.ocr(image)).json()["text"] for image in images]
    again = [page["page"] for page in pages if page["model_id"] == "fake"]
    assert again
    assert [pages[number - 1]["text"] for number in again] == [theirs[number - 1] for number in again]


async def test_key_wish_and_options_go_to_the_larger_service(small: SteeredEngine) -> None:
    async with running_service(
        small, cascade_url="http://larger.invalid/base/", cascade_key="secret", cascade_model="big@2"
    ) as service:
        asked: list[httpx.Request] = []

        def refuse(request: httpx.Request) -> httpx.Response:
            asked.append(request)
            return httpx.Response(302, headers={"location": "http://elsewhere.invalid/"})

        second_client(service)._transport = httpx.MockTransport(refuse)
        pages = pages_of(
            await service.client.post(
                "/ocr",
                files={"file": PDF},
                data={"model_id": "auto", "task": "markdown", "pages": "1-2", "seed": "7", "temperature": "0.5"},
                headers={"x-deepsynth-no-store": "1"},
            )
        )
        await service.client.post("/ocr", files={"file": PDF}, data={"model_id": "auto"})
    # A redirect is an error: no document goes to another address.
    assert {str(request.url) for request in asked} == {"http://larger.invalid/base/ocr"}
    assert {request.headers["authorization"] for request in asked} == {"Bearer secret"}
    num_first = sum(page["warnings"] == ["second_reading_failed"] for page in pages)
    assert [request.headers.get("x-deepsynth-no-store") for request in asked[:num_first]] == ["1"] * num_first
    assert {request.headers.get("x-deepsynth-no-store") for request in asked[num_first:]} == {None}
    for request in asked[:num_first]:
        form = request.read()
        for name, value in (("model_id", "big@2"), ("task", "markdown"), ("seed", "7"), ("temperature", "0.5")):
            assert f'name="{name}"\r\n\r\n{value}\r\n'.encode() in form


async def test_sample_says_who_read_it(small: SteeredEngine, tmp_path: Path) -> None:
    options = {"ocr_save_samples": True, "ocr_privacy_allowed": True, "sample_dir": tmp_path}
    async with two_services(small, **options) as (service, _):
        answer = pages_of(await service.ocr(PDF, model_id="auto"))
        keeper = service.services.samples
        await eventually(lambda: keeper.num_waiting == 0)
    found = {record.answers[0].page: record.readings["free"] for record in map(_record, record_files(tmp_path))}
    read = [page for page in answer if page["status"] == "ok"]
    assert {page["page"]: page["model_id"] for page in read} == {
        page["page"]: found[page["page"]].model_id for page in read
    }
    assert {page["page"]: page["text"] for page in read} == {page["page"]: found[page["page"]].text for page in read}


def _record(path: Path) -> Any:
    return parse_record(path.read_bytes())


async def test_model_of_the_same_service_may_read_again(small: SteeredEngine) -> None:
    # The base model is its own second reader here: what matters is that each page is read twice.
    async with running_service(small, cascade_model="small") as service:
        pages = pages_of(await service.ocr(PDF, model_id="auto", pages="4-6"))
        twice = sum(page["confidence"] < 0.9 for page in pages)
        assert len(small.submitted) == len(pages) + twice
        assert [page["page"] for page in pages] == [4, 5, 6]


async def test_auto_is_no_model_without_a_second_reader() -> None:
    async with running_service() as service:
        answer = await service.ocr(png(), model_id="auto")
    assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")


async def test_auto_may_be_the_default(small: SteeredEngine) -> None:
    async with two_services(small, default_model="auto") as (service, _):
        assert (await service.ocr(PDF)).json()["model_id"] == "auto"


def test_key_without_an_address_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="DEEPSYNTH_CASCADE_URL"):
        load_settings({"DEEPSYNTH_CASCADE_KEY": "secret"}, env_file=None)


async def test_job_reads_doubtful_pages_again(small: SteeredEngine, tmp_path: Path) -> None:
    async with two_services(small, job_dir=tmp_path) as (service, _):
        expected = (await service.ocr(PDF, model_id="auto")).json()
        form = {"files": {"file": ("a.pdf", PDF)}, "data": {"model_id": "auto"}}
        job = (await service.client.post("/jobs", **form)).json()
        assert job["model_id"] == "auto"
        async with asyncio.timeout(60):
            while job["state"] not in ("done", "failed"):
                await asyncio.sleep(0.02)
                job = (await service.client.get(f"/jobs/{job['id']}")).json()
        answer = await service.client.get(f"/jobs/{job['id']}/result")
    assert (job["state"], job["model_id"]) == ("done", "auto")
    read = [(page["model_id"], page["text"]) for page in pages_of(answer)]
    assert read == [(page["model_id"], page["text"]) for page in expected["pages"]]
    assert {"small", "fake"} <= {model_id for model_id, _ in read}


async def test_job_for_auto_fails_where_the_second_reader_is_gone(small: SteeredEngine, tmp_path: Path) -> None:
    async with two_services(small, job_dir=tmp_path) as (service, _):
        small.hold()
        job = (await service.client.post("/jobs", files={"file": PDF}, data={"model_id": "auto"})).json()
    async with running_service(job_dir=tmp_path) as service, asyncio.timeout(60):
        while job["state"] not in ("done", "failed"):
            await asyncio.sleep(0.02)
            job = (await service.client.get(f"/jobs/{job['id']}")).json()
    assert (job["state"], job["error"]["code"]) == ("failed", "model_not_found")


async def test_log_says_why_the_larger_service_did_not_read(
    small: SteeredEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_services(small) as (service, _):
        refusal = httpx.Response(401, json={"code": "key_invalid", "title": "This key is unknown."})
        second_client(service)._transport = httpx.MockTransport(lambda _: refusal)
        pages_of(await service.ocr(PDF, model_id="auto"))
        second_client(service)._transport = httpx.MockTransport(lambda _: httpx.Response(502, text="<p>a proxy</p>"))
        pages_of(await service.ocr(PDF, model_id="auto"))
    details = [record.fields["detail"] for record in caplog.records if record.message == "a page was not read again"]  # type: ignore[attr-defined]
    assert set(details) == {f"the second reader failed: status {status}" for status in ("401 key_invalid", "502")}
