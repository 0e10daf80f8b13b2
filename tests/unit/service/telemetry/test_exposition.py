from __future__ import annotations

import asyncio

from service.telemetry.exposition import Exposition


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make(clock: Clock, max_age_s: float, gate: asyncio.Event | None = None) -> tuple[Exposition, list[str]]:
    calls: list[str] = []

    async def refresh() -> None:
        calls.append("refresh")
        if gate is not None:
            await gate.wait()

    def render() -> bytes:
        calls.append("render")
        return b"%d" % calls.count("render")

    return Exposition(refresh=refresh, render=render, max_age_s=max_age_s, clock=clock), calls


async def test_a_text_is_given_again_until_it_is_too_old() -> None:
    clock = Clock()
    exposition, calls = make(clock, 1.0)
    assert await exposition.text() == b"1"
    clock.now_s += 0.99
    assert await exposition.text() == b"1"
    clock.now_s += 0.02
    assert await exposition.text() == b"2"
    assert calls == ["refresh", "render"] * 2


async def test_age_zero_writes_it_for_each_scrape() -> None:
    exposition, _ = make(Clock(), 0.0)
    assert [await exposition.text() for _ in range(3)] == [b"1", b"2", b"3"]


async def test_scrapes_at_the_same_time_share_one_text() -> None:
    gate = asyncio.Event()
    exposition, calls = make(Clock(), 1.0, gate)
    scrapes = [asyncio.create_task(exposition.text()) for _ in range(50)]
    await asyncio.sleep(0)
    gate.set()
    assert set(await asyncio.gather(*scrapes)) == {b"1"}
    assert calls == ["refresh", "render"]
