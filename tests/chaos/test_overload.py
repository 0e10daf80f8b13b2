"""Ten times more requests than the service can answer: the rest is refused at once, and what is accepted stays in time.

    python -m pytest tests/chaos/test_overload.py --long        60 seconds

The fake engine's step is the bottleneck, not the processor, so that the figures hold on a busy machine too.
"""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from tests.support.load import allowed_s, closed_loop, open_loop, percentile, requests_counted, send_page, tally
from tests.support.server import running_server

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]

TIMES = 10
SETTINGS = {"FAKE_STEP_MS": "60", "OCR_BATCH_SIZE": "2", "MAX_CONCURRENT_REQUESTS": "6", "LOG_LEVEL": "warning"}
MIN_GOODPUT = 0.95
MAX_LATENCY_RATIO = 1.25
PROBE_TIMEOUT_S = 5.0
"""The chart's."""


async def probe(url: str, seen: list[tuple[int, float]]) -> None:
    """Ask both probes ten times a second, as a platform does that ends a pod which does not answer."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        while True:
            for path in ("/livez", "/readyz"):
                start_s = time.monotonic()
                status = (await client.get(path)).status_code
                seen.append((status, time.monotonic() - start_s))
            await asyncio.sleep(0.1)


async def test_overload_is_refused_at_once_and_costs_no_goodput(is_long, length, figures):
    seconds = length(4, 60)
    limits = httpx.Limits(max_connections=500, max_keepalive_connections=500)
    with running_server(**SETTINGS) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:
            places = int(SETTINGS["MAX_CONCURRENT_REQUESTS"])
            end_s = time.monotonic() + seconds
            full = await closed_loop(lambda number: send_page(client, number), places, lambda: time.monotonic() < end_s)
            saturated = [each for each in full if each.at_s + each.seconds < end_s]
            capacity = len(saturated) / seconds
            before = requests_counted(server)
            start_s = time.monotonic()
            probes: list[tuple[int, float]] = []
            probing = asyncio.create_task(probe(server.url, probes))
            sent = await open_loop(lambda number: send_page(client, number), TIMES * capacity, seconds)
            probing.cancel()
            wall_s = time.monotonic() - start_s
            counted = requests_counted(server)
        assert server.metric("deepsynth_requests_running") == server.metric("deepsynth_queue_depth") == 0
    accepted = [each for each in sent if each.code == "ok"]
    refused = [each for each in sent if each.code == "queue_full"]
    goodput = len([each for each in accepted if each.at_s + each.seconds < start_s + seconds]) / seconds / capacity
    at_one = percentile([each.seconds for each in saturated], 0.99)
    at_ten = percentile([each.seconds for each in accepted], 0.99)
    refusal_p99_s = percentile([each.seconds for each in refused], 0.99)
    figures(capacity_per_s=capacity, offered_per_s=len(sent) / seconds, seconds=wall_s, codes=tally(sent))
    figures(goodput=goodput, accepted_p99_s=at_ten, saturated_p99_s=at_one, refusal_p99_s=refusal_p99_s)
    figures(probes=len(probes), probe_p99_s=percentile([each for _, each in probes], 0.99))
    assert {status for status, _ in probes} == {200}
    assert max(each for _, each in probes) < allowed_s(PROBE_TIMEOUT_S, [each for _, each in probes], is_long=is_long)
    assert set(tally(sent)) == {"ok", "queue_full"}
    assert {
        code: count - before.get(code, 0) for code, count in counted.items() if count != before.get(code, 0)
    } == tally(sent)
    assert all(int(each.retry_after or 0) >= 1 for each in refused)
    # A test process for each core shares them with the service in the short form.
    assert refusal_p99_s < (0.05 if is_long else max(0.5, at_one / 2))
    assert goodput >= (MIN_GOODPUT if is_long else 0.75)
    assert at_ten <= at_one * (MAX_LATENCY_RATIO if is_long else 2)
