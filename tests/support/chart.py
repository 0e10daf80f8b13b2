"""Renders the Helm chart with Helm's own engine, offline.

The package helm-python-sdk is Helm's Go SDK as a library. It runs in a process of its own, so that no Go runtime, with
its threads and signal handlers, stays in the process of the tests.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.programs import ROOT

CHART = ROOT / "deploy" / "helm" / "deepsynth-ocr"
RELEASE = "demo"
NAMESPACE = "ocr"


@dataclass(frozen=True)
class Rendered:
    """What `helm install` would send, or why it would refuse."""

    objects: list[dict[str, Any]]
    error: str = ""

    def of(self, kind: str, component: str = "") -> list[dict[str, Any]]:
        """Objects of a kind, and of a component if one is named."""
        label = "app.kubernetes.io/component"
        return [
            each
            for each in self.objects
            if each["kind"] == kind and component in ("", each["metadata"]["labels"][label])
        ]

    def one(self, kind: str, component: str = "") -> dict[str, Any]:
        (found,) = self.of(kind, component)
        return found


@functools.cache
def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def values_file(name: str) -> dict[str, Any]:
    """One of the values files in the chart's folder `ci`, by its name without `-values.yaml`; `default` is empty."""
    if name == "default":
        return {}
    found: dict[str, Any] = yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text(encoding="utf-8"))
    return found


def values_files() -> list[str]:
    return ["default", *sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").iterdir())]


def merged(*values: Mapping[str, Any]) -> dict[str, Any]:
    """Values files laid over each other, as `helm -f` does."""
    whole: dict[str, Any] = {}
    for each in values:
        for name, value in each.items():
            both = isinstance(value, Mapping) and isinstance(whole.get(name), dict)
            whole[name] = merged(whole[name], value) if both else value
    return whole


def render(values: Mapping[str, Any], chart: Path = CHART) -> Rendered:
    return _pool().submit(_render, dict(values), chart).result(timeout=120)


def lint(values: Mapping[str, Any], chart: Path = CHART) -> list[str]:
    """What `helm lint --strict` objects to; its advice to add an icon does not count."""
    return _pool().submit(_lint, dict(values), chart).result(timeout=120)


def _render(values: dict[str, Any], path: Path) -> Rendered:
    import helm_python as helm

    try:
        with helm.Chart.load(path) as chart:
            chart.validate_schema(values)
            texts = chart.render(values, name=RELEASE, namespace=NAMESPACE)
    except helm.HelmError as error:
        return Rendered([], str(error))
    documents = [each for name, text in texts.items() if name.endswith(".yaml") for each in yaml.safe_load_all(text)]
    return Rendered([each for each in documents if each is not None])


def _lint(values: dict[str, Any], path: Path) -> list[str]:
    import helm_python as helm

    report = helm.lint(path, values, strict=True)
    warning = 2
    messages = [f"{each['path']}: {each['error']}" for each in report["messages"] if each["severity"] >= warning]
    return [*messages, *report["errors"]]
