import asyncio
import contextlib
import dataclasses
import logging
import os
import random
import signal
import sys
import time
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from service.engine.process.engines import ProcessEngine, ThreadEngine
from service.engine.process.supervision import Supervision
from service.engine.protocol import EngineState, SamplingParams, SequenceDelta, SequenceFailure, SequenceResult
from service.errors import EngineError
from tests.unit.service.engine.standin import (
    AT_GATE,
    GATE,
    INFO,
    StandIn,
    make_endless,
    make_exiting,
    make_failing,
    make_killed,
    make_saying_how_threads_wait,
    make_standin,
    standin_request,
    standin_result,
)

ROOT = Path(__file__).resolve().parents[5]
QUICK = Supervision(start_timeout_s=240.0, check_s=0.02, backoff_s=0.01, stop_grace_s=10.0)
STALLING = dataclasses.replace(QUICK, stall_s=1.0)
"""For engines that stall on purpose: one that merely waits for a busy machine's cores must not count as stalled."""


@asynccontextmanager
async def started(engine):
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def read(engine, request):
    return [event async for event in engine.submit(request)]


async def until(condition, patience_s: float = 120.0):
    async with asyncio.timeout(patience_s):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_page_comes_back_from_the_process():
    async with started(ProcessEngine(make_standin, num_threads=1, supervision=QUICK)) as engine:
        request = standin_request("a", ink=9)
        events = await read(engine, request)
        assert engine.info == INFO
        assert engine.state is EngineState.READY
    assert events[-1] == standin_result(request)
    assert "".join(e.text for e in events[:-1]) == events[-1].text


async def test_the_process_ignores_signals_meant_for_its_group_and_ends_on_stop():
    engine = ProcessEngine(make_standin, supervision=QUICK)
    async with started(engine):
        pid = engine._connection._worker.pid
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        assert isinstance((await read(engine, standin_request("a")))[-1], SequenceResult)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_pages_of_a_killed_process_are_read_again_and_told_what_they_lacked():
    async with started(ProcessEngine(make_standin, supervision=QUICK)) as engine:
        requests = [standin_request(str(n), max_new_tokens=2000, ink=n) for n in range(3)]
        tasks = [asyncio.ensure_future(read(engine, request)) for request in requests]
        await until(lambda: all(page._texts for page in engine._line.sent) and len(engine._line.sent) == 3)
        os.kill(engine._connection._worker.pid, signal.SIGKILL)
        await until(lambda: engine.state is EngineState.FAILED)
        assert not any(task.done() for task in tasks)
        for request, events in zip(requests, await asyncio.gather(*tasks), strict=True):
            assert events[-1] == standin_result(request)
            assert "".join(event.text for event in events[:-1]) == events[-1].text
        assert engine.life.losses == {"signal": 1}
        assert engine.life.num_retried == 3
        assert engine._quarantine.is_empty


async def test_pages_fail_at_once_when_the_engine_will_not_be_back_soon():
    supervision = dataclasses.replace(QUICK, backoff_s=30.0, hold_s=5.0)
    async with started(ProcessEngine(make_standin, supervision=supervision)) as engine:
        task = asyncio.ensure_future(read(engine, standin_request("a", max_new_tokens=10**9)))
        await until(lambda: engine._line.sent)
        os.kill(engine._connection._worker.pid, signal.SIGKILL)
        assert (await task)[-1].code == "engine_lost"
        assert 25 < engine.life.ready_in_s < 60
        assert (await read(engine, standin_request("b")))[-1].code == "engine_lost"


async def test_pages_do_not_wait_longer_than_stated():
    supervision = dataclasses.replace(QUICK, backoff_s=0.5, hold_s=60.0)
    async with started(ThreadEngine(make_standin, supervision=supervision)) as engine:
        engine._supervision = dataclasses.replace(supervision, hold_s=0.6)
        began_s = time.monotonic()
        engine._start_s = 0.0

        def refuse():
            time.sleep(0.5)
            raise OSError("no descriptors")

        engine._launch = refuse
        assert (await read(engine, standin_request("a", prompt="raise")))[-1].code == "engine_lost"
        # With `hold_s` as it was before it would have been a minute.
        assert 0.5 < time.monotonic() - began_s < 30


