"""What a request held is freed with its answer, however it ended, and not when the garbage collector finds the time."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import tracemalloc
from typing import Any

import httpx
import pytest

from shared.contract.prompts import Task, prompt_for
from tests.support.service import RunningService, png, running_service

pytestmark = pytest.mark.integration

PAYLOAD = bytes(range(256)) * 8192
NUM_REQUESTS = 12
MOST_KEPT = 6 * len(PAYLOAD)
"""Threads keep what they worked on last, however many requests there were: two uploads, and a page as views; on a busy
machine some have not yet let go of what came before."""


class Upload:
    """A request that leaves nothing behind on its own side, which httpx's does."""

    def __init__(self, path: str, data: bytes, **fields: str) -> None:
        self.path = path
        if path.startswith("/v1"):
            url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
            part = {"type": "image_url", "image_url": {"url": url}}
            body = {"document": part} if path == "/v1/ocr" else {"messages": [{"role": "user", "content": [part]}]}
            request = httpx.Request("POST", "http://127.0.0.1:8000", content=json.dumps({"model": "fake", **body}))
            request.headers["content-type"] = "application/json"
        else:
            request = httpx.Request("POST", "http://127.0.0.1:8000", files={"file": ("page", data)}, data=fields)
        self._body = request.read()
        self._headers = [(name.lower(), value) for name, value in request.headers.raw]

    async def send(self, service: RunningService) -> int:
        transport = service.client._transport
        assert isinstance(transport, httpx.ASGITransport)
        statuses: list[int] = []
        # A copy, as a server makes one of what it receives.
        messages = [{"type": "http.request", "body": bytes(bytearray(self._body)), "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not messages:
                await asyncio.Event().wait()
            return messages.pop()

        async def send(message: Any) -> None:
            statuses.append(message.get("status", 0))

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": self._headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        await transport.app(scope, receive, send)
        return statuses[0]


async def kept_by(upload: Upload, service: RunningService, status: int) -> int:
    """Bytes that a few requests leave behind while the garbage collector is off."""
    for _ in range(2):
        assert await upload.send(service) == status
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(NUM_REQUESTS):
            await upload.send(service)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    return after - before


NOT_AN_IMAGE = b"plain text " + PAYLOAD
DAMAGED = png()[:60] + PAYLOAD
WHOLE = png() + PAYLOAD
UPLOADS = {
    "not an image": (Upload("/ocr", NOT_AN_IMAGE), 415),
    "damaged": (Upload("/ocr", DAMAGED), 422),
    "damaged in a chat": (Upload("/v1/chat/completions", DAMAGED), 422),
    "damaged for Mistral": (Upload("/v1/ocr", DAMAGED), 422),
    "damaged for a preview": (Upload("/preview", DAMAGED), 422),
    "wrong field": (Upload("/ocr", WHOLE, task="nonsense"), 422),
    "unknown model": (Upload("/ocr", WHOLE, model_id="missing"), 404),
    "read": (Upload("/ocr", WHOLE), 200),
}


@pytest.mark.parametrize("name", UPLOADS)
async def test_an_upload_is_freed_with_its_answer(name: str) -> None:
    upload, status = UPLOADS[name]
    async with running_service() as service:
        service.engine._remembers = False
        assert await kept_by(upload, service, status) < MOST_KEPT


async def test_a_page_that_the_engine_fails_is_freed_with_its_answer() -> None:
    async with running_service() as service:
        service.engine._remembers = False
        service.engine.fake._fail_with[prompt_for(Task.FREE)] = "engine_failed"
        assert await kept_by(Upload("/ocr", WHOLE), service, 500) < MOST_KEPT
