"""The images of the API and of the trainer, for a CPU: built by buildah from Debian's own bootstrap, then run.

The API's is asked to read a page. The trainer's goes through its smoke job, with too few steps to pass the gate.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.engine.cpu import canvas_library
from service.engine.cpu.compiled_step import VERSION
from service.engine.cpu.step_library import CANVASES, DECODE_STEPS
from shared.contract.text import cer
from tests.support.buildah import Buildah, host_pip_mounts
from tests.support.nano import needs_nano
from tests.support.programs import ROOT, absent, free_port, require, stop_session, wait_until_ready

pytestmark = pytest.mark.e2e

BASE = "localhost/deepsynth-base"
USER = "10001:10001"
HOME = "/var/lib/deepsynth"
SAMPLE = ROOT / "docs" / "samples" / "sample-block.png"
LARGEST_API_BYTES = 2_000_000_000
WRITABLE = ("proc", "sys", "dev", "run", "tmp", HOME.lstrip("/"))
"""What stays writable where the root is not: volumes and /tmp."""
OUTPUT, ERRORS = "/tmp/output", "/tmp/errors"
"""In a container."""


@dataclass(frozen=True)
class Image:
    """A built image and one container of it; a container may be a whole copy, so there is one."""

    buildah: Buildah
    name: str
    container: str
    config: dict[str, Any]
    port: int

    def command(self, command: Sequence[str], port: int | None = None) -> list[str]:
        environment = {"DEEPSYNTH_HOST": "127.0.0.1", "DEEPSYNTH_PORT": str(port or self.port), "OMP_NUM_THREADS": "2"}
        return self.buildah.run_command(self.container, command, environment)

    def run(
        self, command: Sequence[str], port: int | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        # Through files: what buildah passes on from a command that ends at once may be lost on a busy machine.
        kept = ["sh", "-c", f'exec "$@" >{OUTPUT} 2>{ERRORS}', "sh", *command]
        done = subprocess.run(self.command(kept, port), capture_output=True, text=True, check=False, timeout=timeout_s)
        root = self.root()
        output, errors = ((root / name.removeprefix("/")).read_text() for name in (OUTPUT, ERRORS))
        return subprocess.CompletedProcess(command, done.returncode, output, errors + done.stderr)

    def root(self) -> Path:
        """The container's files."""
        return Path(self.buildah("mount", self.container))

    def size_bytes(self) -> int:
        return sum(each.lstat().st_size for each in self.root().rglob("*") if not each.is_dir())


@dataclass(frozen=True)
class Running:
    """The image's own command, running."""

    port: int

    def get(self, path: str) -> tuple[int, bytes]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return int(answer.status), answer.read()


@pytest.fixture(scope="module")
def buildah() -> Iterator[Buildah]:
    require("debootstrap")
    require("buildah")
    if os.geteuid() != 0:
        absent("building an image in a chroot needs root")
    made = subprocess.run([ROOT / "tests/e2e/base_image.sh"], stdout=subprocess.PIPE, text=True, check=True)
    base = Path(made.stdout.strip())
    store = Buildah(Path(tempfile.mkdtemp(prefix="deepsynth-image-")), cache=base.parent)
    try:
        store.import_root(base, BASE)
        yield store
    finally:
        store.remove()


def built(buildah: Buildah, dockerfile: str, name: str, **arguments: str) -> Image:
    options = [*host_pip_mounts(buildah.folder), *(f"--build-arg={key}={value}" for key, value in arguments.items())]
    buildah.build(ROOT, dockerfile, name, BASE, options)
    return Image(buildah, name, buildah("from", "--pull-never", name), buildah.config(name), free_port())


@pytest.fixture(scope="module")
def image(buildah: Buildah) -> Image:
    return built(buildah, "Dockerfile.api", "localhost/deepsynth-api", VARIANT="cpu")


