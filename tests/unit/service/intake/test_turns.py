"""Whose turn it is: fair by time, not by arrival, and slow documents leave a process to the others."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from service.intake.document import Document
from service.intake.limits import IntakeLimits
from service.intake.turns import MAX_SHARES, Turn, Turns

SLOW_S = 2.5


def document(client: str = "") -> Document:
    return Document(b"", IntakeLimits(), client=client)


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_document_that_has_used_less_goes_first() -> None:
    turns, long, short = Turns(1, SLOW_S), document(), document()
    turns.give_back(await turns.take(long), 1.0)
    other = await turns.take(document())
    again, first = asyncio.create_task(turns.take(long)), asyncio.create_task(turns.take(short))
    await settle()
    turns.give_back(other, 0.1)
    await settle()
    assert (first.done(), again.done()) == (True, False)
    turns.give_back(first.result(), 0.1)
    assert (await again).document is long


async def test_clients_take_turns_however_many_documents_they_have() -> None:
    turns, order = Turns(1, SLOW_S), []

    async def page(client: str) -> None:
        turn = await turns.take(document(client))
        order.append(client)
        await asyncio.sleep(0)
        turns.give_back(turn, 0.1)

    async with asyncio.TaskGroup() as group:
        for _ in range(200):
            group.create_task(page("many"))
        await settle()
        group.create_task(page("one"))
        for _ in range(3):
            group.create_task(page("few"))
    assert order.index("one") < 5
    assert [place for place, client in enumerate(order) if client == "few"][-1] < 12


async def test_clients_that_have_nothing_to_lose_are_forgotten() -> None:
    turns = Turns(1, SLOW_S)
    for number in range(3 * MAX_SHARES):
        turns.give_back(await turns.take(document(str(number))), 0.1 if number % 2 else 0.0)
    assert len(turns._shares) <= MAX_SHARES


async def test_slow_documents_never_have_all_processes() -> None:
    turns, slow = Turns(3, SLOW_S), [document() for _ in range(6)]
    for each in slow:
        turns.give_back(await turns.take(each), 9.0)
    waiting = [asyncio.create_task(turns.take(each)) for each in slow]
    await settle()
    assert sum(task.done() for task in waiting) == 2
    turn = await asyncio.wait_for(turns.take(document()), 60)
    turns.give_back(turn, 0.1)
    for task in waiting:
        turns.give_back(await asyncio.wait_for(task, 60), 9.0)


async def test_a_slow_document_has_the_only_process_and_is_forgiven_after_a_fast_page() -> None:
    turns, slow = Turns(1, SLOW_S), document()
    turns.give_back(await turns.take(slow), 9.0)
    assert slow.is_slow
    turns.give_back(await asyncio.wait_for(turns.take(slow), 60), 0.1)
    assert not slow.is_slow


async def test_who_gives_up_waiting_or_has_just_been_granted_a_turn_leaves_it_to_others() -> None:
    turns = Turns(1, SLOW_S)
    turn = await turns.take(document())
    waiting = asyncio.create_task(turns.take(document()))
    granted = asyncio.create_task(turns.take(document()))
    await settle()
    waiting.cancel()
    await settle()
    turns.give_back(turn, 0.1)
    granted.cancel()
    await asyncio.gather(waiting, granted, return_exceptions=True)
    turns.give_back(await asyncio.wait_for(turns.take(document()), 60), 0.1)


@given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 5), st.floats(0.01, 9.0)), min_size=1, max_size=60))
def test_every_turn_comes_and_no_more_than_there_are_processes(places: int, plan: list[tuple[int, float]]) -> None:
    async def play() -> None:
        turns, documents = Turns(places, SLOW_S), [document() for _ in range(6)]
        running: list[tuple[Turn, float]] = []
        most = 0

        async def page(number: int, duration_s: float) -> None:
            nonlocal most
            turn = await turns.take(documents[number])
            running.append((turn, duration_s))
            most = max(most, len(running))

        tasks = [asyncio.create_task(page(number, duration_s)) for number, duration_s in plan]
        await settle()
        while running:
            turns.give_back(*running.pop(0))
            await settle()
        assert all(task.done() for task in tasks)
        assert most <= places

    asyncio.run(play())
