"""A page that ends the engine, as its sender and the others see it."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import cast

import pytest

from service.engine.fake import FakeEngine
from service.engine.process.engines import ThreadEngine
from service.engine.process.supervision import Supervision
from service.engine.protocol import EngineState, SequenceEvent
from shared.contract.prompts import Task, prompt_for
from tests.support.fake_engine import SteeredEngine
from tests.support.service import RunningService, eventually, png, running_service

pytestmark = pytest.mark.integration

QUICK = Supervision(check_s=0.02, backoff_s=0.05)


class Fragile(FakeEngine):
    """Ends where it is asked to describe a page."""

    def step(self) -> list[SequenceEvent]:
        if any(entry.request.prompt == prompt_for(Task.DESCRIBE) for entry in (*self._waiting, *self._running)):
            raise RuntimeError("told to break")
        return super().step()


def fragile_engine(supervision: Supervision = QUICK) -> SteeredEngine:
    return cast("SteeredEngine", ThreadEngine(lambda: Fragile(step_s=0.02), supervision=supervision))


async def ready(service: RunningService) -> None:
    await eventually(lambda: service.engine.state is EngineState.READY)


async def test_the_sender_of_a_page_that_ends_the_engine_is_told_and_the_others_are_served() -> None:
    async with running_service(fragile_engine(), ocr_batch_size=8) as service:
        others = [asyncio.create_task(service.ocr(png(str(number)))) for number in range(6)]
        bad = await service.ocr(png("bad"), task="describe")
        assert (bad.status_code, bad.json()["code"], bad.json()["retryable"]) == (500, "poison_request", False)
        assert "retry-after" not in bad.headers
        assert [each.status_code for each in await asyncio.gather(*others)] == [200] * 6
        # Sent again, it ends nothing.
        await ready(service)
        for task in ("describe", "free"):
            assert (await service.ocr(png("bad"), task=task)).json()["code"] == "poison_request"
        assert (await service.ocr(png("good"))).status_code == 200
        await service.services.monitor.refresh()
        assert await service.metric('deepsynth_worker_restarts_total{reason="exception"}') == 2
        assert await service.metric("deepsynth_poison_pages_total") == 3
        assert (await service.client.get("/readyz")).status_code == 200


async def test_an_engine_that_every_page_ends_brings_the_process_down_at_once() -> None:
    failed = asyncio.Event()
    engine = fragile_engine(dataclasses.replace(QUICK, max_restarts=3))
    async with running_service(engine, app_options={"on_failed": failed.set}) as service:
        for number in range(2):
            bad = await service.ocr(png(str(number)), task="describe")
            assert bad.json()["code"] == "poison_request"
            if not number:
                await ready(service)
        async with asyncio.timeout(60):
            await failed.wait()


async def test_retry_after_tells_when_the_engine_will_be_back() -> None:
    engine = fragile_engine(dataclasses.replace(QUICK, backoff_s=40.0, max_backoff_s=40.0))
    async with running_service(engine) as service:
        lost = await service.ocr(png("bad"), task="describe")
        assert (lost.status_code, lost.json()["code"]) == (503, "engine_lost")
        await eventually(lambda: service.engine.state is EngineState.FAILED)
        refused = await service.ocr(png("good"))
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        for response in (lost, refused):
            assert 35 <= int(response.headers["retry-after"]) <= 60
