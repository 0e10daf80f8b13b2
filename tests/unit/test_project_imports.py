"""Who may import whom, as far as a linter of static imports cannot see it, and that every import is declared."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
OWN = ("service", "trainer", "shared")
HEAVY = ("torch", "transformers")
LIGHT = (
    "shared.contract",
    "shared.deepseek_ocr.geometry",
    "service.admission",
    "service.engine.batch",
    "service.engine.config",
    "service.engine.detokenization",
    "service.engine.factory",
    "service.engine.fake",
    "service.engine.process",
    "service.engine.protocol",
    "service.engine.requests",
    "service.engine.resolve",
    "service.engine.runner",
    "service.engine.scheduler",
    "service.engine.sequence",
    "service.frames",
    "service.intake",
    "service.jobs",
    "service.ocr",
    "service.page_codec",
    "service.routes",
    "service.telemetry",
    "trainer.nano.training.draw",
)


def light_modules() -> list[str]:
    """Every module of the packages and modules in LIGHT that exists."""
    names = []
    for name in LIGHT:
        place = ROOT / name.replace(".", "/")
        files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
        assert all(file.is_file() for file in files), f"{name} is named here and gone"
        names += [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    return names


def test_light_modules_load_no_torch() -> None:
    imports = "\n".join(f"import {name}" for name in light_modules())
    code = f"import sys\n{imports}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def import_graph() -> dict[str, set[str]]:
    """Which of our modules each of them imports, in functions and for types as well."""
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for own in OWN
        for file in (ROOT / own).rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= members & files.keys() or {node.module}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        graph[name] = found & files.keys() - {name}
    return graph


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = import_graph()
    reached: dict[str, set[str]] = {}
    for name in graph:
        seen: set[str] = set()
        following = [*graph[name]]
        while following:
            module = following.pop()
            if module not in seen:
                seen.add(module)
                following += graph[module]
        reached[name] = seen
    circles = {
        frozenset(other for other in seen if name in reached[other]) for name, seen in reached.items() if name in seen
    }
    assert circles == set()


def test_package_files_are_empty() -> None:
    filled = [
        str(file.relative_to(ROOT)) for own in OWN for file in (ROOT / own).rglob("__init__.py") if file.stat().st_size
    ]
    assert filled == []


def imported_packages(package: str) -> dict[str, str]:
    """Top-level names that a package's files import, with a file that does."""
    found: dict[str, str] = {}
    for file in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            else:
                continue
            found.update({name.partition(".")[0]: str(file.relative_to(ROOT)) for name in names})
    return {name: file for name, file in found.items() if name not in sys.stdlib_module_names and name not in OWN}


PARTS = {"unsloth-zoo": "unsloth"}
"""Distributions that another one is made of: it is declared with that one."""


def declared(*extras: str) -> set[str]:
    """Distributions that pyproject.toml names, for everybody and for the extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return {canonicalize_name(Requirement(line).name) for lines in lists for line in lines}


@pytest.mark.parametrize(
    ("package", "extras"),
    [
        ("shared", ("heif",)),
        ("service", ("service", "service-cuda", "bulk", "ray")),
        (
            "trainer",
            (
                *("trainer", "trainer-cuda", "trainer-rapidocr", "trainer-rewards", "trainer-sweep"),
                *("trainer-tracing", "trainer-wandb"),
            ),
        ),
    ],
)
def test_every_import_is_a_declared_dependency(package: str, extras: tuple[str, ...]) -> None:
    owners = packages_distributions()
    allowed = declared(*extras)
    strays = {}
    for name, file in imported_packages(package).items():
        found = {canonicalize_name(owner) for owner in owners.get(name, [name])}
        distributions = {PARTS.get(distribution, distribution) for distribution in found}
        if not distributions & allowed:
            strays[name] = file
    assert strays == {}
