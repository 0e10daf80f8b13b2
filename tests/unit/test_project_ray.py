"""Configuration files of Ray Serve: their settings exist, and their limits fit each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from service.cluster.replica_settings import check_settings
from service.config import ServiceSettings, load_settings

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "deploy" / "ray").glob("*.yaml"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(request.param.read_text(encoding="utf-8"))
    return found


def settings_of(config: dict[str, Any]) -> ServiceSettings:
    (application,) = config["applications"]
    return load_settings(application["runtime_env"]["env_vars"], env_file=None)


def test_settings_are_valid_for_replicas_and_the_application_exists(config: dict[str, Any]) -> None:
    (application,) = config["applications"]
    check_settings(settings_of(config))
    module, _, name = application["import_path"].partition(":")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    assert f"\n{name} = " in source
    (deployment,) = application["deployments"]
    assert f'name="{deployment["name"]}"' in source


def test_serve_listens_on_loopback_unless_an_operator_opens_it(config: dict[str, Any]) -> None:
    assert config["http_options"]["host"] == "127.0.0.1"


def test_limits_fit(config: dict[str, Any]) -> None:
    settings = settings_of(config)
    (deployment,) = config["applications"][0]["deployments"]
    # What Serve lets through, the service can take.
    assert deployment["max_ongoing_requests"] <= settings.max_concurrent_requests
    assert deployment["autoscaling_config"]["target_ongoing_requests"] < deployment["max_ongoing_requests"]
    assert deployment["graceful_shutdown_timeout_s"] > settings.deadline_s
    assert ("num_gpus" in deployment["ray_actor_options"]) is (settings.device == "cuda")
