"""Commands about adapters over the engine's connection, to a thread and to a process, and when either is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from service.engine.fake import FakeEngine
from service.engine.lora.registry import AdapterError
from service.engine.process.codec import (
    AdapterReply,
    LoadAdapter,
    UnloadAdapter,
    decode_message,
    encode_message,
)
from service.engine.process.engines import ProcessEngine, ThreadEngine
from service.engine.protocol import (
    EngineState,
    SamplingParams,
    SequenceDelta,
    SequenceFailure,
    SequenceRequest,
    SequenceResult,
)
from service.errors import EngineLostError
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import Mode, ViewPlan
from tests.support.adapters import write_peft
from tests.support.frames import through_pipe
from tests.unit.service.engine.process.test_engines import QUICK, started, until

PLAN = ViewPlan(Mode.GUNDAM, 2, 1, 1, 2, 3)


def request_of(name: str, model_id: str) -> SequenceRequest:
    page = PageViews(PLAN, np.full((2, 2, 3), 7, np.uint8), np.full((2, 1, 1, 3), 7, np.uint8))
    return SequenceRequest(name, page, "\nFree OCR.", SamplingParams(100), model_id)


async def text_of(engine, model_id: str, name: str = "a") -> str:
    events = [event async for event in engine.submit(request_of(name, model_id))]
    assert isinstance(events[-1], SequenceResult), events
    return events[-1].text


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [write_peft(tmp_path / str(seed), seed=seed) for seed in range(3)]


@asynccontextmanager
async def threaded(**options):
    made: list[FakeEngine] = []

    def make() -> FakeEngine:
        made.append(FakeEngine(**{"adapter_slots": 2, **options}))
        return made[-1]

    async with started(ThreadEngine(make, supervision=QUICK)) as engine:
        yield engine, made


@pytest.mark.parametrize("command", [LoadAdapter(3, "a@1", "/x"), UnloadAdapter(4, "a@1")])
def test_commands_arrive_unchanged(command):
    assert through_pipe(command) == command


@pytest.mark.parametrize("reply", [AdapterReply(3), AdapterReply(4, "no_slot", "all are taken", 0.25, 0.5)])
def test_replies_arrive_unchanged(reply):
    assert decode_message(encode_message(reply)) == reply


async def test_an_adapter_answers_in_another_process(folders):
    async with started(ProcessEngine(partial(FakeEngine, adapter_slots=2), supervision=QUICK)) as engine:
        cost = await engine.load_adapter("a@1", folders[0])
        assert list(engine.adapters) == ["a@1"]
        base, adapted = await text_of(engine, "fake"), await text_of(engine, "a@1")
        assert base != adapted
        assert cost.read_s > 0
        await engine.unload_adapter("a@1")
        failure = [event async for event in engine.submit(request_of("b", "a@1"))][-1]
        assert isinstance(failure, SequenceFailure)
        assert (failure.code, list(engine.adapters)) == ("model_not_found", [])


async def test_a_killed_process_comes_back_with_its_adapters(folders):
    async with started(ProcessEngine(partial(FakeEngine, adapter_slots=2), supervision=QUICK)) as engine:
        for number in (0, 1):
            await engine.load_adapter(f"a@{number + 1}", folders[number])
        before = [await text_of(engine, f"a@{number}") for number in (1, 2)]
        os.kill(engine._connection._worker.pid, signal.SIGKILL)
        await until(lambda: engine.state is not EngineState.READY)
        await until(lambda: engine.state is EngineState.READY)
        assert sorted(engine.adapters) == ["a@1", "a@2"]
        assert [await text_of(engine, f"a@{number}") for number in (1, 2)] == before


async def test_an_adapter_is_read_from_a_folder_whose_name_is_no_utf8(tmp_path):
    folder = write_peft(tmp_path / "caf\udce9 100%41", seed=0)
    async with threaded() as (engine, _):
        await engine.load_adapter("a@1", folder)
        assert list(engine.adapters) == ["a@1"]


async def test_what_was_unloaded_does_not_come_back(folders):
    async with threaded() as (engine, made):
        await engine.load_adapter("a@1", folders[0])
        await engine.load_adapter("a@2", folders[1])
        await engine.unload_adapter("a@1")
        engine._connection._worker.end(0.0)
        await until(lambda: len(made) == 2 and engine.state is EngineState.READY)
        assert made[1].adapters.names == ("a@2",)


async def test_an_adapter_whose_files_have_gone_does_not_keep_the_engine_from_coming_back(folders):
    async with threaded() as (engine, made):
        await engine.load_adapter("a@1", folders[0])
        await engine.load_adapter("a@2", folders[1])
        (folders[0] / "adapter_model.safetensors").unlink()
        engine._connection._worker.end(0.0)
        await until(lambda: len(made) == 2 and engine.state is EngineState.READY)
        assert list(engine.adapters) == ["a@2"]


class Poisoned(FakeEngine):
    """Ends its loop where it loads a certain adapter a second time."""

    loads = 0

    def load_adapter(self, model_id, source):
        if model_id == "bad@1":
            Poisoned.loads += 1
            if Poisoned.loads > 1:
                raise RuntimeError("told to break")
        super().load_adapter(model_id, source)


async def test_an_adapter_that_ends_the_engine_is_given_to_no_third(folders):
    Poisoned.loads = 0
    async with started(ThreadEngine(lambda: Poisoned(adapter_slots=2), supervision=QUICK)) as engine:
        await engine.load_adapter("good@1", folders[0])
        await engine.load_adapter("bad@1", folders[1])
        engine._connection._worker.end(0.0)
        await until(lambda: Poisoned.loads == 2 and engine.state is EngineState.READY)
        assert list(engine.adapters) == ["good@1"]
        await text_of(engine, "good@1")


async def test_the_engines_refusals_reach_the_caller(folders, tmp_path):
    async with threaded(refuse_with={"bad@1": "unknown_module"}) as (engine, _):
        for model_id, folder, reason in (
            ("bad@1", folders[0], "unknown_module"),
            ("gone@1", tmp_path / "nowhere", "file_missing"),
        ):
            with pytest.raises(AdapterError) as refusal:
                await engine.load_adapter(model_id, folder)
            assert refusal.value.reason == reason
            assert str(refusal.value).startswith(f"{reason}: ")
        await engine.load_adapter("a@1", folders[0])
        await engine.load_adapter("a@2", folders[1])
        for model_id, reason in (("a@3", "no_slot"), ("a@1", "name_in_use")):
            with pytest.raises(AdapterError) as refusal:
                await engine.load_adapter(model_id, folders[2])
            assert refusal.value.reason == reason
        assert sorted(engine.adapters) == ["a@1", "a@2"]


async def test_unloading_returns_when_the_last_sequence_has_ended(folders):
    async with threaded() as (engine, made):
        await engine.load_adapter("a@1", folders[0])
        expected = await text_of(engine, "a@1")
        step = made[0].step
        gate = asyncio.Event()
        loop = asyncio.get_running_loop()

        def slow_step():
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()
            return step()

        made[0].step = slow_step
        reading = asyncio.create_task(text_of(engine, "a@1", "running"))
        await until(lambda: made[0].stats().waiting == 1)
        unloading = asyncio.create_task(engine.unload_adapter("a@1"))
        await asyncio.sleep(0.05)
        assert not unloading.done()
        gate.set()
        assert await reading == expected
        await unloading
        assert made[0].adapters.draining == frozenset()


async def test_a_cancelled_sequence_lets_its_adapter_go(folders):
    async with threaded() as (engine, _):
        await engine.load_adapter("a@1", folders[0])
        stream = engine.submit(request_of("a", "a@1"))
        assert isinstance(await anext(stream), SequenceDelta)
        unloading = asyncio.create_task(engine.unload_adapter("a@1"))
        await stream.aclose()
        async with asyncio.timeout(60):
            await unloading


async def test_whoever_waits_for_a_lost_engine_hears_so(folders):
    async with threaded() as (engine, made):
        read = made[0].read_adapter
        gate = asyncio.Event()
        loop = asyncio.get_running_loop()

        def slow_read(folder):
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()
            return read(folder)

        made[0].read_adapter = slow_read
        loading = asyncio.create_task(engine.load_adapter("a@1", folders[0]))
        await asyncio.sleep(0.05)
        engine._connection._worker.end(0.0)
        with pytest.raises(EngineLostError):
            await loading
        gate.set()
        await until(lambda: len(made) == 2 and engine.state is EngineState.READY)
        assert list(engine.adapters) == []


async def test_files_are_read_on_one_thread_and_other_threads_keep_theirs(folders):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        async with threaded() as (engine, made):
            read, seen = made[0].read_adapter, []
            made[0].read_adapter = lambda folder: seen.append(torch.get_num_threads()) or read(folder)
            await engine.load_adapter("a@1", folders[0])
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


async def test_whatever_breaks_while_files_are_read_ends_the_engine_and_keeps_nobody_waiting(folders):
    async with threaded() as (engine, made):

        def break_down(_):
            raise RuntimeError("told to break")

        made[0].read_adapter = break_down
        with pytest.raises(EngineLostError):
            async with asyncio.timeout(60):
                await engine.load_adapter("a@1", folders[0])
        await until(lambda: len(made) == 2 and engine.state is EngineState.READY)
        assert list(engine.adapters) == []


async def test_a_step_does_not_wait_for_an_adapters_files(folders):
    async with threaded() as (engine, made):
        gate = asyncio.Event()
        loop = asyncio.get_running_loop()
        made[0].read_adapter = lambda _: asyncio.run_coroutine_threadsafe(gate.wait(), loop).result() and b"weights"
        loading = asyncio.create_task(engine.load_adapter("a@1", folders[0]))
        await text_of(engine, "fake")
        assert not loading.done()
        gate.set()
        await loading


async def test_an_engine_that_is_away_takes_no_adapter(folders):
    engine = ThreadEngine(lambda: FakeEngine(adapter_slots=1), supervision=QUICK)
    with pytest.raises(EngineLostError):
        await engine.load_adapter("a@1", folders[0])
    with pytest.raises(EngineLostError):
        await engine.unload_adapter("a@1")
