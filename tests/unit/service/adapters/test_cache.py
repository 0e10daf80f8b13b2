"""Slots of the engine: who gets one, who waits, who leaves."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.adapters.cache import LoraCache
from service.engine.fake import FakeEngine
from service.engine.lora.registry import AdapterError
from service.engine.protocol import EngineState
from service.errors import AdapterNotReadyError, EngineLostError
from tests.support.adapters import write_peft
from tests.support.fake_engine import SteeredEngine
from tests.support.service import eventually


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_peft(tmp_path_factory.mktemp("trained"))


@asynccontextmanager
async def slots(number: int, **options):
    engine = SteeredEngine(FakeEngine(adapter_slots=number, **options), remembers=False)
    await engine.start()
    cache = LoraCache(engine, wait_s=60.0)
    cache.start()
    try:
        yield cache, engine
    finally:
        await cache.stop()
        await engine.stop()


async def test_a_held_adapter_stays_and_the_least_recently_used_idle_one_leaves(folder):
    async with slots(3) as (cache, engine):
        held = await cache.hold("held@1", folder)
        for name in ("a@1", "b@1", "a@1"):
            (await cache.hold(name, folder)).release()
        (await cache.hold("c@1", folder)).release()
        assert sorted(engine.adapters) == ["a@1", "c@1", "held@1"]
        assert cache.num_evicted == 1
        held.release()


async def test_where_all_are_held_the_oldest_gets_nobody_new_and_leaves_with_its_last(folder):
    async with slots(2) as (cache, engine):
        first, second = await cache.hold("a@1", folder), await cache.hold("b@1", folder)
        coming = asyncio.create_task(cache.hold("c@1", folder))
        await eventually(lambda: cache.is_draining("a@1"))
        again = asyncio.create_task(cache.hold("a@1", folder))
        await asyncio.sleep(0.01)
        assert (coming.done(), again.done(), cache.num_waiting) == (False, False, 2)
        first.release()
        third = await coming
        assert sorted(engine.adapters) == ["b@1", "c@1"]
        second.release()
        await again
        assert sorted(engine.adapters) == ["a@1", "c@1"]
        third.release()


async def test_whoever_leaves_the_queue_leaves_everything_as_it_was(folder):
    async with slots(1) as (cache, engine):
        first = await cache.hold("a@1", folder)
        coming = asyncio.create_task(cache.hold("b@1", folder))
        await eventually(lambda: cache.is_draining("a@1"))
        coming.cancel()
        await eventually(lambda: not cache.is_draining("a@1"))
        second = await cache.hold("a@1", folder)
        assert cache.num_holds("a@1") == 2
        first.release()
        first.release()
        assert cache.num_holds("a@1") == 1
        second.release()
        assert (list(engine.adapters), cache.num_evicted) == (["a@1"], 0)


async def test_a_wait_is_bounded(folder):
    async with slots(1) as (cache, _):
        hold = await cache.hold("a@1", folder)
        patience_s, cache._wait_s = cache._wait_s, 0.05
        with pytest.raises(AdapterNotReadyError):
            await cache.hold("b@1", folder)
        cache._wait_s = patience_s
        hold.release()
        (await cache.hold("b@1", folder)).release()


async def test_those_who_wait_for_one_adapter_get_it_together(folder):
    async with slots(1) as (cache, _):
        holds = await asyncio.gather(*(cache.hold("a@1", folder) for _ in range(5)))
        assert cache.num_holds("a@1") == 5
        for hold in holds:
            hold.release()


async def test_a_retired_adapter_leaves_with_its_last_hold_unless_it_is_asked_for_again(folder):
    async with slots(2) as (cache, engine):
        hold = await cache.hold("a@1", folder)
        cache.retire("a@1")
        assert cache.is_draining("a@1")
        second = await cache.hold("a@1", folder)
        assert not cache.is_draining("a@1")
        cache.retire("a@1")
        hold.release()
        await asyncio.sleep(0.01)
        assert list(engine.adapters) == ["a@1"]
        second.release()
        await eventually(lambda: not engine.adapters)
        cache.retire("a@1")


async def test_the_engines_refusal_reaches_everybody_who_waits(folder):
    async with slots(1, refuse_with={"a@1": "unknown_module"}) as (cache, _):
        ends = await asyncio.gather(*(cache.hold("a@1", folder) for _ in range(3)), return_exceptions=True)
        assert [end.reason for end in ends] == ["unknown_module"] * 3
        (await cache.hold("b@1", folder)).release()


async def test_an_engine_without_slots_says_so(folder):
    async with slots(0) as (cache, _):
        with pytest.raises(AdapterError) as refusal:
            await cache.hold("a@1", folder)
        assert refusal.value.reason == "adapters_off"


async def test_an_engine_that_is_away_is_said_so_at_once(folder):
    async with slots(2) as (cache, engine):
        engine.lose()
        with pytest.raises(EngineLostError):
            await cache.hold("a@1", folder)


async def test_an_adapter_that_did_not_come_back_with_the_engine_is_loaded_anew(folder):
    async with slots(2) as (cache, engine):
        old = await cache.hold("a@1", folder)
        engine.forget_adapter("a@1")
        new = await cache.hold("a@1", folder)
        assert list(engine.adapters) == ["a@1"]
        old.release()
        assert cache.num_holds("a@1") == 1
        new.release()


async def test_an_adapter_is_wanted_until_it_is_known_that_it_did_not_come_back(folder):
    """Else its files would be deleted while a restarting engine is about to read them."""
    async with slots(2) as (cache, engine):
        (await cache.hold("a@1", folder)).release()
        engine._state = EngineState.LOADING
        engine.forget_adapter("a@1")
        cache._changed.set()
        await asyncio.sleep(0.01)
        assert (cache.is_resident("a@1"), cache.is_wanted("a@1")) == (False, True)
        engine._state = EngineState.READY
        cache._changed.set()
        await eventually(lambda: not cache.is_wanted("a@1"))


async def test_stopping_turns_away_whoever_waits(folder):
    async with slots(1) as (cache, _):
        await cache.hold("a@1", folder)
        coming = asyncio.create_task(cache.hold("b@1", folder))
        await eventually(lambda: cache.num_waiting == 1)
        await cache.stop()
        with pytest.raises(EngineLostError):
            await coming


async def test_whatever_comes_and_goes_holds_are_kept_and_everybody_is_served(folder):
    """Random traffic with cancels over few slots: none fails, nothing leaks, a held adapter is always resident."""
    choose = random.Random(3)
    async with slots(3) as (cache, engine):
        served: Counter[str] = Counter()

        async def one(number: int) -> None:
            name = f"a{choose.choice([0, 0, 0, 1, 1, 2, 3, 4, 5, 6])}@1"
            await asyncio.sleep(choose.random() * 0.05)
            hold = await cache.hold(name, folder)
            try:
                for _ in range(choose.randrange(3)):
                    await asyncio.sleep(0)
                    assert name in engine.adapters
                if choose.random() < 0.2:
                    cache.retire(name)
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
        assert cache.num_waiting == 0
        assert all(not cache.num_holds(name) for name in engine.adapters)
        engine.fake.adapters.check_integrity()
