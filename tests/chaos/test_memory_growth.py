"""Memory, descriptors and threads after many requests of all kinds: as before.

python -m pytest tests/chaos/test_memory_growth.py --long        10,000 requests after 1,000
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter

import httpx
import pytest

from tests.support.load import Sent, closed_loop, numbered_page, requests_counted, resources, send_page
from tests.support.server import ServerProcess, form_body, running_server

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(3600)]

PLACES = 6
CLIENTS = 8
"""More than there are places, so that some requests are turned away."""
CHECKPOINTS = {True: 20, False: 5}
"""In the long and the short form: at each, clients that were turned away are waited for."""
PAUSE_S = 0.5
"""Of a client that was turned away, so that most requests are answered."""
MAX_DESCRIPTORS = 5


async def abort(server: ServerProcess, number: int) -> Sent:
    """Send a part of a request, or all of it, and leave."""
    body, content_type = form_body(numbered_page(number))
    head = f"POST /ocr HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head.encode() + body[: len(body) if number % 2 else len(body) // 2])
    await writer.drain()
    await asyncio.sleep(0.01)
    writer.transport.abort()
    return Sent(number, 0, "left", "", time.monotonic(), 0.0)


async def test_nothing_grows_with_the_number_of_requests(is_long, length, figures):
    warm_up, total = length(120, 1000), length(300, 10_000)
    limits = httpx.Limits(max_keepalive_connections=CLIENTS)
    with running_server(LOG_LEVEL="warning", MAX_CONCURRENT_REQUESTS=str(PLACES), OCR_BATCH_SIZE="4") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:

            async def send(number: int) -> Sent:
                if number % 10 == 0:
                    return await abort(server, number)
                if number % 10 == 1:
                    return await send_page(client, number, task="none such")
                sent = await send_page(client, number)
                if sent.code == "queue_full":
                    await asyncio.sleep(PAUSE_S)
                return sent

            async def load(count: int) -> list[Sent]:
                remaining = iter(range(count))
                return await closed_loop(send, CLIENTS, lambda: next(remaining, None) is not None)

            async def settled() -> Counter[str]:
                while server.metric("deepsynth_requests_running") or server.metric("deepsynth_queue_depth"):
                    await asyncio.sleep(0.05)
                return resources(server)

            await load(warm_up)
            before = await settled()
            points = [(0, before["api_kib"])]
            sent: list[Sent] = []
            for _ in range(CHECKPOINTS[is_long]):
                sent += await load(total // CHECKPOINTS[is_long])
                points.append((len(sent), (await settled())["api_kib"]))
            after = await settled()
            counted = requests_counted(server)
    codes = Counter(each.code for each in sent)
    slope = statistics.linear_regression(*zip(*points, strict=True)).slope
    growth = {name: after[name] - before[name] for name in after}
    figures(requests=len(sent), codes=dict(codes), before=dict(before), growth=growth, slope_kib_per_request=slope)
    figures(counted=counted)
    assert set(codes) == {"ok", "invalid_field", "left", "queue_full"}
    assert growth["api_kib"] <= (50 if is_long else 12) * 1024
    assert growth["images_kib"] + growth["engine_kib"] <= (50 if is_long else 12) * 1024
    assert abs(growth["descriptors"]) <= MAX_DESCRIPTORS
    assert growth["threads"] <= 0
