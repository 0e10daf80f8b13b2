"""docker-compose.yml, checked by compose itself, and the monitoring files, checked by Prometheus' own tool."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service.config import variable_names
from tests.support.programs import ROOT, require

pytestmark = pytest.mark.e2e

OURS = {"api", "api-gpu", "trainer"}
BY_DEFAULT = {"api", "prometheus", "grafana"}
IN_A_PROFILE = {"api-gpu": "gpu", "trainer": "train", "otel-collector": "tracing"}


def compose(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Settings of the developer's own shell or .env would stand in for the defaults.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEEPSYNTH_")}
    command = [require("docker-compose"), "--env-file", os.devnull, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


def services(*profiles: str) -> dict[str, Any]:
    options = [option for profile in profiles for option in ("--profile", profile)]
    done = compose(*options, "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


def test_compose_accepts_the_file_without_a_warning() -> None:
    done = compose("--profile", "*", "config", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")


def test_compose_refuses_a_broken_file(tmp_path: Path) -> None:
    broken = tmp_path / "compose.yml"
    broken.write_text("services: {api: {image: x, portz: []}}", encoding="utf-8")
    assert compose("--file", str(broken), "config", "--quiet").returncode != 0


def test_only_the_cpu_service_and_the_monitoring_start_by_default() -> None:
    assert set(services()) == BY_DEFAULT


@pytest.mark.parametrize(("service", "profile"), IN_A_PROFILE.items())
def test_a_profile_adds_its_service(service: str, profile: str) -> None:
    assert set(services(profile)) == BY_DEFAULT | {service}


def test_the_default_service_reads_with_nano_on_the_cpu_and_the_other_with_deepseek_on_a_gpu() -> None:
    found = services("*")
    cpu, gpu = found["api"]["environment"], found["api-gpu"]["environment"]
    assert (cpu["DEEPSYNTH_MODEL"], cpu["DEEPSYNTH_DEVICE"]) == ("nano", "cpu")
    assert (gpu["DEEPSYNTH_MODEL"], gpu["DEEPSYNTH_DEVICE"]) == ("deepseek-ai/DeepSeek-OCR", "cuda")
    assert found["api-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_every_setting_given_to_the_api_exists() -> None:
    found = services("*")
    given = {name for service in ("api", "api-gpu") for name in found[service]["environment"]}
    assert given - set(variable_names()) == set()


def test_the_trainer_writes_the_adapters_that_the_services_only_read() -> None:
    found = services("*")
    volumes = {name: {v["source"]: v.get("read_only", False) for v in found[name]["volumes"]} for name in OURS}
    assert volumes["trainer"]["adapters"] is False
    assert volumes["api"]["adapters"] is True
    assert volumes["api-gpu"]["adapters"] is True


@pytest.mark.parametrize("name", sorted(BY_DEFAULT | set(IN_A_PROFILE)))
def test_every_service_is_confined(name: str) -> None:
    service = services("*")[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert int(service["mem_limit"]) > 0
    assert float(service["cpus"]) > 0


def test_ports_are_published_on_loopback_alone() -> None:
    published = [port for service in services("*").values() for port in service.get("ports", ())]
    assert published
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}


def test_monitoring_waits_for_what_it_watches() -> None:
    found = services()
    assert found["prometheus"]["depends_on"]["api"]["condition"] == "service_healthy"
    assert found["grafana"]["depends_on"]["prometheus"]["condition"] == "service_healthy"


def test_files_that_are_mounted_exist() -> None:
    mounts = [
        Path(volume["source"])
        for service in services("*").values()
        for volume in service.get("volumes", ())
        if volume["type"] == "bind"
    ]
    assert mounts
    assert [mount for mount in mounts if not mount.is_dir()] == []


def test_prometheus_accepts_its_configuration_and_the_rules() -> None:
    done = subprocess.run(
        [require("promtool"), "check", "config", "deploy/prometheus/prometheus.yml"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout


def test_alerts_fire_when_they_should_and_not_before() -> None:
    done = subprocess.run(
        [require("promtool"), "test", "rules", "tests/e2e/alerts_test.yml"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
