"""What the parts of the service may pull in, and how middleware must be written."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = sorted((ROOT / "service").rglob("*.py"))


SERVING = (
    "service.admission.gate", "service.monitor", "service.intake.pool", "service.ocr.reader", "service.routes.ocr",
    "service.routes.stream", "service.app", "shared.contract.prompts", "shared.contract.text",
)  # fmt: skip


@cache
def loaded_by(*names: str) -> frozenset[str]:
    """Every module that a new process has once it has imported these."""
    program = f"import sys, {', '.join(names)}; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    loaded = frozenset(ended.stdout.split())
    assert loaded >= set(names)
    return loaded


@pytest.mark.parametrize("heavy", ["torch", "transformers"])
def test_http_side_never_loads_the_device_side(heavy: str) -> None:
    assert heavy not in loaded_by(*SERVING)
    assert heavy not in loaded_by("service.intake.child")


def test_serving_loads_the_client_of_the_hub_only_where_a_repository_is_named() -> None:
    assert "huggingface_hub" not in loaded_by(*SERVING)


@pytest.mark.parametrize("codec", ["cv2", "pikepdf", "pypdfium2"])
def test_codecs_are_loaded_in_image_processes_alone(codec: str) -> None:
    assert codec not in loaded_by(*SERVING)


@pytest.mark.parametrize("heavy", ["fastapi", "huggingface_hub"])
def test_commands_that_read_here_never_load_what_only_serving_needs(heavy: str) -> None:
    assert heavy not in loaded_by("service.cli.local_reader", "service.reader_parts")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_middleware_is_pure_asgi(path: Path) -> None:
    # BaseHTTPMiddleware hides the client's disconnect from the handlers beneath it.
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            assert name != "BaseHTTPMiddleware"
            assert name != "middleware" or not isinstance(node, ast.Attribute)
        if isinstance(node, ast.ImportFrom):
            assert "BaseHTTPMiddleware" not in {alias.name for alias in node.names}


@pytest.mark.parametrize("package", ["", "admission", "intake", "ocr", "routes", "telemetry", "engine"])
def test_package_files_are_empty(package: str) -> None:
    assert (ROOT / "service" / package / "__init__.py").read_text() == ""
