from __future__ import annotations

import asyncio

import pytest

from service.admission.fair_slots import FairSlots
from service.admission.slots import SharedSlots


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_more_than_the_share_is_taken_and_what_is_left_is_for_others() -> None:
    slots = FairSlots(3)
    shared = SharedSlots(slots, 2)
    waiting = [asyncio.create_task(shared.acquire()) for _ in range(5)]
    await settle()
    assert sum(task.done() for task in waiting) == 2
    async with asyncio.timeout(60):
        await slots.acquire()
    shared.release()
    await settle()
    assert sum(task.done() for task in waiting) == 3
    for task in waiting:
        task.cancel()


async def test_a_wait_that_is_cancelled_keeps_nothing() -> None:
    slots = FairSlots(1)
    shared = SharedSlots(slots, 1)
    await slots.acquire()
    waiting = asyncio.create_task(shared.acquire())
    await settle()
    waiting.cancel()
    await asyncio.wait({waiting})
    slots.release()
    async with asyncio.timeout(60):
        await shared.acquire()
    assert not slots.num_free


async def test_once_closed_it_gives_out_none_and_tells_when_the_last_is_back() -> None:
    slots = FairSlots(2)
    shared = SharedSlots(slots, 2)
    await shared.acquire()
    await slots.acquire()
    waiting = asyncio.create_task(shared.acquire())
    await settle()
    shared.close()
    unused = asyncio.create_task(shared.until_unused())
    slots.release()
    await settle()
    assert not waiting.done()
    assert not unused.done()
    shared.release()
    await unused
    assert not waiting.done()
    # What it had waited for is not kept either.
    async with asyncio.timeout(60):
        await slots.acquire()
        await slots.acquire()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