@pytest.fixture(scope="module")
def trainer(buildah: Buildah) -> Image:
    # One family of fonts in place of all: the others are ten times as much to fetch.
    return built(buildah, "Dockerfile.train", "localhost/deepsynth-trainer", VARIANT="cpu", FONTS="fonts-dejavu-core")


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


@needs_nano
def test_the_running_image_writes_nothing_outside_its_volumes(image: Image, running: Running) -> None:
    read_sample(running)
    root, made = image.root(), (image.root() / "etc/passwd").stat().st_mtime
    written = [
        str(each.relative_to(root))
        for top in root.iterdir()
        if top.name not in WRITABLE
        for each in ([top] if not top.is_dir() else top.rglob("*"))
        if not str(each.relative_to(root)).startswith(WRITABLE) and each.lstat().st_mtime > made + 1
    ]
    assert written == []


def test_the_cpu_image_has_no_compiler_and_no_cuda_libraries(image: Image) -> None:
    assert image.run(["sh", "-c", "command -v gcc || command -v cc || command -v make"]).stdout == ""
    listed = image.run(["pip", "list", "--format=freeze"]).stdout
    assert "torch==" in listed
    assert [line for line in listed.splitlines() if line.startswith(("nvidia-", "triton", "cuda-"))] == []
    size = image.size_bytes()
    print(f"{image.name}: {size / 1e6:.0f} MB")
    assert size < LARGEST_API_BYTES


def test_the_cpu_image_has_the_compiled_code_on_x86(image: Image) -> None:
    code = (
        "import ctypes; from service.engine.cpu.step_library import CANVASES, DECODE_STEPS; "
        "kinds = [(DECODE_STEPS, 'decode_step_version'), (CANVASES, 'canvases_version')]; "
        "found = [(each.path, name) for libraries, name in kinds for each in libraries if each.path.exists()]; "
        "print([getattr(ctypes.CDLL(str(path)), name)() for path, name in found])"
    )
    done = image.run(["python", "-c", code])
    versions = [VERSION] * len(DECODE_STEPS) + [canvas_library.VERSION] * len(CANVASES)
    assert done.stdout.strip() == str(versions if platform.machine() == "x86_64" else []), done.stderr


def test_the_training_image_runs_as_an_ordinary_user_and_has_no_service(trainer: Image) -> None:
    assert trainer.config["User"] == USER
    assert trainer.run(["id", "-u"]).stdout.strip() == USER.partition(":")[0]
    code = "import importlib.util; find = importlib.util.find_spec; print(find('service'), find('fastapi'))"
    assert trainer.run(["python", "-c", code]).stdout.split() == ["None", "None"]
    print(f"{trainer.name}: {trainer.size_bytes() / 1e6:.0f} MB")


def test_the_training_image_draws_right_to_left_and_has_fonts(trainer: Image) -> None:
    code = "from PIL import features; print(features.check('raqm'), features.check('fribidi'))"
    assert trainer.run(["python", "-c", code]).stdout.split() == ["True", "True"]
    assert trainer.run(["sh", "-c", "ls /usr/share/fonts/truetype/dejavu/*.ttf"]).stdout.split()


@needs_nano
def test_the_smoke_job_runs_in_the_training_image_and_its_adapter_is_published(trainer: Image) -> None:
    command = [*trainer.config["Entrypoint"], "smoke", "--texts", "30", "--train-flags", "--max-steps 2"]
    done = trainer.run(command, timeout_s=600)
    # Prepared, trained and measured; two steps teach nothing, so the gate refuses.
    assert (done.returncode, "`trainer publish` ended with status 2" in done.stderr) == (2, True), done.stderr[-4000:]
    publish = [
        "publish", "--adapter", "runs/smoke/run", "--base", "shared/nano", "--volume", "adapters", "--name", "comb",
        "--force", "a test of the image",
    ]  # fmt: skip
    done = trainer.run([*trainer.config["Entrypoint"], *publish], timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert (trainer.root() / HOME.lstrip("/") / "adapters/comb/1/manifest.json").is_file()
