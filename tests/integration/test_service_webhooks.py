"""Webhooks of jobs, sent to a server of the test: who gets them, what is in them, and when they are tried again."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import sqlite3
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from service.jobs.manager import JobManager
from tests.support.service import RunningService, png, running_service

pytestmark = pytest.mark.integration

KEY = b"k" * 32
SECRET = "whsec_" + base64.b64encode(KEY).decode()  # pragma: allowlist secret


@dataclass
class Receiver:
    """Answers with the next status, and with 200 after the last one."""

    url: str = ""
    statuses: list[bytes] = field(default_factory=list)
    received: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    @property
    def origin(self) -> str:
        return self.url.removesuffix("/hook?token=s3cret")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.received.append((head[0], headers, body))
        status = self.statuses.pop(0) if self.statuses else b"200 OK"
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def receiver(*statuses: bytes) -> AsyncIterator[Receiver]:
    it = Receiver(statuses=list(statuses))
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    it.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?token=s3cret"
    async with server:
        yield it


def jobs_of(service: RunningService) -> JobManager:
    assert service.services.jobs is not None
    return service.services.jobs


async def settled(service: RunningService, url: str) -> Any:
    """Submit a page, and wait until its webhook is delivered or given up."""
    response = await service.client.post("/jobs", files={"file": ("secret-name.png", png())}, data={"webhook_url": url})
    assert response.status_code == 202, response.text
    async with asyncio.timeout(60):
        while True:
            job = (await service.client.get(f"/jobs/{response.json()['id']}")).json()
            if job["webhook"]["status"] != "waiting":
                return job
            await asyncio.sleep(0.01)


async def test_end_of_a_job_is_announced_with_a_signature(tmp_path: Path) -> None:
    async with (
        receiver() as hook,
        running_service(job_dir=tmp_path, job_webhook_origins=hook.origin, job_webhook_secret=SECRET) as service,
    ):
        job = await settled(service, hook.url)
        read = (await service.client.get(f"/jobs/{job['id']}/result")).json()["text"]
        assert await service.metric('deepsynth_job_webhooks_total{result="delivered"}') == 1
    assert job["webhook"] == {"url": hook.url, "status": "delivered", "attempts": 1}
    [(line, headers, body)] = hook.received
    assert line == "POST /hook?token=s3cret HTTP/1.1"
    signed = f"{job['id']}.{headers['webhook-timestamp']}.".encode() + body
    signature = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{signature}"
    assert headers["webhook-id"] == job["id"]
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    message = json.loads(body)
    assert message["type"] == "job.done"
    assert message["data"] == {name: value for name, value in job.items() if name not in ("webhook", "pages")}
    assert read
    assert read.encode() not in body


async def test_a_server_that_is_down_is_tried_again_with_the_same_id(tmp_path: Path) -> None:
    options = {"job_dir": tmp_path, "job_webhook_secret": SECRET}
    async with (
        receiver(b"503 Service Unavailable", b"429 Too Many Requests") as hook,
        running_service(**options, job_webhook_origins=hook.origin) as service,
    ):
        jobs_of(service)._webhooks._retry_after_s = (0.05, 0.05, 0.05)
        job = await settled(service, hook.url)
        assert await service.metric('deepsynth_job_webhooks_total{result="retried"}') == 2
    assert job["webhook"]["attempts"] == 3
    assert {headers["webhook-id"] for _, headers, _ in hook.received} == {job["id"]}
    assert len({body for _, _, body in hook.received}) == 1


@pytest.mark.parametrize(
    ("statuses", "num_attempts"), [([b"500 Oh"] * 9, 3), ([b"404 Not Found"], 1), ([b"302 Found\r\nLocation: /x"], 1)]
)
async def test_it_is_given_up_after_a_while_and_at_once_where_trying_again_does_not_help(
    tmp_path: Path, statuses: list[bytes], num_attempts: int
) -> None:
    async with (
        receiver(*statuses) as hook,
        running_service(job_dir=tmp_path, job_webhook_origins=hook.origin, job_webhook_secret=SECRET) as service,
    ):
        jobs_of(service)._webhooks._retry_after_s = (0.02, 0.02)
        job = await settled(service, hook.url)
        assert await service.metric('deepsynth_job_webhooks_total{result="failed"}') == 1
    assert job["webhook"] == {"url": hook.url, "status": "failed", "attempts": num_attempts}
    # Also: no redirect was followed.
    assert len(hook.received) == num_attempts


async def test_attempts_go_on_after_a_restart_and_only_to_origins_that_are_still_listed(tmp_path: Path) -> None:
    options: dict[str, Any] = {"job_dir": tmp_path, "job_webhook_secret": SECRET}
    async with receiver(b"503 Service Unavailable", b"503 Service Unavailable") as hook, receiver() as other:
        both = f"{hook.origin},{other.origin}"
        async with running_service(**options, job_webhook_origins=both) as service:
            ids = []
            for _ in range(2):
                data = {"webhook_url": hook.url}
                ids.append((await service.client.post("/jobs", files={"file": png()}, data=data)).json()["id"])
            async with asyncio.timeout(60):
                while len(hook.received) < 2:
                    await asyncio.sleep(0.01)
        with contextlib.closing(sqlite3.connect(tmp_path / "jobs.sqlite3")) as database, database:
            # As if the pause before the next attempt were over.
            database.execute("UPDATE jobs SET webhook_due_s = 0")
        async with running_service(**options, job_webhook_origins=other.origin) as service:
            async with asyncio.timeout(60):
                while await service.metric('deepsynth_job_webhooks_total{result="refused"}') < 2:
                    await asyncio.sleep(0.01)
            job = (await service.client.get(f"/jobs/{ids[0]}")).json()
    assert job["webhook"]["status"] == "failed"
    assert len(hook.received) == 2
    assert not other.received


async def test_no_other_address_is_ever_asked(tmp_path: Path) -> None:
    async with receiver() as hook, receiver() as other:
        port = hook.origin.rpartition(":")[2]
        refused = [
            other.url,
            hook.url.replace("http://", "https://"),
            hook.url.replace("127.0.0.1", "localhost"),
            hook.url.replace("127.0.0.1", f"127.0.0.1:{port}@127.0.0.1"),
            hook.url.replace("127.0.0.1", "user@127.0.0.1"),
            hook.url.replace("127.0.0.1", "127.0.0.1\\@evil.example"),
            hook.url.replace("http://", "file://"),
            hook.url.replace("http://", "//"),
            hook.url + "#fragment",
            "http://169.254.169.254/latest/meta-data/",
            "http://[::1]/",
            "not a URL",
            "http://",
        ]
        async with running_service(
            job_dir=tmp_path, job_webhook_origins=hook.origin, job_webhook_secret=SECRET
        ) as service:
            for url in refused:
                response = await service.client.post("/jobs", files={"file": png()}, data={"webhook_url": url})
                assert (response.status_code, response.json()["code"]) == (422, "webhook_not_allowed"), url
            assert not list((tmp_path / "documents").iterdir())
        async with running_service(job_dir=tmp_path) as service:
            response = await service.client.post("/jobs", files={"file": png()}, data={"webhook_url": hook.url})
            assert (response.status_code, response.json()["code"]) == (422, "webhook_not_allowed")
            response = await service.client.post("/ocr", files={"file": png()}, data={"webhook_url": hook.url})
            assert (response.status_code, response.json()["code"]) == (422, "invalid_field")
    assert not hook.received
    assert not other.received
