"""The assembled service over the real engine in its own process, with a tiny model of random weights."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from service.engine.process.engines import ProcessEngine
from service.engine.protocol import EngineState
from service.reader_parts import build_engine
from shared.deepseek_ocr.checkpoint import save_checkpoint
from tests.support.fake_engine import SteeredEngine
from tests.support.service import eventually, make_settings, png, running_service
from tests.support.tiny_model import tiny_model
from trainer.nano.corpus.tokenizer import train_tokenizer

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_checkpoint(tiny_model(), folder, storage="float32")
    train_tokenizer(["the page, the text; 12 of 34\n"] * 4, vocab_size=280).save(str(folder / "tokenizer.json"))
    return folder


def native_engine(checkpoint: Path) -> SteeredEngine:
    settings = make_settings(engine="native", model=str(checkpoint), device="cpu", cpu_threads=1)
    return cast("SteeredEngine", build_engine(settings))


async def test_page_goes_through_every_process_and_comes_back(checkpoint: Path) -> None:
    async with running_service(native_engine(checkpoint)) as service:
        responses = await asyncio.gather(
            *(service.ocr(png(str(number % 2)), max_new_tokens="12") for number in range(6))
        )
        models = (await service.client.get("/v1/models")).json()
        assert await service.metric("deepsynth_pages_total") == 6
    answers = [response.json() for response in responses]
    assert [response.status_code for response in responses] == [200] * 6
    assert models["data"][0]["id"] == answers[0]["model_id"] == checkpoint.name
    assert all(1 <= answer["usage"]["completion_tokens"] <= 12 for answer in answers)
    assert len({answer["text"] for answer in answers[::2]}) == 1
    assert 0 < answers[0]["confidence"] <= 1
    assert answers[0]["timings_ms"]["generate"] > 0


async def test_a_killed_engine_costs_its_pages_time_and_no_answer(checkpoint: Path) -> None:
    async with running_service(native_engine(checkpoint)) as service:
        running = asyncio.create_task(service.ocr(png()))
        supervised = cast("ProcessEngine", service.engine)
        # As long as a start takes while many tests run.
        supervised._supervision = replace(supervised._supervision, hold_s=110.0)
        await eventually(lambda: supervised._line.sent)
        os.kill(supervised._connection._worker.pid, signal.SIGKILL)
        await eventually(lambda: service.engine.state is not EngineState.READY)
        refused = await service.client.get("/readyz")
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert 1 <= int(refused.headers["retry-after"]) <= supervised._start_s + 2
        assert (await service.client.get("/livez")).status_code == 200
        assert (await running).status_code == 200
        assert service.engine.state is EngineState.READY
        await service.services.monitor.refresh()
        assert await service.metric('deepsynth_worker_restarts_total{reason="signal"}') == 1
        assert await service.metric("deepsynth_pages_retried_total") == 1
