"""The engine's process killed at random moments under load: every request gets one right answer, and soon.

python -m pytest tests/chaos/test_engine_kills.py --long        100 kills
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from dataclasses import dataclass

import httpx
import pytest

from tests.support.load import (
    Sent,
    allowed_s,
    closed_loop,
    engine_pid,
    percentile,
    requests_counted,
    send_page,
    tally,
)
from tests.support.server import ServerProcess, running_server

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

CLIENTS = 8
LONGEST_S = 10.0
"""For an answer of any kind, apart from the time in which there was no engine: on a busy machine a start takes long,
and a request may live through several kills."""
PAUSE_S = 0.2
"""Of a client that was told to come back later."""
KILL_CODES = {"ok", "engine_lost", "not_ready", "poison_request"}
READINESS_S = {True: 1.0, False: 5.0}
"""In the long and the short form, whose machine does much else."""


@dataclass(frozen=True, slots=True)
class Kill:
    """When an engine was killed, and the seconds until `/readyz` said no, and until it said yes again."""

    at_s: float
    noticed_s: float
    back_s: float

    def kept(self, sent: Sent) -> float:
        """Seconds that a request spent while this engine was away."""
        return max(0.0, min(sent.at_s + sent.seconds, self.at_s + self.back_s) - max(sent.at_s, self.at_s))


async def kill_engine(server: ServerProcess, client: httpx.AsyncClient) -> Kill:
    """Kill the engine, and wait for the next one."""
    while (pid := engine_pid(server)) is None:
        await asyncio.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    killed_s = time.monotonic()
    noticed_s = None
    while True:
        assert (await client.get("/livez")).status_code == 200
        is_ready = (await client.get("/readyz")).status_code == 200
        now_s = time.monotonic() - killed_s
        if noticed_s is None and not is_ready:
            noticed_s = now_s
        if noticed_s is not None and is_ready:
            return Kill(killed_s, noticed_s, now_s)
        assert now_s < 600, server.log.read_text()[-4000:]
        await asyncio.sleep(0.01)


async def test_engine_killed_under_load(is_long, length, figures):
    draw = random.Random(100)
    kills: list[Kill] = []
    answered: list[Sent] = []
    with running_server(FAKE_STEP_MS="10", LOG_LEVEL="warning") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
            is_over = False

            async def send(number: int) -> Sent:
                sent = await send_page(client, number)
                answered.append(sent)
                if sent.code != "ok":
                    await asyncio.sleep(PAUSE_S)
                return sent

            load = asyncio.create_task(closed_loop(send, CLIENTS, lambda: not is_over))
            for _ in range(length(3, 100)):
                # An engine that dies before it has read anything is a crash loop, which is another case.
                seen = len(answered)
                while not [each for each in answered[seen:] if each.code == "ok"]:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(draw.uniform(0, 0.3))
                kills.append(await kill_engine(server, client))
            is_over = True
            sent = await load
            counted = requests_counted(server)
            # What the pages say when nothing happens.
            read = [each for each in sent if each.code == "ok"]
            quiet: dict[int, Sent] = {}
            numbers = iter(each.number for each in read)

            async def read_again() -> None:
                for number in numbers:
                    quiet[number] = await send_page(client, number)

            await asyncio.gather(*(read_again() for _ in range(CLIENTS)))
        server.wait_metric("deepsynth_requests_running", 0)
        assert server.metric("deepsynth_queue_depth") == 0
        assert server.process.poll() is None
        assert "Traceback" not in server.log.read_text()
    codes = tally(sent)
    noticed, back = [each.noticed_s for each in kills], [each.back_s for each in kills]
    longest_s = max(each.seconds - sum(kill.kept(each) for kill in kills) for each in sent)
    figures(kills=len(kills), requests=len(sent), codes=codes, longest_answer_s=max(each.seconds for each in sent))
    figures(longest_answer_without_restarts_s=longest_s)
    figures(most_kills_of_a_request=max(sum(kill.kept(each) > 0 for kill in kills) for each in sent))
    figures(noticed_p50_s=percentile(noticed, 0.5), noticed_max_s=max(noticed))
    figures(back_p50_s=percentile(back, 0.5), back_max_s=max(back))
    assert set(codes) <= KILL_CODES
    assert counted == codes
    assert len({each.number for each in sent}) == len(sent)
    assert [each for each in read if each.text != quiet[each.number].text] == []
    assert all(each.text for each in read)
    refused = [each for each in sent if each.status == 503]
    assert refused
    assert all(int(each.retry_after or 0) >= 1 for each in refused)
    usual = [each.seconds for each in quiet.values()]
    assert longest_s < allowed_s(LONGEST_S, usual, is_long=is_long)
    assert max(noticed) < allowed_s(READINESS_S[is_long], usual, is_long=is_long)
