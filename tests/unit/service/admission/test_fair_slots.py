from __future__ import annotations

import asyncio
import contextlib

from hypothesis import given
from hypothesis import strategies as st

from service.admission.fair_slots import FairSlots


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_page_waits_for_one_of_each_other_client_at_most() -> None:
    slots, order = FairSlots(2), []

    async def page(client: str) -> None:
        await slots.acquire(client)
        order.append(client)
        await asyncio.sleep(0)
        slots.release()

    async with asyncio.TaskGroup() as group:
        for _ in range(200):
            group.create_task(page("many"))
        await settle()
        before = len(order)
        group.create_task(page("one"))
        for _ in range(5):
            group.create_task(page("few"))
    after = order[before:]
    assert after.index("one") <= 4
    assert [place for place, client in enumerate(after) if client == "few"][-1] <= 16


async def test_of_one_client_the_first_that_came_is_the_first_served() -> None:
    slots, order = FairSlots(1), []
    await slots.acquire()

    async def page(number: int) -> None:
        await slots.acquire("a")
        order.append(number)
        slots.release()

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(page(number))
        await settle()
        slots.release()
    assert order == [0, 1, 2, 3, 4]


async def test_who_gives_up_waiting_or_has_just_been_granted_a_slot_leaves_it_to_others() -> None:
    slots = FairSlots(1)
    await slots.acquire()
    leaving, granted = (asyncio.create_task(slots.acquire("a")) for _ in range(2))
    await settle()
    leaving.cancel()
    await settle()
    slots.release()
    granted.cancel()
    await asyncio.gather(leaving, granted, return_exceptions=True)
    assert slots.num_free == 1


@given(st.integers(1, 3), st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans()), max_size=40))
def test_every_slot_comes_back_and_none_is_free_while_someone_waits(
    num_slots: int, plan: list[tuple[str, bool, bool]]
) -> None:
    async def play() -> None:
        slots = FairSlots(num_slots)
        waiting: list[asyncio.Task[None]] = []
        for client, gives_back, gives_up in plan:
            waiting.append(asyncio.create_task(slots.acquire(client)))
            await settle()
            if gives_up and not waiting[-1].done():
                waiting.pop().cancel()
                await settle()
            if gives_back and (done := next((task for task in waiting if task.done()), None)):
                waiting.remove(done)
                slots.release()
                await settle()
            num_taken = sum(task.done() for task in waiting)
            assert num_taken + slots.num_free == num_slots
            assert not slots.num_free or num_taken == len(waiting)
        while waiting:
            done = next(task for task in waiting if task.done())
            waiting.remove(done)
            slots.release()
            await settle()
        assert slots.num_free == num_slots

    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(play())
