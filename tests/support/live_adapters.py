"""A service over an adapter volume, and publishers for it."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from service.engine.fake import FakeEngine
from shared.contract.manifest import BaseIdentity
from shared.contract.publication import publish
from shared.contract.volume import AdapterVolume
from tests.support.adapters import announcement, write_peft
from tests.support.fake_engine import SteeredEngine
from tests.support.service import RunningService, eventually, png, running_service

FAKE_BASE = BaseIdentity(model_id="fake", revision="ab" * 32)
ADMIN_KEY = "correct horse battery"
PAGE = png("a page for adapters")


@dataclass
class LiveService:
    """A running service, and the volume that it watches."""

    service: RunningService
    volume: AdapterVolume
    trained: Path

    def publish(self, name: str = "invoices", seed: int = 0, *, activate: bool = True, **changes: object) -> int:
        """Publish a version whose answers depend on the seed, with `changes` of its announcement; its number."""
        source = write_peft(self.trained / f"{name}-{seed}-{time.monotonic_ns()}", seed=seed)
        done = publish(self.volume, source, announcement(name, base=FAKE_BASE, **changes), activate=activate)
        return done.reference.version

    async def answer(self, model_id: str | None = None, data: bytes = PAGE) -> dict[str, Any]:
        fields = {} if model_id is None else {"model_id": model_id}
        response = await self.service.ocr(data, **fields)
        body: dict[str, Any] = response.json()
        assert response.status_code == 200, body
        return body

    async def failure(self, model_id: str) -> tuple[int, dict[str, Any]]:
        response = await self.service.ocr(PAGE, model_id=model_id)
        return response.status_code, response.json()

    async def serves(self, name: str, version: int) -> None:
        """Wait until a name stands for a version."""
        assert self.service.services.adapters is not None
        entries = self.service.services.adapters.catalog.entries
        await eventually(lambda: name in entries and entries[name].active == version)

    async def listed(self, name: str = "invoices") -> dict[str, Any]:
        answer = (await self.service.client.get("/adapters")).json()
        found: dict[str, Any] = next(each for each in answer["adapters"] if each["name"] == name)
        return found

    async def states(self, name: str = "invoices") -> dict[int, str]:
        return {each["version"]: each["state"] for each in (await self.listed(name))["versions"]}

    async def order(self, path: str, key: str | None = ADMIN_KEY, **body: object) -> httpx.Response:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return await self.service.client.post(f"/adapters/{path}", json={"why": "a test", **body}, headers=headers)


@contextlib.asynccontextmanager
async def live_service(
    *, engine: FakeEngine | None = None, slots: int = 4, step_s: float = 0.0, **changes: Any
) -> AsyncIterator[LiveService]:
    handle = SteeredEngine(engine or FakeEngine(adapter_slots=slots, step_s=step_s), remembers=False)
    with tempfile.TemporaryDirectory() as folder:
        volume, trained = Path(folder) / "volume", Path(folder) / "trained"
        volume.mkdir()
        settings = {"adapter_dir": volume, "adapter_poll_s": 0.1, "admin_key": ADMIN_KEY, **changes}
        async with running_service(handle, **settings) as service:
            yield LiveService(service, AdapterVolume(volume), trained)
