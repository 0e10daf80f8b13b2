from __future__ import annotations

import asyncio

import pytest

from service.admission.deadline import Deadline, run_to_outcome
from service.errors import ClientGoneError, DeadlineError, UndecodableError
from tests.support.loop_clock import LoopClock


class Client:
    """Leaves when told to."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def disconnected(self) -> None:
        await self.gone.wait()


class Work:
    """Runs until told to end; remembers how it ended."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.finish = asyncio.Event()
        self.was_cancelled = False

    async def run(self) -> str:
        self.started.set()
        try:
            await self.finish.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        return "done"


async def test_work_that_ends_is_the_outcome() -> None:
    work, client = Work(), Client()
    work.finish.set()
    assert await run_to_outcome(work.run(), disconnected=client.disconnected) == "done"


async def test_error_of_the_work_is_the_outcome() -> None:
    async def fail() -> None:
        raise UndecodableError

    with pytest.raises(UndecodableError):
        await run_to_outcome(fail(), disconnected=None)


async def test_client_that_leaves_cancels_the_work() -> None:
    work, client = Work(), Client()
    outcome = asyncio.create_task(run_to_outcome(work.run(), disconnected=client.disconnected))
    await work.started.wait()
    client.gone.set()
    with pytest.raises(ClientGoneError):
        await outcome
    assert work.was_cancelled


async def test_deadline_cancels_the_work() -> None:
    work = Work()
    with pytest.raises(DeadlineError):
        async with Deadline(0.01).enforced():
            await work.run()
    assert work.was_cancelled


async def test_renewed_deadline_counts_from_then_on() -> None:
    clock = LoopClock()
    deadline, finished = Deadline(60), []

    async def finish_three() -> None:
        async with deadline.enforced():
            for number in range(3):
                clock.forward(50)
                deadline.renew()
                await asyncio.sleep(0.001)
                finished.append(number)
            clock.forward(61)
            await asyncio.sleep(3600)

    with pytest.raises(DeadlineError):
        await finish_three()
    assert finished == [0, 1, 2]
    async with deadline.enforced():
        # Passed already: the next await ends the block.
        deadline.renew()
        await asyncio.sleep(0)


async def test_finished_pages_do_not_move_the_end_of_the_whole() -> None:
    deadline = Deadline(10, total_s=0.1)

    async def finish_many() -> None:
        async with deadline.enforced():
            while True:
                await asyncio.sleep(0.02)
                deadline.renew()

    with pytest.raises(DeadlineError):
        await finish_many()
    assert deadline.total_left_s <= 0


async def test_other_timeouts_within_a_deadline_keep_their_own_error() -> None:
    with pytest.raises(TimeoutError):
        async with Deadline(10).enforced(), asyncio.timeout(0.01):
            await asyncio.sleep(10)


async def test_done_in_the_moment_of_leaving_counts_as_done() -> None:
    client = Client()

    async def done_as_client_leaves() -> str:
        client.gone.set()
        return "done"

    assert await run_to_outcome(done_as_client_leaves(), disconnected=client.disconnected) == "done"


async def test_cancelling_from_outside_cancels_work_and_watcher() -> None:
    work, client = Work(), Client()
    outcome = asyncio.create_task(run_to_outcome(work.run(), disconnected=client.disconnected))
    await work.started.wait()
    before = asyncio.all_tasks()
    outcome.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outcome
    assert work.was_cancelled
    assert len(before) == 4
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_work_that_fails_while_it_is_cancelled_does_not_change_the_outcome() -> None:
    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise UndecodableError

    client = Client()
    client.gone.set()
    with pytest.raises(ClientGoneError):
        await run_to_outcome(stubborn(), disconnected=client.disconnected)
