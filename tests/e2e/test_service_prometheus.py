"""A real Prometheus scrapes the running service."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.programs import free_port, require
from tests.support.server import ServerProcess, running_server
from tests.support.service import png

pytestmark = pytest.mark.e2e


@contextlib.contextmanager
def running_prometheus(folder: Path, target: ServerProcess) -> Iterator[str]:
    port = free_port()
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 200ms}\n"
        f"scrape_configs: [{{job_name: deepsynth, static_configs: [{{targets: ['127.0.0.1:{target.port}']}}]}}]\n"
    )
    command = [
        require("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def query(url: str, expression: str) -> list[str]:
    with contextlib.suppress(httpx.TransportError):
        response = httpx.get(f"{url}/api/v1/query", params={"query": expression})
        if response.status_code == 200:
            return [each["value"][1] for each in response.json()["data"]["result"]]
    return []


def wait_for(url: str, expression: str, value: str) -> None:
    end_s = time.monotonic() + 60
    while (seen := query(url, expression)) != [value]:
        assert time.monotonic() < end_s, f"{expression}: {seen}"
        time.sleep(0.2)


def test_prometheus_scrapes_the_running_service(tmp_path: Path) -> None:
    require("prometheus")
    with running_server(FAKE_STEP_MS="0") as server, running_prometheus(tmp_path, server) as prometheus:
        for number in range(3):
            assert httpx.post(f"{server.url}/ocr", files={"file": png(str(number))}).status_code == 200
        assert httpx.post(f"{server.url}/ocr", files={"file": b"junk"}).status_code == 415
        wait_for(prometheus, "up", "1")
        wait_for(prometheus, 'deepsynth_inference_total{model_id="fake",status="ok"}', "3")
        wait_for(prometheus, "deepsynth_inference_latency_seconds_count", "3")
        wait_for(prometheus, 'deepsynth_gpu_memory_bytes{device="cpu"}', "0")
        wait_for(prometheus, 'sum(deepsynth_requests_total{outcome="client_error"})', "1")
        wait_for(prometheus, "deepsynth_queue_depth", "0")
        wait_for(prometheus, 'sum(http_requests_total{handler="/ocr",status="200"})', "3")


def test_exposition_passes_promtool() -> None:
    promtool = require("promtool")
    with running_server(FAKE_STEP_MS="0") as server:
        httpx.post(f"{server.url}/ocr", files={"file": png()})
        exposition = httpx.get(f"{server.url}/metrics").content
    checked = subprocess.run([promtool, "check", "metrics"], input=exposition, check=False, capture_output=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
