"""The repository's own shape: what may lie where, and that documents, targets and versions agree."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"service", "trainer", "shared", "deploy", "tests", "docs", "benchmarks", ".ci"}
FILES = {
    ".dockerignore", ".editorconfig", ".env.example", ".gitattributes", ".gitignore", ".yamllint.yml", "CHANGELOG.md",
    "CONTRIBUTING.md", "Dockerfile.api", "Dockerfile.train", "LICENSE", "Makefile", "README.md", "docker-compose.yml",
    "pyproject.toml",
}  # fmt: skip
DOCUMENTS = (
    "README.md", "CONTRIBUTING.md", "docs/index.md", "docs/deployment.md", "docs/development.md",
    "docs/architecture.md",
)  # fmt: skip
LOCKS = {
    "dev": ("service", "trainer", "heif", "dev"),
    "service": ("service",),
    "service-cuda": ("service", "service-cuda"),
    "trainer": ("trainer",),
    "trainer-cuda": ("trainer", "trainer-cuda"),
    "ray": ("service", "bulk", "ray"),
}
FOR_IMAGES = sorted(set(LOCKS) - {"dev", "ray"})
STACK = ("accelerate", "numpy", "peft", "torch", "transformers")
"""What trains and runs the model: the same in every environment."""
FLOORS = {
    "h11": "0.16",  # CVE-2025-43859
    "pillow": "13.0.0",  # CVE-2026-42311, CVE-2026-96639
    "python-multipart": "0.0.30",  # CVE-2026-42561, CVE-2026-53537
    "safetensors": "0.8.0",
    "starlette": "1.0.1",  # CVE-2026-48710
    "torch": "2.10",  # CVE-2026-24747
}
"""Lowest versions without a hole that concerns this project."""
BANNED_NAMES = {"utils.py", "common.py", "misc.py", "helpers.py"}
LARGEST_FILE_BYTES = 20_000_000


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return done.stdout.splitlines()


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):", text("Makefile"), re.MULTILINE))


def project() -> dict[str, object]:
    table: dict[str, object] = tomllib.loads(text("pyproject.toml"))["project"]
    return table


def test_nothing_strays_in_the_root(tracked: list[str]) -> None:
    tops = {path.split("/", 1)[0] for path in tracked if "/" in path}
    files = {path for path in tracked if "/" not in path}
    assert tops - FOLDERS == set()
    assert files - FILES == set()


def test_no_file_is_named_for_nothing(tracked: list[str]) -> None:
    assert [path for path in tracked if path.rsplit("/", 1)[-1] in BANNED_NAMES] == []


def test_no_tracked_file_is_too_large(tracked: list[str]) -> None:
    sizes = {path: (ROOT / path).stat().st_size for path in tracked if (ROOT / path).is_file()}
    assert {path: size for path, size in sizes.items() if size > LARGEST_FILE_BYTES} == {}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_that_documents_name_exist(document: str) -> None:
    blocks = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text(document), re.DOTALL))
    named = set(re.findall(r"(?<![\w/-])make ([a-z][a-z0-9-]*)", blocks))
    assert named - make_targets() == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_documents_link_to_exist(document: str) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text(document))
    missing = [link for link in links if not ((ROOT / document).parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize(
    "document", ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
)
def test_paths_that_documents_name_exist(document: str) -> None:
    named = re.findall(r"`((?:service|trainer|shared|benchmarks|deploy|tests)/[\w./-]*\w)/?`", text(document))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_readme_names_files_that_exist() -> None:
    paths = re.findall(r"(?:docs/samples|deploy|shared)/[\w./-]*\w", text("README.md"))
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_make_target_is_listed_by_help() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert make_targets() == {line.split()[0] for line in listed.splitlines() if line.startswith("  ")}


def test_serve_installs_the_service_alone_and_nothing_where_all_is_installed(tmp_path: Path) -> None:
    def planned() -> str:
        command = ["make", "--dry-run", "serve", f"VENV={tmp_path}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "install.sh service cpu" in planned()
    assert "dev.txt" not in planned()
    (tmp_path / "bin").mkdir()
    for name in ("bin/python", ".installed"):
        (tmp_path / name).touch()
    assert "pip install" not in planned()


def test_the_changelog_has_a_section_for_the_version() -> None:
    assert f"## [{project()['version']}]" in text("CHANGELOG.md")


@pytest.mark.parametrize("name", LOCKS)
def test_lock_files_pin_every_declared_dependency(name: str) -> None:
    table = project()
    lines = list(table["dependencies"])  # type: ignore[call-overload]  # TOML tables are untyped
    for extra in LOCKS[name]:
        lines += table["optional-dependencies"][extra]  # type: ignore[index]  # TOML tables are untyped
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text(f"deploy/env/{name}.txt"), re.MULTILINE))
    pins = {canonicalize_name(package): version for package, version in pins.items()}
    unmet = []
    for line in lines:
        wanted = Requirement(line)
        if not wanted.specifier.contains(pins.get(canonicalize_name(wanted.name), "0"), prereleases=True):
            unmet.append(line)
    assert unmet == []


@pytest.mark.parametrize("name", ["service", "trainer"])
def test_lock_files_agree_on_versions(name: str) -> None:
    everything = set(re.findall(r"^\S+==\S+", text("deploy/env/dev.txt"), re.MULTILINE))
    assert set(re.findall(r"^\S+==\S+", text(f"deploy/env/{name}.txt"), re.MULTILINE)) - everything == set()


@pytest.mark.parametrize("name", FOR_IMAGES)
def test_every_distribution_in_an_image_has_a_hash_but_torch_for_any_build(name: str) -> None:
    entries = re.split(r"^(?=[a-z0-9])", text(f"deploy/env/{name}.txt"), flags=re.MULTILINE)[1:]
    assert len(entries) > 50
    bare = [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry]
    assert [entry.partition("==")[0] for entry in bare] == ([] if name.endswith("-cuda") else ["torch"])


@pytest.mark.parametrize("name", FOR_IMAGES)
def test_only_cuda_images_have_cuda(name: str) -> None:
    pinned = re.findall(r"^(\S+)==", text(f"deploy/env/{name}.txt"), re.MULTILINE)
    assert any(each.startswith("nvidia-") for each in pinned) is name.endswith("-cuda")


def test_the_trainer_on_cuda_has_the_same_stack_as_elsewhere_and_unsloth() -> None:
    pins = [
        dict(re.findall(r"^(\S+)==(\S+)", text(f"deploy/env/{name}.txt"), re.MULTILINE))
        for name in ("dev", "trainer-cuda")
    ]
    assert {each: pins[0][each] for each in STACK} == {each: pins[1][each] for each in STACK}
    assert "unsloth" in pins[1]


def test_lock_files_name_no_build_of_torch_and_no_address() -> None:
    for name in LOCKS:
        lock = text(f"deploy/env/{name}.txt")
        assert re.search(r"^torch==2\.13\.0(\s|$)", lock, re.MULTILINE)
        assert "://" not in lock
        assert "/tmp/" not in lock


@pytest.mark.parametrize("package", FLOORS)
def test_lock_files_are_above_known_vulnerabilities(package: str) -> None:
    for name in LOCKS:
        for version in re.findall(rf"^{re.escape(package)}==([0-9.]+)", text(f"deploy/env/{name}.txt"), re.MULTILINE):
            assert Version(version) >= Version(FLOORS[package]), name
