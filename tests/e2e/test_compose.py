"""docker-compose.yml, checked by compose itself, then walked through with its commands as processes; and the monitoring
files, checked by Prometheus' own tool."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.cli.serve import STOP_MARGIN_S
from service.config import ServiceSettings, variable_names
from tests.support.checkpoint_adapters import write_adapter
from tests.support.composed import Composed
from tests.support.nano import needs_nano
from tests.support.programs import ROOT, free_port, require, wait_until_ready

pytestmark = pytest.mark.e2e

OURS = {"api", "api-gpu", "trainer", "trainer-gpu"}
BY_DEFAULT = {"api", "prometheus", "grafana"}
IN_A_PROFILE = {
    "gpu": {"api-gpu"}, "train": {"trainer"}, "train-gpu": {"trainer-gpu"}, "tracing": {"otel-collector", "jaeger"},
}  # fmt: skip
ALL = BY_DEFAULT.union(*IN_A_PROFILE.values())
NOT_OURS = {"HF_TOKEN"}
SAMPLE = ROOT / "docs" / "samples" / "sample-block.png"


def compose(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Settings of the developer's own shell or .env would stand in for the defaults.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEEPSYNTH_")}
    command = [require("docker-compose"), "--env-file", os.devnull, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@functools.cache
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


@pytest.mark.parametrize("profile", IN_A_PROFILE)
def test_a_profile_adds_its_services(profile: str) -> None:
    assert set(services(profile)) == BY_DEFAULT | IN_A_PROFILE[profile]


def test_the_default_service_reads_with_nano_on_the_cpu_and_the_other_with_deepseek_on_a_gpu() -> None:
    found = services("*")
    cpu, gpu = found["api"]["environment"], found["api-gpu"]["environment"]
    assert (cpu["DEEPSYNTH_MODEL"], cpu["DEEPSYNTH_DEVICE"]) == ("nano", "cpu")
    assert (gpu["DEEPSYNTH_MODEL"], gpu["DEEPSYNTH_DEVICE"]) == ("deepseek-ai/DeepSeek-OCR", "cuda")
    for name, service in found.items():
        devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        assert [each["capabilities"] for each in devices] == ([["gpu"]] if name.endswith("-gpu") else [])


def test_images_with_a_gpu_are_built_for_cuda_and_the_others_for_a_cpu() -> None:
    found = services("*")
    variants = {name: found[name]["build"]["args"]["VARIANT"] for name in OURS}
    assert variants == {"api": "cpu", "api-gpu": "cuda", "trainer": "cpu", "trainer-gpu": "cuda"}


@pytest.mark.parametrize("name", ["api", "api-gpu"])
def test_the_api_takes_every_setting_from_env(name: str) -> None:
    assert set(services("*")[name]["environment"]) - NOT_OURS == set(variable_names())


def test_the_example_of_env_has_every_variable_that_compose_reads() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    read = set(re.findall(r"\$\{(\w+)", text)) | set(re.findall(r"^ +([A-Z][A-Z0-9_]+):$", text, re.MULTILINE))
    example = set(re.findall(r"^#(\w+)=", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE))
    assert "DEEPSYNTH_API_KEY" in read
    assert read - example == set()


def test_services_share_no_folder_that_belongs_to_one() -> None:
    found = services("*")
    for name in ("ADAPTER_STATE_DIR", "JOB_DIR", "SAMPLE_DIR"):
        folders = [found[service]["environment"][f"DEEPSYNTH_{name}"] for service in ("api", "api-gpu")]
        assert len(set(folders)) == len(folders)


def test_a_stop_waits_for_the_longest_page() -> None:
    settings = ServiceSettings()
    longest_s = settings.drain_grace_s + settings.deadline_s + STOP_MARGIN_S
    for name in ("api", "api-gpu"):
        minutes, seconds = re.fullmatch(r"(?:(\d+)m)?(\d+)s", services("*")[name]["stop_grace_period"]).groups()
        assert 60 * int(minutes or 0) + int(seconds) >= longest_s + 5


def test_no_password_is_built_in() -> None:
    assert "PASSWORD" not in (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    grafana = services()["grafana"]["environment"]
    # Grafana would make the account admin with the password admin.
    assert grafana["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert (grafana["GF_AUTH_DISABLE_LOGIN_FORM"], grafana["GF_AUTH_BASIC_ENABLED"]) == ("true", "false")


def test_the_trainer_writes_the_adapters_that_the_services_only_read() -> None:
    found = services("*")
    for name in OURS:
        mounts = {mount["source"]: mount.get("read_only", False) for mount in found[name]["volumes"]}
        assert mounts["adapters"] is name.startswith("api")


@pytest.mark.parametrize("name", sorted(ALL))
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


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """The default services that run without a container: the API, and Prometheus once it is healthy."""
    require("prometheus")
    stack = Composed(tmp_path_factory.mktemp("composed"), services("*"))
    stack.volume("adapters")
    try:
        port = stack.start_api("api")
        wait_until_ready(port, stack.processes["api"], stack.log("api"), limit_s=600)
        _start_prometheus(stack)
        yield stack
    finally:
        stack.stop()


def _start_prometheus(stack: Composed) -> None:
    command = [stack.here("prometheus", each) for each in stack.services["prometheus"]["command"]]
    # The same configuration, in a folder where targets have this machine's addresses.
    config = (ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8")
    assert "api:8000" in config
    folder = stack.folder / "prometheus"
    folder.mkdir()
    for each in (ROOT / "deploy/prometheus").iterdir():
        (folder / each.name).write_bytes(each.read_bytes())
    config = config.replace("api:8000", f"127.0.0.1:{stack.ports['api']}").replace(
        "scrape_interval: 15s", "scrape_interval: 1s"
    )
    (folder / "prometheus.yml").write_text(config.replace("scrape_timeout: 5s", "scrape_timeout: 1s"), encoding="utf-8")
    command[0] = f"--config.file={folder / 'prometheus.yml'}"
    port = free_port()
    stack.start("prometheus", [require("prometheus"), *command, f"--web.listen-address=127.0.0.1:{port}"], port)


def _read(stack: Composed, **fields: str) -> dict[str, Any]:
    with SAMPLE.open("rb") as page:
        answer = httpx.post(
            f"http://127.0.0.1:{stack.ports['api']}/ocr", files={"file": page}, data=fields, timeout=600
        )
    body: dict[str, Any] = answer.json()
    return {"status_code": answer.status_code, **body}


def _scraped(stack: Composed, expression: str) -> float | None:
    try:
        answer = httpx.get(f"http://127.0.0.1:{stack.ports['prometheus']}/api/v1/query", params={"query": expression})
    except httpx.TransportError:
        return None
    found = answer.json().get("data", {}).get("result", []) if answer.status_code == 200 else []
    return float(found[0]["value"][1]) if found else None


@needs_nano
def test_the_health_check_gates_what_waits_for_the_api(composed: Composed) -> None:
    assert composed.is_healthy("api")


@needs_nano
def test_a_page_is_read_and_prometheus_sees_it(composed: Composed) -> None:
    answer = _read(composed)
    assert (answer["status_code"], answer["model_id"]) == (200, "nano")
    assert "ferry" in answer["text"]
    end_s = time.monotonic() + 600
    query = 'deepsynth_inference_total{job="deepsynth",model_id="nano",status="ok"}'
    while not _scraped(composed, query):
        assert time.monotonic() < end_s, composed.log("prometheus").read_text(encoding="utf-8")[-2000:]
        time.sleep(0.5)


@needs_nano
def test_the_trainer_publishes_what_the_running_api_serves(composed: Composed, tmp_path: Path) -> None:
    from shared.deepseek_ocr.loading import load_checkpoint

    write_adapter(tmp_path / "peft", load_checkpoint(ROOT / "shared" / "nano").model, seed=1, strength=0.01)
    assert _read(composed, model_id="stamps")["status_code"] == 404
    command = [
        "publish", "--from", str(tmp_path / "peft"), "--base", "shared/nano", "--force", "a test of the compose file",
        "--volume", "/var/lib/deepsynth/adapters", "--name", "stamps",
    ]  # fmt: skip
    done = composed.run("trainer", command)
    assert done.returncode == 0, done.stderr
    end_s = time.monotonic() + 600
    while (answer := _read(composed, model_id="stamps"))["status_code"] != 200:
        assert time.monotonic() < end_s, answer
        time.sleep(0.5)
    assert answer["model_id"].startswith("stamps")
    assert "ferry" in answer["text"]


def test_prometheus_accepts_its_configuration_and_the_rules() -> None:
    done = subprocess.run(
        [require("promtool"), "check", "config", "deploy/prometheus/prometheus.yml"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout


def test_alerts_fire_when_they_should_and_not_before() -> None:
    done = subprocess.run(
        [require("promtool"), "test", "rules", "tests/e2e/alerts_test.yml"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
