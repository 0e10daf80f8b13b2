"""Builders for tests of the service: settings, pages, a running app and a client for it."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI
from PIL import Image, ImageDraw

from service.app import create_app
from service.config import ServiceSettings
from service.deps import Services
from tests.support.fake_engine import SteeredEngine


def make_settings(**changes: Any) -> ServiceSettings:
    return ServiceSettings(**{"engine": "fake", "image_workers": 1, "metrics_cache_s": 0, **changes})


def page_image(text: str = "Hello, page", size: tuple[int, int] = (320, 200)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((20, 20), text, fill="black")
    return image


def encode(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png(text: str = "Hello, page", size: tuple[int, int] = (320, 200)) -> bytes:
    return encode(page_image(text, size))


@dataclass
class RunningService:
    app: FastAPI
    client: httpx.AsyncClient
    engine: SteeredEngine
    services: Services

    async def ocr(self, data: bytes, name: str = "page.png", **fields: str) -> httpx.Response:
        return await self.client.post("/ocr", files={"file": (name, data)}, data=fields)

    async def metric(self, line: str) -> float:
        for each in (await self.client.get("/metrics")).text.splitlines():
            if each.startswith(line + " "):
                return float(each.rpartition(" ")[2])
        raise AssertionError(f"no series {line}")


async def eventually(condition: Any, seconds: float = 120.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running_service(
    engine: SteeredEngine | None = None,
    *,
    wait_ready: bool = True,
    kind: str = "fake",
    app_options: dict[str, Any] | None = None,
    **changes: Any,
) -> AsyncIterator[RunningService]:
    """The app with its lifespan, behind httpx's ASGI transport; `kind` is what the settings say of the engine."""
    handle = engine or SteeredEngine()
    ready = asyncio.Event()
    app = create_app(make_settings(engine=kind, **changes), handle, on_ready=ready.set, **(app_options or {}))
    async with app.router.lifespan_context(app) as state:
        assert state is not None

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            scope["state"] = dict(state)
            await app(scope, receive, send)

        transport = httpx.ASGITransport(app=with_state, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", timeout=30) as client:
            if wait_ready:
                await ready.wait()
            yield RunningService(app, client, handle, state["services"])
