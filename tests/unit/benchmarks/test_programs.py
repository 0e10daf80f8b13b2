"""What every program in `benchmarks/` has in common: `--help` works on a machine without a GPU's packages."""

from __future__ import annotations

import re
import runpy
import sys

import pytest
import torch

from tests.support.programs import ROOT

PROGRAMS = [path for path in sorted((ROOT / "benchmarks").glob("*.py")) if '__name__ == "__main__"' in path.read_text()]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_help_needs_neither_triton_nor_vllm(program, monkeypatch, capsys):
    for package in ("triton", "vllm"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(sys, "argv", [str(program), "--help"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(program), run_name="__main__")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: {program.name}")
    assert f"benchmarks/{program.name}" in said, "the help shows how to call the program"


@pytest.mark.parametrize("words", ["kernel_speed.py", "kernel_sweep.py norm", "engine_settings.py steps"])
def test_a_program_for_a_gpu_says_so_without_one(words, monkeypatch, capsys):
    name, *options = words.split()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", [name, *options])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "benchmarks" / name), run_name="__main__")
    assert ended.value.code == 2
    assert "needs CUDA" in capsys.readouterr().err


def test_every_program_that_is_named_exists():
    named = set()
    for pattern in ("*.md", "docs/*.md", "Makefile", "benchmarks/*.py", "service/**/*.py", "trainer/**/*.py"):
        for path in ROOT.glob(pattern):
            # The changelog and the log of measurements keep names of their time.
            if path.name != "CHANGELOG.md":
                named |= {(path.name, found) for found in re.findall(r"benchmarks/(\w+\.py)", path.read_text())}
    assert len(named) > 30
    assert {each for each in named if not (ROOT / "benchmarks" / each[1]).is_file()} == set()
