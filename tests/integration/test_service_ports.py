"""Metrics and operators on a port of their own."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from service.cli.adapters import _address
from service.config import ServiceSettings, load_settings
from service.errors import ConfigurationError
from service.routes import adapters, health, samples
from tests.support.live_adapters import ADMIN_KEY, live_service
from tests.support.programs import free_port
from tests.support.server import environment
from tests.support.service import RunningService, make_settings, png, running_service

pytestmark = pytest.mark.integration

CLIENTS, OPERATORS = "http://127.0.0.1:8000", "http://127.0.0.1:9000"


async def status(service: RunningService, method: str, url: str, **headers: str) -> int:
    return (await service.client.request(method, url, headers=headers)).status_code


async def test_operators_routes_are_on_their_port_alone_and_documents_on_the_other() -> None:
    key = {"authorization": f"Bearer {ADMIN_KEY}"}
    async with live_service(admin_port=9000) as live:
        live.publish()
        await live.serves("invoices", 1)
        service = live.service
        for path in ("/metrics", "/samples"):
            assert await status(service, "GET", CLIENTS + path) == 404
        assert await status(service, "GET", f"{OPERATORS}/metrics") == 200
        pin = "/adapters/invoices/pin"
        # With the key, and whatever the header Host says.
        assert await status(service, "POST", CLIENTS + pin, host="127.0.0.1:9000", **key) == 404
        order = await service.client.post(OPERATORS + pin, json={"version": 1, "why": "a test"}, headers=key)
        assert order.status_code == 200
        for path in ("/livez", "/readyz", "/adapters"):
            assert [await status(service, "GET", port + path) for port in (CLIENTS, OPERATORS)] == [200, 200]
        files = {"file": ("p.png", png())}
        assert (await service.client.post(f"{CLIENTS}/ocr", files=files)).status_code == 200
        assert (await service.client.post(f"{OPERATORS}/ocr", files=files)).status_code == 404
        for path in ("/", "/v1/models", "/openapi.json", "/jobs"):
            assert await status(service, "GET", OPERATORS + path) == 404


async def test_without_a_port_of_their_own_all_are_on_one() -> None:
    async with running_service() as service:
        assert await status(service, "GET", f"{CLIENTS}/metrics") == 200
        assert await status(service, "POST", f"{CLIENTS}/adapters/a/pin") == 403


def test_what_is_for_operators_is_written_down() -> None:
    paths = {
        route.path
        for router in (health.metrics_router, adapters.admin_router, samples.export_router)
        for route in router.routes
        if isinstance(route, APIRoute)
    }
    assert paths == {
        "/metrics",
        "/adapters/{name}/pin",
        "/adapters/{name}/refuse",
        "/adapters/{name}/rollback",
        "/samples",
    }


@pytest.mark.parametrize(
    ("options", "says"),
    [({"ADMIN_PORT": "8000"}, "same as DEEPSYNTH_PORT"), ({"ADMIN_HOST": "127.0.0.1"}, "without DEEPSYNTH_ADMIN_PORT")],
)
def test_ports_that_cannot_be_are_refused(options: dict[str, str], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=says):
        load_settings({f"DEEPSYNTH_{name}": value for name, value in options.items()}, tmp_path / "none")


def test_a_port_that_is_taken_ends_the_start_with_a_line_that_says_so(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = {"ENGINE": "fake", "IMAGE_WORKERS": "1", "PORT": str(free_port()), "ADMIN_PORT": str(port)}
        done = subprocess.run(
            [sys.executable, "-m", "service", "serve"],
            cwd=tmp_path,
            env=environment(**settings),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert done.returncode == 1
    assert f"cannot listen on DEEPSYNTH_ADMIN_PORT={port}" in done.stderr


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"admin_port": 9000}, "http://127.0.0.1:9000"),
        ({"admin_port": 9000, "admin_host": "10.0.0.1"}, "http://10.0.0.1:9000"),
    ],
)
def test_the_command_line_finds_the_operators_port(options: dict[str, object], address: str) -> None:
    assert _address(make_settings(**options)) == address


def test_metrics_are_cached_for_a_second_unless_a_test_says_otherwise() -> None:
    assert ServiceSettings().metrics_cache_s == 1.0
    assert make_settings().metrics_cache_s == 0


async def test_scrapes_of_one_second_get_the_same_text() -> None:
    async with running_service(metrics_cache_s=60.0) as service:
        first = (await service.client.get("/metrics")).text
        await service.ocr(png())
        assert (await service.client.get("/metrics")).text == first
        assert 'deepsynth_requests_total{code="ok",outcome="ok"} 0.0' in first


async def test_disks_of_folders_are_measured(tmp_path: Path) -> None:
    async with running_service(job_dir=tmp_path / "jobs") as service:
        free = await service.metric('deepsynth_disk_free_bytes{folder="jobs"}')
        assert 0 < free <= await service.metric('deepsynth_disk_size_bytes{folder="jobs"}')
        assert 'folder="samples"' not in (await service.client.get("/metrics")).text


async def test_gateway_reads_the_adapters_that_are_loaded() -> None:
    async with live_service(slots=3) as live:
        live.publish("invoices")
        live.publish("receipts", seed=1)
        await live.serves("invoices", 1)
        await live.serves("receipts", 1)
        line = (
            'vllm:lora_requests_info{max_lora="3",running_lora_adapters="invoices,receipts",waiting_lora_adapters=""}'
        )
        for _ in range(100):
            text = (await live.service.client.get("/metrics")).text
            if line in text:
                break
            await live.answer("invoices")
        assert line in text
        assert text.count("vllm:lora_requests_info{") == 1
