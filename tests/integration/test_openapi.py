"""The OpenAPI document: it says every status and code, and what the service does agrees with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from service.errors import error_classes
from tests.support.programs import ROOT
from tests.support.server import running_server
from tests.support.service import make_settings, png, running_service

pytestmark = pytest.mark.integration

CASES = re.compile(r"^ *(\d+) generated", re.MULTILINE)
NOT_DESCRIBED = {"client_disconnect", "not_found", "method_not_allowed"}
"""Never sent, or sent by paths and methods that the document does not have."""


def operations() -> dict[str, dict[str, Any]]:
    paths = create_app(make_settings()).openapi()["paths"]
    return {f"{method} {path}": each for path, methods in paths.items() for method, each in methods.items()}


def codes_of(operation: dict[str, Any]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for status, response in operation["responses"].items():
        if int(status) >= 400:
            (content,) = response["content"].values()
            members = content["schema"]["properties"]
            found[int(status)] = members.get("error", {"properties": members})["properties"]["code"]["enum"]
    return found


def test_every_error_is_described_with_its_status() -> None:
    described = {
        (code, status) for each in operations().values() for status, codes in codes_of(each).items() for code in codes
    }
    known = {(code, error.status) for code, error in error_classes().items() if code not in NOT_DESCRIBED}
    assert known <= described


def test_errors_have_one_media_type_and_every_operation_has_the_common_ones() -> None:
    for name, operation in operations().items():
        in_its_own_shape = name in {"post /v1/chat/completions", "post /v1/ocr"} or "/documentintelligence/" in name
        media_type = "application/json" if in_its_own_shape else "application/problem+json"
        statuses = codes_of(operation)
        assert {400, 500} <= set(statuses), name
        for status in statuses:
            assert list(operation["responses"][str(status)]["content"]) == [media_type], name


def test_all_but_health_routes_say_that_they_may_need_a_key() -> None:
    open_to_all = {name for name, operation in operations().items() if not operation.get("security")}
    assert open_to_all == {"get /livez", "get /readyz"}


async def test_options_that_may_be_empty_are_described_so(tmp_path: Path) -> None:
    """As clients send what was not chosen."""
    path = "/documentintelligence/documentModels/{model_id}:analyze"
    choices = {
        each["name"]: each["schema"]["enum"]
        for each in operations()[f"post {path}"]["parameters"]
        if "enum" in each["schema"]
    }
    assert choices
    async with running_service(job_dir=tmp_path) as service:
        for name, values in choices.items():
            answer = await service.client.post(path.format(model_id="fake"), params={name: ""}, content=png())
            assert (answer.status_code, "" in values) == (202, True), name


def test_schemathesis_finds_no_violation(tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="the package schemathesis is not installed")
    folders = {f"{name}_DIR": str(tmp_path / name) for name in ("JOB", "SAMPLE", "ADAPTER")}
    (tmp_path / "ADAPTER").mkdir()
    samples = {"OCR_SAVE_SAMPLES": "true", "OCR_PRIVACY_ALLOWED": "true"}
    with running_server(ADMIN_KEY="a key for every case", **folders, **samples) as server:
        command = [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "--config-file",
            str(ROOT / "tests/support/schemathesis.toml"),
            "run",
        ]
        ended = subprocess.run(
            [*command, f"{server.url}/openapi.json", "--phases", "fuzzing", "-n", "15", "--seed", "1"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
            | {"SCHEMATHESIS_HOOKS": "tests.support.openapi_inputs"},
            check=False,
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
    found = CASES.search(ended.stdout)
    assert found is not None
    assert int(found[1]) >= 150
