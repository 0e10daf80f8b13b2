"""Wheel and sdist: everything the package needs is in them, and the command works in a folder that is no checkout.

The wheel that is tested is built from the sdist, so that one stands for both.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from shared.contract.text import cer
from tests.support.nano import needs_nano
from tests.support.programs import ROOT

pytestmark = pytest.mark.e2e

PACKAGES = ("service", "shared", "trainer")
SAMPLE = ROOT / "docs" / "samples" / "sample-block.png"
LARGEST_CER = 0.05


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build from, since building leaves files behind."""
    copy = tmp_path_factory.mktemp("source")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    build = f"import setuptools.build_meta as backend; backend.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=600)
    (built,) = folder.glob("*.tar.gz")
    return built


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(sdist)], check=True, timeout=600)
    (built,) = folder.glob("*.whl")
    return built


def make_venv(folder: Path, wheel: Path) -> Path:
    """A virtual environment with the wheel and nothing else; returns its folder of programs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=600)
    programs = folder / "bin"
    command = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "--quiet", "--no-deps"]
    subprocess.run([*command, str(wheel)], check=True, timeout=600)
    return programs


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_venv(tmp_path_factory.mktemp("bare"), wheel)


@pytest.fixture(scope="module")
def complete(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With this environment's packages, apart from the checkout, which is installed there in editable form."""
    folder = tmp_path_factory.mktemp("complete")
    programs = make_venv(folder, wheel)
    (own,) = folder.glob("lib/python*/site-packages")
    # A path named in a .pth file is searched, but the .pth files there, which lead to the checkout, are not read.
    (own / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return programs


def call(programs: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    unwanted = ("DEEPSYNTH_", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return subprocess.run(
        [programs / "deepsynth", *arguments],
        cwd=folder,
        env={**kept, "OMP_NUM_THREADS": "2"},
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_both_are_named_for_the_version(sdist: Path, wheel: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert sdist.name == f"deepsynth_ocr-{version}.tar.gz"
    assert wheel.name == f"deepsynth_ocr-{version}-py3-none-any.whl"
    metadata = zipfile.ZipFile(wheel).read(f"deepsynth_ocr-{version}.dist-info/METADATA").decode()
    assert f"\nVersion: {version}\n" in metadata
    assert "\nProvides-Extra: ray\n" in metadata


def test_wheel_has_every_file_of_the_packages(source: Path, wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert f"shared/nano/{name}" in held
    assert "service/web/index.html" in held
    files = {path.relative_to(source).as_posix() for name in PACKAGES for path in (source / name).rglob("*.*")}
    packaged = {name for name in held if not name.startswith("deepsynth_ocr-")}
    assert packaged == files


@needs_nano
def test_installed_command_reads_in_any_folder(complete: Path, tmp_path: Path) -> None:
    shutil.copy(SAMPLE, tmp_path / "page.png")
    # Neither the package's names nor the standard library's are taken from the folder one happens to be in.
    for name in ("service.py", "shared.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit('imported from the working folder')\n", encoding="utf-8")
    ended = call(complete, "ocr", "page.png", folder=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert cer(SAMPLE.with_suffix(".txt").read_text(encoding="utf-8"), ended.stdout) <= LARGEST_CER


@pytest.mark.parametrize("words", [("serve",), ("ocr", "page.png"), ("adapters", "list")])
def test_command_without_its_packages_says_what_to_install(bare: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    ended = call(bare, *words, folder=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("deepsynth: the package ")
    assert line.endswith('pip install "deepsynth-ocr[service]"')


def test_help_needs_no_packages_and_names_the_command(bare: Path, tmp_path: Path) -> None:
    ended = call(bare, "--help", folder=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "deepsynth ocr scan.png" in ended.stdout