@pytest.mark.parametrize(
    ("engine_class", "prompt", "kind"),
    [(ProcessEngine, "die", "exit"), (ThreadEngine, "wait", "stall"), (ThreadEngine, "raise", "exception")],
)
async def test_a_page_that_ends_the_engine_twice_is_refused_and_costs_no_other(engine_class, prompt, kind):
    GATE.clear()
    async with started(engine_class(make_standin, supervision=STALLING if kind == "stall" else QUICK)) as engine:
        mates = [standin_request(str(n), max_new_tokens=10**4, ink=n) for n in range(3)]
        tasks = [asyncio.ensure_future(read(engine, mate)) for mate in mates]
        await until(lambda: len(engine._line.sent) == 3)
        bad = await read(engine, standin_request("bad", prompt=prompt, ink=200))
        assert [event.code for event in bad] == ["poison_request"]
        assert engine.life.losses == {kind: 2}
        for mate in mates:
            await engine_cancelled(tasks.pop(0))
            assert (await read(engine, dataclasses.replace(mate, params=SamplingParams(3))))[-1].kind == "result"
        # Its content is what is refused, whatever else is asked of it.
        again = await read(engine, standin_request("again", ink=200))
        assert [event.code for event in again] == ["poison_request"]
        assert (await read(engine, standin_request("good", ink=201)))[-1].kind == "result"
        assert engine.life.losses == {kind: 2}
        assert engine.life.num_refused == 2


async def engine_cancelled(task):
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_page_whose_reader_leaves_at_each_death_is_known_all_the_same():
    async with started(ThreadEngine(make_standin, supervision=STALLING)) as engine:
        GATE.clear()
        for number in range(2):
            AT_GATE.clear()
            task = asyncio.ensure_future(read(engine, standin_request(f"bad{number}", prompt="wait", ink=99)))
            await until(AT_GATE.is_set)
            await engine_cancelled(task)
            await until(lambda number=number: engine.life.losses == {"stall": number + 1})
            await until(lambda: engine.state is EngineState.READY)
        GATE.set()
        assert (await read(engine, standin_request("bad", ink=99)))[-1].code == "poison_request"
        assert (await read(engine, standin_request("good", ink=98)))[-1].kind == "result"


async def test_a_page_that_was_read_before_its_mate_ended_the_engine_is_no_suspect():
    async with started(ThreadEngine(make_standin, supervision=QUICK)) as engine:
        await read(engine, standin_request("early", ink=5))
        assert (await read(engine, standin_request("bad", prompt="raise", ink=6)))[-1].code == "poison_request"
        assert engine.life.num_retried == 1
        assert (await read(engine, standin_request("late", ink=5)))[-1].kind == "result"


async def test_a_canary_page_is_not_held_against_its_content():
    async with started(ThreadEngine(make_standin, supervision=QUICK)) as engine:
        canary = dataclasses.replace(standin_request("canary", prompt="raise", ink=7), is_canary=True)
        assert (await read(engine, canary))[-1].code == "engine_lost"
        await until(lambda: engine.state is EngineState.READY)
        assert (await read(engine, standin_request("page", ink=7)))[-1].kind == "result"


async def test_a_stopped_process_is_noticed_at_once_and_its_pages_are_read_again():
    async with started(ProcessEngine(make_standin, supervision=QUICK)) as engine:
        request = standin_request("a", max_new_tokens=2000)
        task = asyncio.ensure_future(read(engine, request))
        await until(lambda: engine._line.sent)
        began_s = time.monotonic()
        os.kill(engine._connection._worker.pid, signal.SIGSTOP)
        await until(lambda: engine.state is EngineState.FAILED)
        assert time.monotonic() - began_s < QUICK.stall_s / 2
        assert (await task)[-1] == standin_result(request)
        assert engine.life.losses == {"stopped": 1}
        assert engine._quarantine.is_empty


async def test_an_engine_that_answers_but_makes_no_step_is_noticed():
    class Idling(StandIn):
        def step(self):
            time.sleep(0.001)
            return []

    made = []

    def make():
        made.append(Idling() if not made else StandIn())
        return made[-1]

    async with started(ThreadEngine(make, supervision=STALLING)) as engine:
        assert (await read(engine, standin_request("a")))[-1].kind == "result"
        assert engine.life.losses == {"stall": 1}


async def test_deaths_with_health_between_are_no_loop():
    supervision = dataclasses.replace(QUICK, healthy_s=0.1, max_restarts=2)
    async with started(ThreadEngine(make_standin, supervision=supervision)) as engine:
        for number in range(6):
            await until(lambda: engine.state is EngineState.READY)
            await asyncio.sleep(0.15)
            engine._connection._worker.end(0.0)
            await until(lambda number=number: engine.life.losses == {"exit": number + 1})
        await until(lambda: engine.state is EngineState.READY)
        assert (await read(engine, standin_request("a")))[-1].kind == "result"
        assert not engine.life.is_down


