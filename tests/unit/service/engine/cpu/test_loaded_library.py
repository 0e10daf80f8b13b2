"""Which library is loaded, and what is said where there is none."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service.engine.cpu import canvas_library, compiled_step, step_library
from service.engine.cpu.loaded_library import NoLibraryError, load_first
from service.engine.cpu.step_library import CANVASES, DECODE_STEPS, Library
from tests.unit.service.engine.cpu.runnable_libraries import runnable

BEST, *_, LAST = DECODE_STEPS
RUNNABLE = runnable(DECODE_STEPS)
needs_library = pytest.mark.skipif(not RUNNABLE, reason="needs a C compiler and a processor with AVX2")


@pytest.fixture
def capable(monkeypatch):
    """Sets what torch says of the processor."""

    def say(*names: str) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True), raising=False)

    return say


def load(libraries: list[Library], version: int = compiled_step.VERSION) -> ctypes.CDLL:
    return load_first(libraries, "decode_step_version", version)


def placed(libraries: list[Library], folder: Path) -> list[Library]:
    return [replace(each, folder=folder) for each in libraries]


def test_what_was_not_built_is_not_loaded(tmp_path, capable):
    capable(*BEST.capabilities)
    with pytest.raises(NoLibraryError, match="not built"):
        load(placed([BEST, LAST], tmp_path))


@pytest.mark.parametrize("load_any", [compiled_step.load, canvas_library.load])
def test_a_processor_without_avx2_loads_none(load_any: Callable[..., ctypes.CDLL], capable, monkeypatch):
    capable("avx")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("was loaded"))
    with pytest.raises(NoLibraryError, match="AVX2"):
        load_any()


def test_a_torch_that_does_not_say_loads_none(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    with pytest.raises(NoLibraryError, match="AVX2"):
        load([BEST])


def test_a_file_that_is_no_library_is_not_loaded(tmp_path, capable):
    capable(*LAST.capabilities)
    [library] = placed([LAST], tmp_path)
    library.path.write_bytes(b"no library")
    with pytest.raises(NoLibraryError, match="cannot be loaded"):
        load([library])


@needs_library
@pytest.mark.parametrize(
    ("libraries", "module"),
    [(runnable(DECODE_STEPS), compiled_step), (runnable(CANVASES), canvas_library)],
)
def test_another_versions_library_is_not_called(libraries, module, tmp_path, monkeypatch):
    [library] = placed(libraries[-1:], tmp_path)
    step_library.build(library)
    assert module.load([library])
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    with pytest.raises(NoLibraryError, match="another version"):
        module.load([library])


@needs_library
def test_the_first_that_was_built_and_fits_is_loaded(tmp_path, capable):
    libraries = placed(RUNNABLE, tmp_path)
    step_library.build(libraries[-1])
    assert load(libraries)._name == str(libraries[-1].path)
    step_library.build(libraries[0])
    assert load(libraries)._name == str(libraries[0].path)
    capable(*libraries[-1].capabilities)
    assert load(libraries)._name == str(libraries[-1].path)
