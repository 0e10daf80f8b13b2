"""Replicas behind a load balancer are replaced one after another while requests come: none is lost.

python -m pytest tests/chaos/test_rolling_restarts.py --long        20 restarts
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import deque

import httpx
import pytest

from tests.support.balancer import Balancer, balancing
from tests.support.load import Sent, closed_loop, percentile, send_page, tally
from tests.support.server import ServerProcess, running_server

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(3600)]

GRACE_S = "1"
"""Ten times the balancer's pause between two looks."""
PACE_S = 0.25
"""Between two requests of a client: with 8 clients, 32 requests a second at most."""
CLIENTS = 8


class Replica:
    """A service that starts and ends in threads, so that the requests' loop runs on."""

    def __init__(self) -> None:
        self._running = running_server(DRAIN_GRACE_S=GRACE_S, LOG_LEVEL="warning")
        self._server: ServerProcess | None = None

    @property
    def server(self) -> ServerProcess:
        assert self._server is not None
        return self._server

    async def start(self, balancer: Balancer) -> None:
        self._server = await asyncio.to_thread(self._running.__enter__)
        balancer.add(self.server.port)
        while not balancer.is_ready(self.server.port):
            await asyncio.sleep(0.02)

    async def stop(self, balancer: Balancer) -> tuple[int, float]:
        """Exit status, and the seconds from SIGTERM to the end."""
        start_s = time.monotonic()
        self.server.process.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(self.server.process.wait, 600)
        balancer.remove(self.server.port)
        return status, time.monotonic() - start_s

    async def close(self) -> None:
        await asyncio.to_thread(self._running.__exit__, None, None, None)


async def test_no_request_is_lost(length, figures):
    statuses: list[int] = []
    stops: list[float] = []
    is_over = False
    async with balancing() as (balancer, url), contextlib.AsyncExitStack() as stack:
        replicas: deque[Replica] = deque()

        async def add() -> None:
            replica = Replica()
            stack.push_async_callback(replica.close)
            await replica.start(balancer)
            replicas.append(replica)

        await asyncio.gather(add(), add())
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

            async def send(number: int) -> Sent:
                sent = await send_page(client, number)
                await asyncio.sleep(PACE_S)
                return sent

            load = asyncio.create_task(closed_loop(send, CLIENTS, lambda: not is_over))
            start_s = time.monotonic()
            for _ in range(length(2, 20)):
                await add()
                status, seconds = await replicas.popleft().stop(balancer)
                statuses.append(status)
                stops.append(seconds)
            is_over = True
            sent = await load
            seconds = time.monotonic() - start_s
        for replica in replicas:
            await replica.stop(balancer)
    codes = tally(sent)
    figures(restarts=len(statuses), requests=len(sent), per_s=len(sent) / seconds, codes=codes)
    figures(
        stop_p50_s=percentile(stops, 0.5),
        stop_max_s=max(stops),
        latency_p99_s=percentile([s.seconds for s in sent], 0.99),
    )
    assert codes == {"ok": len(sent)}
    assert balancer.num_refused == 0
    assert set(statuses) <= {0, -signal.SIGTERM}
    assert len(sent) > 20 * len(statuses)
