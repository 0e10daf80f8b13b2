"""A real Prometheus scrapes the running service, runs its rules and answers the dashboard's queries."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.programs import ROOT, free_port, require
from tests.support.server import running_server
from tests.support.service import png

pytestmark = pytest.mark.e2e

ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "deepsynth.json"


@contextlib.contextmanager
def running_prometheus(folder: Path, target: int) -> Iterator[str]:
    port = free_port()
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 200ms, evaluation_interval: 200ms}\n"
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


def panel_queries() -> dict[str, str]:
    found = {}
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
            found[f"{panel['title']} {target['refId']}"] = query
    return found


def test_prometheus_gives_the_clients_numbers_and_answers_every_panel(tmp_path: Path) -> None:
    require("prometheus")
    operators = free_port()
    with (
        running_server(FAKE_STEP_MS="0", ADMIN_PORT=str(operators)) as server,
        running_prometheus(tmp_path, operators) as prometheus,
    ):
        assert httpx.get(f"{server.url}/metrics").status_code == 404
        seen: Counter[int] = Counter()
        for number in range(3):
            seen[httpx.post(f"{server.url}/ocr", files={"file": png(str(number))}).status_code] += 1
        seen[httpx.post(f"{server.url}/ocr", files={"file": b"junk"}).status_code] += 1
        seen[httpx.post(f"{server.url}/ocr", files={"file": png()}, data={"model_id": "x"}).status_code] += 1
        assert seen == {200: 3, 415: 1, 404: 1}
        wait_for(prometheus, "up", "1")
        wait_for(prometheus, 'deepsynth_inference_total{model_id="fake",status="ok"}', "3")
        wait_for(prometheus, "deepsynth_inference_latency_seconds_count", "3")
        wait_for(prometheus, 'deepsynth_gpu_memory_bytes{device="cpu"}', "0")
        wait_for(prometheus, 'sum(deepsynth_requests_total{outcome="client_error"})', "2")
        wait_for(prometheus, "sum(deepsynth_requests_total)", "5")
        wait_for(prometheus, "sum(deepsynth_request_duration_seconds_count)", "5")
        wait_for(prometheus, "deepsynth_queue_depth", "0")
        wait_for(prometheus, 'sum(http_requests_total{handler="/ocr",status="200"})', "3")
        for name, expression in panel_queries().items():
            answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": expression}).json()
            assert answer["status"] == "success", (name, answer)
        assert query(prometheus, panel_queries()["Answered, refused, failed A"]) != []
        groups = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"]
        health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
        assert len(health) > 30
        assert set(health.values()) <= {"ok", "unknown"}
        # A service with two clients' errors is healthy.
        wait_for(prometheus, "count(ALERTS) or vector(0)", "0")


def test_exposition_passes_promtool() -> None:
    promtool = require("promtool")
    with running_server(FAKE_STEP_MS="0") as server:
        httpx.post(f"{server.url}/ocr", files={"file": png()})
        exposition = httpx.get(f"{server.url}/metrics").content
    # Names that the Kubernetes extension prescribes have a colon, which promtool keeps for rules.
    ours = b"".join(line for line in exposition.splitlines(keepends=True) if b"vllm:" not in line)
    checked = subprocess.run([promtool, "check", "metrics"], input=ours, check=False, capture_output=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