async def test_a_loop_of_pages_that_end_the_engine_brings_it_down():
    supervision = dataclasses.replace(QUICK, max_restarts=3)
    async with started(ThreadEngine(make_standin, supervision=supervision)) as engine:
        codes = [(await read(engine, standin_request(str(n), prompt="raise", ink=n)))[-1].code for n in range(3)]
        assert codes == ["poison_request", "poison_request", "engine_lost"]
        await until(lambda: engine.life.is_down)
        assert engine.life.losses == {"exception": 4}


async def test_the_process_ends_with_its_parent():
    program = (
        "import asyncio\n"
        "from service.engine.process.engines import ProcessEngine\n"
        "from tests.unit.service.engine.standin import make_standin\n"
        "async def main():\n"
        "    engine = ProcessEngine(make_standin)\n"
        "    await engine.start()\n"
        "    print(engine._connection._worker.pid, flush=True)\n"
        "    await asyncio.sleep(3600)\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    child = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()

    def is_gone() -> bool:
        try:
            with open(f"/proc/{child}/stat") as stat:
                return stat.read().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    await until(is_gone)


async def test_a_parent_that_forgets_to_stop_still_ends():
    program = (
        "import asyncio\n"
        "from service.engine.process.engines import ProcessEngine\n"
        "from tests.unit.service.engine.standin import make_standin\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(ProcessEngine(make_standin).start())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=ROOT)
    async with asyncio.timeout(240):
        assert await process.wait() == 0


@pytest.mark.parametrize(
    ("factory", "timeout_s", "message"),
    [
        (make_failing, 60.0, "no checkpoint at nowhere"),
        (make_exiting, 60.0, "its process ended while loading: exit status 5"),
        (make_killed, 60.0, r"its process ended while loading: killed by SIGKILL \(likely out of memory\)"),
        (make_endless, 0.5, "not ready after 0.5 s"),
    ],
)
async def test_an_engine_that_cannot_start_says_why(factory, timeout_s, message):
    engine = ProcessEngine(factory, supervision=Supervision(start_timeout_s=timeout_s))
    with pytest.raises(EngineError, match=message):
        await engine.start()
    assert engine.state is EngineState.FAILED
    assert [e.code for e in await read(engine, standin_request("a"))] == ["engine_lost"]
    with pytest.raises(EngineError):
        _ = engine.info
    await engine.stop()


async def test_an_engine_that_fails_on_a_name_that_is_no_utf8_says_why(caplog):
    # Log lines are part of a test's report, which pytest-xdist cannot send with such a name in it.
    caplog.set_level(logging.CRITICAL, "service")

    def fail():
        raise OSError("no checkpoint at /models/\udcff")

    with pytest.raises(EngineError, match=r"no checkpoint at /models/\\udcff"):
        await ThreadEngine(fail, supervision=QUICK).start()


async def test_threads_of_the_process_sleep_while_they_wait():
    engine = ProcessEngine(make_saying_how_threads_wait)
    with pytest.raises(EngineError, match="threads are b'passive'"):
        await engine.start()
    await engine.stop()


async def test_a_stuck_step_is_noticed():
    GATE.clear()
    async with started(ThreadEngine(make_standin, supervision=STALLING)) as engine:
        events = await read(engine, standin_request("a", prompt="wait"))
        assert events[-1].code == "poison_request"
        assert "made no step" in events[-1].detail
        await until(lambda: engine.state is EngineState.READY)
        GATE.set()
        assert isinstance((await read(engine, standin_request("b", ink=2)))[-1], SequenceResult)


async def test_an_exception_in_a_step_loses_the_engine_and_it_comes_back():
    async with started(ThreadEngine(make_standin, supervision=QUICK)) as engine:
        assert (await read(engine, standin_request("a", prompt="raise")))[-1].code == "poison_request"
        await until(lambda: engine.state is EngineState.READY)


async def test_restarts_are_bounded():
    made = []

    def once():
        made.append(StandIn())
        if len(made) > 1:
            raise OSError("the device has gone")
        return made[0]

    supervision = Supervision(check_s=0.02, backoff_s=0.001, max_restarts=3)
    async with started(ThreadEngine(once, supervision=supervision)) as engine:
        await read(engine, standin_request("a", prompt="raise"))
        await until(engine._supervisor.done)
        assert len(made) == 1 + 3
        assert engine.state is EngineState.FAILED
        assert [e.code for e in await read(engine, standin_request("b"))] == ["engine_lost"]


async def test_an_idle_engine_that_died_is_noticed():
    async with started(ThreadEngine(make_standin, supervision=QUICK)) as engine:
        connection = engine._connection
        connection._worker.end(0.0)
        await until(lambda: engine._connection is not connection and engine.state is EngineState.READY)


async def test_closing_the_iterator_cancels():
    engines = []

    def make():
        engines.append(StandIn())
        return engines[-1]

    async with started(ThreadEngine(make, supervision=QUICK)) as engine:
        async with aclosing(engine.submit(standin_request("a", max_new_tokens=10**9))) as stream:
            assert isinstance(await anext(stream), SequenceDelta)
        await until(lambda: not engines[0].has_work)
        assert not len(engine._line)


async def test_cancelling_the_reading_task_cancels_the_sequence():
    engines = []

    def make():
        engines.append(StandIn())
        return engines[-1]

    async with started(ThreadEngine(make, supervision=QUICK)) as engine:
        task = asyncio.create_task(read(engine, standin_request("a", max_new_tokens=10**9)))
        await until(lambda: engines[0].running)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not engines[0].has_work)


async def test_stop_fails_what_is_open():
    engine = ThreadEngine(make_standin, supervision=QUICK)
    await engine.start()
    task = asyncio.create_task(read(engine, standin_request("a", max_new_tokens=10**9)))
    await until(lambda: engine._line.sent)
    await engine.stop()
    assert (await task)[-1].code == "engine_lost"
    assert engine.state is EngineState.DRAINING


async def test_statistics_reach_the_service():
    async with started(ThreadEngine(make_standin, supervision=QUICK)) as engine:
        await asyncio.gather(*(read(engine, standin_request(str(n))) for n in range(6)))
        stats = await engine.stats()
        assert stats.state is EngineState.READY
        assert sum(stats.batch_sizes) == 6 * 4
        assert (await engine.stats()).batch_sizes == ()


async def test_an_idle_engine_waits_for_company_and_a_full_set_starts_at_once():
    engines = []

    def make():
        engines.append(StandIn())
        return engines[-1]

    max_wait_s = 120.0
    async with started(ThreadEngine(make, max_wait_s=max_wait_s, supervision=QUICK)) as engine:
        async with asyncio.timeout(max_wait_s / 2):
            await asyncio.gather(*(read(engine, standin_request(str(n))) for n in range(INFO.batch_size)))
        assert (await engine.stats()).batch_sizes[0] == INFO.batch_size


async def test_an_idle_engine_does_not_wait_for_company_that_is_not_on_its_way():
    max_wait_s = 120.0
    async with started(ThreadEngine(make_standin, max_wait_s=max_wait_s, supervision=QUICK)) as engine:
        async with asyncio.timeout(max_wait_s / 2):
            await read(engine, dataclasses.replace(standin_request("0"), is_alone=True))


async def test_every_request_gets_one_reply_whatever_happens():
    """Random traffic with cancels, failing pages and lost engines: one last event each, of the right page."""
    choose = random.Random(5)
    supervision = Supervision(stall_s=60.0, check_s=0.01, backoff_s=0.0, max_restarts=10**9)
    async with started(ThreadEngine(make_standin, supervision=supervision)) as engine:

        async def one(number: int):
            prompt = choose.choices(["word", "fail", "raise"], [0.95, 0.04, 0.01])[0]
            request = standin_request(str(number), prompt, choose.randint(0, 5), ink=number % 250)
            patience = choose.choice([None, None, choose.randint(0, 3)])
            events = []
            async with aclosing(engine.submit(request)) as stream:
                async for event in stream:
                    events.append(event)
                    if len(events) == patience:
                        return
            final = [event for event in events if not isinstance(event, SequenceDelta)]
            assert final == events[-1:]
            assert {event.sequence_id for event in events} == {str(number)}
            if isinstance(final[0], SequenceResult):
                assert final[0] == standin_result(request)
                assert "".join(event.text for event in events[:-1]) == final[0].text
            else:
                assert isinstance(final[0], SequenceFailure)

        for start in range(0, 2000, 20):
            await asyncio.gather(*(one(number) for number in range(start, start + 20)))
        assert not len(engine._line)
