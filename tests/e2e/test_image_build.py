"""The API image: built by buildah from Debian's own bootstrap, then run and asked to read a page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shared.contract.text import cer
from tests.support.buildah import Buildah, host_pip_mounts
from tests.support.nano import needs_nano
from tests.support.programs import ROOT, absent, free_port, require, stop_session, wait_until_ready

pytestmark = pytest.mark.e2e

BASE = "localhost/deepsynth-base"
IMAGE = "localhost/deepsynth-api"
USER = "10001:10001"
SAMPLE = ROOT / "docs" / "samples" / "sample-block.png"


@dataclass(frozen=True)
class Image:
    """The built image and one container of it; each container is a whole copy on this storage, so there is one."""

    buildah: Buildah
    container: str
    config: dict[str, Any]
    port: int

    def command(self, command: Sequence[str], port: int | None = None) -> list[str]:
        environment = {"DEEPSYNTH_HOST": "127.0.0.1", "DEEPSYNTH_PORT": str(port or self.port), "OMP_NUM_THREADS": "2"}
        return self.buildah.run_command(self.container, command, environment)

    def run(self, command: Sequence[str], port: int | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(command, port), capture_output=True, text=True, check=False, timeout=60)


@dataclass(frozen=True)
class Running:
    """The image's own command, running."""

    port: int

    def get(self, path: str) -> tuple[int, bytes]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return int(answer.status), answer.read()


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    require("debootstrap")
    require("buildah")
    if os.geteuid() != 0:
        absent("building an image in a chroot needs root")
    made = subprocess.run([ROOT / "tests/e2e/base_image.sh"], stdout=subprocess.PIPE, text=True, check=True)
    base = Path(made.stdout.strip())
    folder = Path(tempfile.mkdtemp(prefix="deepsynth-image-"))
    try:
        buildah = Buildah(folder, cache=base.parent)
        buildah.import_root(base, BASE)
        buildah.build(ROOT, "Dockerfile.api", IMAGE, BASE, host_pip_mounts(folder))
        yield Image(buildah, buildah("from", "--pull-never", IMAGE), buildah.config(IMAGE), free_port())
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def running(image: Image) -> Iterator[Running]:
    log = image.buildah.folder / "log"
    command = image.command([*image.config["Entrypoint"], *image.config["Cmd"]])
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_until_ready(image.port, process, log, limit_s=120)
        yield Running(image.port)
    finally:
        stop_session(process)


def read_sample(service: Running) -> dict[str, Any]:
    boundary = "deepsynth-boundary"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="page.png"\r\n\r\n'
    body = head.encode() + SAMPLE.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{service.port}/ocr",
        data=body,
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        result: dict[str, Any] = json.load(answer)
    return result


def test_the_image_runs_as_an_ordinary_user(image: Image) -> None:
    assert image.config["User"] == USER
    assert image.run(["id", "-u"]).stdout.strip() == USER.partition(":")[0]


def test_the_image_holds_neither_the_trainer_nor_build_files(image: Image) -> None:
    code = (
        "import importlib.util, os; find = importlib.util.find_spec; "
        "print(find('trainer'), find('peft'), os.path.exists('/opt/build'))"
    )
    done = image.run(["python", "-c", code])
    assert done.stdout.split() == ["None", "None", "False"], done.stderr


@needs_nano
def test_the_running_image_is_alive_and_ready(running: Running) -> None:
    assert running.get("/livez")[0] == 200
    assert running.get("/readyz")[0] == 200


@needs_nano
def test_the_image_reads_the_sample_page(running: Running) -> None:
    answer = read_sample(running)
    truth = SAMPLE.with_suffix(".txt").read_text(encoding="utf-8")
    assert answer["model_id"] == "nano"
    assert cer(truth, answer["text"]) <= 0.05


@needs_nano
def test_the_health_check_succeeds_in_the_running_container_and_fails_elsewhere(image: Image, running: Running) -> None:
    check = image.config["Healthcheck"]["Test"]
    assert check[0] == "CMD"
    assert image.run(check[1:], port=running.port).returncode == 0
    assert image.run(check[1:], port=free_port()).returncode != 0
