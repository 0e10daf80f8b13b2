"""A real Prometheus scrapes the running service, runs its rules and answers the dashboard's queries."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.programs import ROOT, free_port, require
from tests.support.server import running_server
from tests.support.service import png

pytestmark = pytest.mark.e2e

ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "deepsynth.json"
LIMIT_S = 600.0
OF_THE_MACHINE = "|".join(
    f"DeepSynth{name}"
    for name in (
        "TargetDown", "LatencyHigh", "QueueWaitHigh", "WorkerStalled", "EventLoopLag", "MemoryGrowth", "DiskFull",
    )
)  # fmt: skip
"""Alerts of time, memory and disk, which a busy or a small machine begins to wait out."""


@contextlib.contextmanager
def running_prometheus(folder: Path, target: int) -> Iterator[str]:
    port = free_port()
    config = folder / "prometheus.yml"
    config.write_text(
        # A scrape has as long as its interval; a service that misses one counts as down.
        "global: {scrape_interval: 2s, scrape_timeout: 2s, evaluation_interval: 500ms}\n"
        f"rule_files: ['{ALERTS}']\n"
        f"scrape_configs: [{{job_name: deepsynth, static_configs: [{{targets: ['127.0.0.1:{target}']}}]}}]\n"
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
        process.wait(timeout=300)


def eventually(look: Callable[[], Any], is_enough: Callable[[Any], bool]) -> Any:
    """What `look` finds, once that is enough."""
    end_s = time.monotonic() + LIMIT_S
    while not is_enough(seen := look()):
        assert time.monotonic() < end_s, seen
        time.sleep(0.1)
    return seen


def query(url: str, expression: str) -> list[str]:
    with contextlib.suppress(httpx.TransportError):
        response = httpx.get(f"{url}/api/v1/query", params={"query": expression}, timeout=60)
        if response.status_code == 200:
            return [each["value"][1] for each in response.json()["data"]["result"]]
    return []


def wait_for(url: str, expression: str, value: str) -> None:
    eventually(lambda: [expression, *query(url, expression)], lambda seen: seen == [expression, value])


def rules(url: str) -> dict[str, str]:
    """Health of each rule by its name."""
    groups = httpx.get(f"{url}/api/v1/rules", timeout=60).json()["data"]["groups"]
    return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}


def panel_queries() -> dict[str, str]:
    found = {}
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            found[f"{panel['title']} {target['refId']}"] = query
    return found


@pytest.fixture(scope="module")
def operators() -> Iterator[int]:
    """The operators' port of a service that has answered three requests and refused two."""
    port = free_port()
    with running_server(FAKE_STEP_MS="0", ADMIN_PORT=str(port)) as server:
        assert server.get("/metrics").status_code == 404
        seen: Counter[int] = Counter()
        with httpx.Client(base_url=server.url, timeout=300) as client:
            for number in range(3):
                seen[client.post("/ocr", files={"file": png(str(number))}).status_code] += 1
            seen[client.post("/ocr", files={"file": b"junk"}).status_code] += 1
            seen[client.post("/ocr", files={"file": png()}, data={"model_id": "x"}).status_code] += 1
        assert seen == {200: 3, 415: 1, 404: 1}
        yield port


def test_prometheus_gives_the_clients_numbers_and_answers_every_panel(operators: int, tmp_path: Path) -> None:
    require("prometheus")
    with running_prometheus(tmp_path, operators) as prometheus:
        wait_for(prometheus, "up", "1")
        wait_for(prometheus, 'deepsynth_inference_total{model_id="fake",status="ok"}', "3")
        wait_for(prometheus, "deepsynth_inference_latency_seconds_count", "3")
        wait_for(prometheus, 'deepsynth_gpu_memory_bytes{device="cpu"}', "0")
        wait_for(prometheus, 'sum(deepsynth_requests_total{outcome="client_error"})', "2")
        wait_for(prometheus, "sum(deepsynth_requests_total)", "5")
        wait_for(prometheus, "sum(deepsynth_request_duration_seconds_count)", "5")
        wait_for(prometheus, "deepsynth_queue_depth", "0")
        wait_for(prometheus, 'sum(http_requests_total{handler="/ocr",status="200"})', "3")
        # Rates need a second scrape.
        eventually(lambda: query(prometheus, panel_queries()["Answered, refused, failed A"]), bool)
        for name, expression in panel_queries().items():
            answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": expression}, timeout=60).json()
            assert answer["status"] == "success", (name, answer)
        # Each rule is "unknown" until its first evaluation.
        health = eventually(lambda: rules(prometheus), lambda seen: "unknown" not in seen.values())
        assert len(health) > 30
        assert set(health.values()) == {"ok"}
        # A service with two clients' errors is healthy; what tells of the machine's first minute may wait for its time.
        wait_for(prometheus, f'count(ALERTS{{alertname!~"{OF_THE_MACHINE}"}}) or vector(0)', "0")
        assert set(OF_THE_MACHINE.split("|")) <= health.keys()


def test_exposition_passes_promtool(operators: int) -> None:
    promtool = require("promtool")
    exposition = httpx.get(f"http://127.0.0.1:{operators}/metrics", timeout=60).content
    # Names that the Kubernetes extension prescribes have a colon, which promtool keeps for rules.
    ours = b"".join(line for line in exposition.splitlines(keepends=True) if b"vllm:" not in line)
    assert b"deepsynth_" in ours
    checked = subprocess.run([promtool, "check", "metrics"], input=ours, check=False, capture_output=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
