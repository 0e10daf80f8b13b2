"""What is counted is what clients saw, and nothing that a client sends becomes a series."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import string
from collections import Counter
from collections.abc import AsyncIterator
from urllib.parse import quote

import httpx
import pytest
from fastapi.routing import APIRoute
from prometheus_client.parser import text_string_to_metric_families

from service.routes.middleware import METHODS
from tests.support.chat import chat, image_part
from tests.support.server import ServerProcess, form_body, running_server
from tests.support.service import RunningService, png, running_service

pytestmark = pytest.mark.integration

PAGE = png()
MAX_SERIES = 2500
GAUGES_OF_WORK = (
    "deepsynth_queue_depth",
    "deepsynth_requests_running",
    "deepsynth_sequences_waiting",
    "deepsynth_sequences_running",
    "deepsynth_worker_seconds_since_progress",
    "vllm:num_requests_waiting",
    "vllm:num_requests_running",
)


async def send_something(service: RunningService, draw: random.Random) -> None:
    """One request with something that only its client chose."""
    word = "".join(draw.choices(string.ascii_letters + string.digits + "-._~ /?#%\u00e4\u4e2d", k=draw.randint(1, 30)))
    name = quote(word, safe="")
    token = "".join(draw.choices(string.ascii_uppercase, k=draw.randint(3, 12)))
    headers = {"user-agent": name, "x-request-id": token, "x-api-key": name, "origin": f"http://{token}.example"}
    client = service.client
    match draw.randrange(8):
        case 0:
            await client.get(f"/{quote(word)}", headers=headers)
        case 1:
            await client.request(token, draw.choice(("/livez", "/ocr", f"/{name}")), headers=headers)
        case 2:
            await client.get("/livez", headers={**headers, "host": f"{token.lower()}.example:{draw.randrange(65536)}"})
        case 3:
            await client.get(f"/{draw.choice(('jobs', 'samples', 'web', 'adapters'))}/{name}", headers=headers)
        case 4:
            await client.post(f"/adapters/{name}/pin", json={"why": word}, headers=headers)
        case 5:
            await client.post("/ocr", files={"file": (word, PAGE)}, data={"model_id": f"m{name}"}, headers=headers)
        case 6:
            await client.post("/v1/chat/completions", json=chat(IMAGE, model=f"m{name}"), headers=headers)
        case _:
            await client.post("/ocr", files={"file": PAGE}, data={"format": name, "task": name}, headers=headers)


IMAGE = image_part(PAGE)


async def series(service: RunningService) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    text = (await service.client.get("/metrics")).text
    families = text_string_to_metric_families(text)
    return {(each.name, tuple(sorted(each.labels.items()))) for family in families for each in family.samples}


@pytest.mark.parametrize(
    "num_requests", [500, pytest.param(10_000, marks=[pytest.mark.chaos, pytest.mark.timeout(1200)])]
)
async def test_nothing_that_clients_choose_becomes_a_series(num_requests: int) -> None:
    draw = random.Random(16)
    async with running_service() as service:
        # Series of HTTP begin when a route is first used with a method: all are, and what they answer is.
        included = [each.original_router for each in service.app.routes if hasattr(each, "original_router")]
        routes = [route for router in included for route in router.routes if isinstance(route, APIRoute)]
        for route in routes:
            for method in METHODS:
                await service.client.request(method, re.sub(r"{.*?}", "x", route.path))
        for _ in range(300):
            await send_something(service, draw)
        await series(service)
        before = await series(service)
        for _ in range(num_requests):
            await send_something(service, draw)
        after = await series(service)
    assert after - before == set()
    assert len(after) < MAX_SERIES
    handlers = {value for _, labels in after for label, value in labels if label == "handler"}
    assert handlers <= {"none", *(route.path for route in routes)}


async def by_outcome(client: httpx.AsyncClient) -> Counter[str]:
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families((await client.get("/metrics")).text):
        for sample in family.samples:
            if sample.name == "deepsynth_requests_total" and sample.value:
                found[sample.labels["code"]] += int(sample.value)
    return found


def upload() -> tuple[bytes, bytes]:
    """Headers and body of a request."""
    body, content_type = form_body(PAGE)
    head = f"POST /ocr HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode(), body


@contextlib.asynccontextmanager
async def aborted(server: ServerProcess, share: float) -> AsyncIterator[None]:
    """Send a share of an upload, and cut the connection after the block, before the answer."""
    head, body = upload()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head + body[: int(len(body) * share)])
    await writer.drain()
    yield
    assert not reader.at_eof()
    writer.close()
    await writer.wait_closed()


async def refused(server: ServerProcess) -> str:
    """Send headers alone, which suffice to be refused; the code of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(upload()[0])
    answer = await reader.read()
    writer.close()
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["code"])


async def test_outcomes_are_those_that_clients_saw_and_gauges_return_to_zero() -> None:
    places = 4
    # A page has four words at least, so that no answer is ready before its client has left.
    with running_server(FAKE_STEP_MS="1500", MAX_CONCURRENT_REQUESTS=str(places), OCR_BATCH_SIZE="2") as server:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:

            async def send(data: bytes, **fields: str) -> str:
                response = await client.post("/ocr", files={"file": data}, data=fields)
                return "ok" if response.status_code == 200 else str(response.json()["code"])

            seen: Counter[str] = Counter()
            async with contextlib.AsyncExitStack() as uploads:
                for share in (0.5, 0.5, 1.0, 1.0):
                    await uploads.enter_async_context(aborted(server, share))
                await wait_for_places(client, waiting=2, running=2)
            seen["client_disconnect"] += 4
            await wait_until_idle(client)
            # Four pages take every place; what comes while they are read is refused.
            reading = [asyncio.create_task(send(PAGE, max_new_tokens="3")) for _ in range(places)]
            await wait_for_places(client, waiting=0, running=places)
            seen.update(await asyncio.gather(*(refused(server) for _ in range(10))))
            seen.update(await asyncio.gather(*reading))
            for _ in range(5):
                seen.update([await send(b"junk"), await send(PAGE, model_id="other"), await send(b"")])
            await wait_until_idle(client)
            counted = await by_outcome(client)
    assert counted == seen
    assert counted == {
        "ok": places,
        "queue_full": 10,
        "client_disconnect": 4,
        "unsupported_format": 5,
        "model_not_found": 5,
        "empty_file": 5,
    }


async def gauges(client: httpx.AsyncClient) -> dict[str, float]:
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    samples = [sample for family in families for sample in family.samples]
    return {sample.name: sample.value for sample in samples if sample.name in GAUGES_OF_WORK}


async def wait_for_places(client: httpx.AsyncClient, *, waiting: int, running: int) -> None:
    async with asyncio.timeout(60):
        while True:
            found = await gauges(client)
            if (found["deepsynth_queue_depth"], found["deepsynth_requests_running"]) == (waiting, running):
                return
            await asyncio.sleep(0.02)


async def wait_until_idle(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(60):
        while any((found := await gauges(client)).values()):
            await asyncio.sleep(0.02)
    assert found.keys() == set(GAUGES_OF_WORK)
