"""Slots of the engine: who gets one, who waits, who leaves."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.adapters.cache import Residency
from service.engine.fake import FakeEngine, FakeEngineHandle
from service.engine.lora.registry import AdapterError
from service.errors import AdapterNotReadyError, EngineLostError
from tests.support.adapters import write_peft
from tests.support.service import eventually


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_peft(tmp_path_factory.mktemp("trained"))


@asynccontextmanager
async def slots(number: int, *, wait_s: float = 10.0, **options):
    engine = FakeEngineHandle(FakeEngine(adapter_slots=number, **options), remembers=False)
    await engine.start()
    residency = Residency(engine, wait_s=wait_s)
    residency.start()
    try:
        yield residency, engine
    finally:
        await residency.stop()
        await engine.stop()


async def test_a_held_adapter_stays_and_the_least_recently_used_idle_one_leaves(folder):
    async with slots(3) as (residency, engine):
        held = await residency.hold("held@1", folder)
        for name in ("a@1", "b@1", "a@1"):
            (await residency.hold(name, folder)).release()
        (await residency.hold("c@1", folder)).release()
        assert sorted(engine.adapters) == ["a@1", "c@1", "held@1"]
        assert residency.num_evicted == 1
        held.release()


async def test_where_all_are_held_the_oldest_gets_nobody_new_and_leaves_with_its_last(folder):
    async with slots(2) as (residency, engine):
        first, second = await residency.hold("a@1", folder), await residency.hold("b@1", folder)
        coming = asyncio.create_task(residency.hold("c@1", folder))
        await eventually(lambda: residency.is_draining("a@1"))
        again = asyncio.create_task(residency.hold("a@1", folder))
        await asyncio.sleep(0.01)
        assert (coming.done(), again.done(), residency.num_waiting) == (False, False, 2)
        first.release()
        third = await coming
        assert sorted(engine.adapters) == ["b@1", "c@1"]
        second.release()
        await again
        assert sorted(engine.adapters) == ["a@1", "c@1"]
        third.release()


async def test_whoever_leaves_the_queue_leaves_everything_as_it_was(folder):
    async with slots(1) as (residency, engine):
        first = await residency.hold("a@1", folder)
        coming = asyncio.create_task(residency.hold("b@1", folder))
        await eventually(lambda: residency.is_draining("a@1"))
        coming.cancel()
        await eventually(lambda: not residency.is_draining("a@1"))
        second = await residency.hold("a@1", folder)
        assert residency.num_holds("a@1") == 2
        first.release()
        first.release()
        assert residency.num_holds("a@1") == 1
        second.release()
        assert (list(engine.adapters), residency.num_evicted) == (["a@1"], 0)


async def test_a_wait_is_bounded(folder):
    async with slots(1, wait_s=0.05) as (residency, _):
        hold = await residency.hold("a@1", folder)
        with pytest.raises(AdapterNotReadyError):
            await residency.hold("b@1", folder)
        hold.release()
        (await residency.hold("b@1", folder)).release()


async def test_those_who_wait_for_one_adapter_get_it_together(folder):
    async with slots(1) as (residency, _):
        holds = await asyncio.gather(*(residency.hold("a@1", folder) for _ in range(5)))
        assert residency.num_holds("a@1") == 5
        for hold in holds:
            hold.release()


async def test_a_retired_adapter_leaves_with_its_last_hold_unless_it_is_asked_for_again(folder):
    async with slots(2) as (residency, engine):
        hold = await residency.hold("a@1", folder)
        residency.retire("a@1")
        assert residency.is_draining("a@1")
        second = await residency.hold("a@1", folder)
        assert not residency.is_draining("a@1")
        residency.retire("a@1")
        hold.release()
        await asyncio.sleep(0.01)
        assert list(engine.adapters) == ["a@1"]
        second.release()
        await eventually(lambda: not engine.adapters)
        residency.retire("a@1")


async def test_the_engines_refusal_reaches_everybody_who_waits(folder):
    async with slots(1, refuse_with={"a@1": "unknown_module"}) as (residency, _):
        ends = await asyncio.gather(*(residency.hold("a@1", folder) for _ in range(3)), return_exceptions=True)
        assert [end.reason for end in ends] == ["unknown_module"] * 3
        (await residency.hold("b@1", folder)).release()


async def test_an_engine_without_slots_says_so(folder):
    async with slots(0) as (residency, _):
        with pytest.raises(AdapterError) as refusal:
            await residency.hold("a@1", folder)
        assert refusal.value.reason == "adapters_off"


async def test_an_engine_that_is_away_is_said_so_at_once(folder):
    async with slots(2) as (residency, engine):
        engine.lose()
        with pytest.raises(EngineLostError):
            await residency.hold("a@1", folder)


async def test_an_adapter_that_did_not_come_back_with_the_engine_is_loaded_anew(folder):
    async with slots(2) as (residency, engine):
        old = await residency.hold("a@1", folder)
        engine._engine.unload_adapter("a@1")
        new = await residency.hold("a@1", folder)
        assert list(engine.adapters) == ["a@1"]
        old.release()
        assert residency.num_holds("a@1") == 1
        new.release()


async def test_stopping_turns_away_whoever_waits(folder):
    async with slots(1) as (residency, _):
        await residency.hold("a@1", folder)
        coming = asyncio.create_task(residency.hold("b@1", folder))
        await eventually(lambda: residency.num_waiting == 1)
        await residency.stop()
        with pytest.raises(EngineLostError):
            await coming


async def test_whatever_comes_and_goes_holds_are_kept_and_everybody_is_served(folder):
    """Random traffic with cancels over few slots: nobody fails, nothing leaks, a held adapter is always resident."""
    choose = random.Random(3)
    async with slots(3) as (residency, engine):
        served: Counter[str] = Counter()

        async def one(number: int) -> None:
            name = f"a{choose.choice([0, 0, 0, 1, 1, 2, 3, 4, 5, 6])}@1"
            await asyncio.sleep(choose.random() * 0.05)
            hold = await residency.hold(name, folder)
            try:
                for _ in range(choose.randrange(3)):
                    await asyncio.sleep(0)
                    assert name in engine.adapters
                if choose.random() < 0.2:
                    residency.retire(name)
            finally:
                hold.release()
            served[name] += 1

        tasks = [asyncio.create_task(one(number)) for number in range(400)]
        for task in choose.sample(tasks, 60):
            await asyncio.sleep(0)
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ends} <= {type(None), asyncio.CancelledError}
        assert len(served) == 7
        assert residency.num_waiting == 0
        assert all(not residency.num_holds(name) for name in residency.names)
        engine._engine.adapters.check_integrity()
