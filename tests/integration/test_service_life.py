"""Readiness, overload, deadlines, disconnects and streams, with the engine held where it matters."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from typing import Any

import httpx
import pytest

from service.engine.fake import FakeEngine
from service.engine.protocol import EngineState
from service.errors import EngineError
from shared.contract.prompts import Task, prompt_for
from tests.support.fake_engine import SteeredEngine
from tests.support.loop_clock import LoopClock
from tests.support.service import RunningService, eventually, png, running_service

pytestmark = pytest.mark.integration


class SlowStart(SteeredEngine):
    """Loads until told to go on, or to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded = asyncio.Event()
        self.error: Exception | None = None

    async def start(self) -> None:
        await self.loaded.wait()
        if self.error is not None:
            raise self.error
        await super().start()


def parse_events(text: str) -> list[tuple[str, dict[str, Any]]]:
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


@pytest.mark.parametrize("said", [{"canvases": "bfloat16", "steps": "compiled"}, {}])
async def test_the_log_says_what_is_ready_and_how_a_cpu_reads(
    said: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    engine = FakeEngine()
    engine._info = replace(engine.info, **said)
    with caplog.at_level("INFO", "service.app"):
        async with running_service(SteeredEngine(engine)):
            pass
    (fields,) = [vars(each)["fields"] for each in caplog.records if each.message == "ready"]
    assert fields == {"model": "fake", "device": "cpu", **said}


async def test_alive_at_once_and_ready_only_when_the_engine_is() -> None:
    engine = SlowStart()
    async with running_service(engine, wait_ready=False) as service:
        assert (await service.client.get("/livez")).status_code == 200
        for response in (
            await service.client.get("/readyz"),
            await service.client.get("/v1/models"),
            await service.ocr(png()),
        ):
            assert (response.status_code, response.json()["code"]) == (503, "not_ready")
            assert int(response.headers["retry-after"]) >= 1
        assert await service.metric("deepsynth_worker_up") == 0
        assert await service.metric('deepsynth_worker_state{state="loading"}') == 1
        engine.loaded.set()
        await eventually(service.services.has_started)
        assert (await service.client.get("/readyz")).json() == {"status": "ready", "jobs": False, "samples": "off"}
        assert (await service.ocr(png())).status_code == 200
        assert await service.metric("deepsynth_worker_up") == 1


@pytest.mark.parametrize("error", [EngineError("no weights"), RuntimeError("unheard of")])
async def test_engine_that_cannot_start_is_announced(error: Exception) -> None:
    engine, failed = SlowStart(), asyncio.Event()
    engine.error = error
    engine.loaded.set()
    async with running_service(engine, wait_ready=False, app_options={"on_failed": failed.set}) as service:
        await failed.wait()
        assert (await service.client.get("/readyz")).status_code == 503
        assert (await service.client.get("/livez")).status_code == 200


async def test_default_model_that_nothing_serves_is_refused_at_the_start() -> None:
    failed = asyncio.Event()
    options = {"on_failed": failed.set}
    async with running_service(wait_ready=False, app_options=options, default_model="other") as service:
        await failed.wait()
        assert (await service.client.get("/readyz")).status_code == 503


async def test_lost_engine_is_not_ready() -> None:
    async with running_service() as service:
        service.engine.lose()
        assert (await service.client.get("/readyz")).status_code == 503
        assert (await service.ocr(png())).json()["code"] == "not_ready"
        assert await service.metric('deepsynth_worker_state{state="failed"}') == 1


async def test_models_are_listed_with_their_modes() -> None:
    before_s = int(time.time())
    async with running_service(max_new_tokens=77) as service:
        listed = (await service.client.get("/v1/models")).json()
        one = await service.client.get("/v1/models/fake")
        missing = await service.client.get("/v1/models/other")
    assert one.json() == listed["data"][0]
    assert (missing.status_code, missing.json()["code"]) == (404, "model_not_found")
    assert before_s <= listed["data"][0].pop("created") <= time.time()
    assert listed["object"] == "list"
    assert listed["data"] == [
        {
            "id": "fake",
            "object": "model",
            "owned_by": "deepsynth",
            "type": "base",
            "capabilities": {"completion_chat": True, "vision": True, "ocr": True},
            "root": "fake",
            "parent": None,
            "tasks": ["free", "markdown", "ocr", "figure", "describe", "locate"],
            "modes": ["tiny", "small", "base", "large", "gundam"],
            "default_mode": "gundam",
            "layouts": ["auto", "page"],
            "boxes": True,
            "max_new_tokens": 77,
            "family": "fake",
            "max_sequence_tokens": 8192,
            "max_pages_together": 1,
            "takes_adapters": False,
        }
    ]


async def fill(service: RunningService, count: int) -> list[asyncio.Task[httpx.Response]]:
    """Requests that stay inside until the engine is released."""
    service.engine.hold()
    gate = service.services.gate
    before = gate.num_waiting + gate.num_running
    tasks = [asyncio.create_task(service.ocr(png(str(number)))) for number in range(count)]
    await eventually(lambda: gate.num_waiting + gate.num_running == before + count)
    return tasks


async def test_full_house_is_429_before_the_body_is_read() -> None:
    async with running_service(max_concurrent_requests=2, ocr_batch_size=1) as service:
        inside = await fill(service, 2)
        response = await service.client.post("/ocr", content=b"never read", headers={"content-type": "text/plain"})
        assert (response.status_code, response.json()["code"]) == (429, "queue_full")
        assert int(response.headers["retry-after"]) >= 1
        assert response.headers["connection"] == "close"
        assert (await service.client.get("/readyz")).status_code == 200
        service.engine.release()
        assert [each.status_code for each in await asyncio.gather(*inside)] == [200, 200]
        assert (await service.ocr(png())).status_code == 200


async def test_gauges_tell_waiting_from_running() -> None:
    async with running_service(max_concurrent_requests=8, ocr_batch_size=1) as service:
        inside = await fill(service, 5)
        gate = service.services.gate
        # Two page slots per place in the batch.
        await eventually(lambda: gate.num_running == 2)
        assert await service.metric("deepsynth_queue_depth") == 3
        assert await service.metric("deepsynth_requests_running") == 2
        assert await service.metric("deepsynth_queue_capacity") == 8
        service.engine.release()
        await asyncio.gather(*inside)
        assert await service.metric("deepsynth_queue_depth") == 0
        assert await service.metric("deepsynth_requests_running") == 0
        assert await service.metric('deepsynth_requests_total{code="ok",outcome="ok"}') == 5


async def test_deadline_is_504_and_frees_everything() -> None:
    async with running_service(deadline_s=60) as service:
        clock = LoopClock()
        service.engine.hold()
        late = asyncio.create_task(service.ocr(png()))
        await eventually(lambda: service.engine.submitted)
        clock.forward(61)
        response = await late
        assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
        assert not response.json()["retryable"]
        assert service.engine.cancelled == [request.sequence_id for request in service.engine.submitted]
        assert service.services.gate.num_running == 0
        service.engine.release()
        assert (await service.ocr(png())).status_code == 200


async def test_draining_turns_new_requests_away_and_finishes_those_inside() -> None:
    async with running_service() as service:
        inside = await fill(service, 2)
        service.services.gate.drain()
        response = await service.ocr(png())
        assert (response.status_code, response.json()["code"]) == (503, "draining")
        assert (await service.client.get("/readyz")).json()["code"] == "draining"
        assert (await service.client.get("/livez")).status_code == 200
        service.engine.release()
        assert [each.status_code for each in await asyncio.gather(*inside)] == [200, 200]


async def test_stream_sends_deltas_then_the_whole_answer() -> None:
    async with running_service() as service:
        response = await service.ocr(png(), stream="true")
        plain = (await service.ocr(png())).json()
    assert response.headers["content-type"].startswith("text/event-stream")
    events = parse_events(response.text)
    *pieces, (second_last, page), (last, answer) = events
    assert {name for name, _ in pieces} == {"delta"}
    deltas = [data for _, data in pieces]
    assert len(deltas) > 3
    assert {delta["page"] for delta in deltas} == {1}
    assert (second_last, last) == ("page", "answer")
    assert page == answer["pages"][0]
    assert "".join(delta["text"] for delta in deltas) == answer["text"] == plain["text"]
    assert list(answer) == list(plain)


async def test_what_goes_wrong_before_the_first_text_of_a_stream_has_its_status() -> None:
    async with running_service() as service:
        response = await service.ocr(b"junk", stream="true")
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_format")


async def test_what_goes_wrong_later_ends_the_stream_with_an_error() -> None:
    async with running_service(SteeredEngine(FakeEngine(step_s=60))) as service:
        task = asyncio.create_task(service.ocr(png(), stream="true"))
        await eventually(lambda: service.engine.submitted)
        await eventually(lambda: service.engine.num_deltas)
        service.engine.lose()
        events = parse_events((await task).text)
        assert await service.metric('deepsynth_requests_total{code="engine_lost",outcome="unavailable"}') == 1
    assert events[0][0] == "delta"
    name, problem = events[-1]
    assert (name, problem["code"], problem["status"]) == ("error", "engine_lost", 503)


async def test_one_poisoned_page_does_not_touch_its_neighbours() -> None:
    engine = SteeredEngine(FakeEngine(fail_with={prompt_for(Task.FIGURE): "engine_failed"}))
    async with running_service(engine) as service:
        responses = await asyncio.gather(
            *(service.ocr(png(str(number)), task="figure" if number == 3 else "free") for number in range(8))
        )
    assert [response.status_code for response in responses] == [200, 200, 200, 500, 200, 200, 200, 200]


async def test_engines_life_is_read_from_the_handle_each_time() -> None:
    async with running_service() as service:
        service.engine._state = EngineState.LOADING
        assert (await service.client.get("/readyz")).status_code == 503
        service.engine._state = EngineState.READY
        assert (await service.client.get("/readyz")).status_code == 200
