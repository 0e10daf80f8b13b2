"""The program that fuzzes the intake runs: a few inputs of each target. docs/reliability.md has the long runs."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import pytest

from tests.support.programs import ROOT, absent

PROGRAM = ROOT / "tests/chaos/fuzz_intake.py"


def run(*arguments: str, folder=ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=900)


def test_help_shows_how_to_call_it():
    done = run("--help")
    assert done.returncode == 0
    assert "tests/chaos/fuzz_intake.py form" in done.stdout


@pytest.mark.parametrize(("target", "runs"), [("form", 300), ("file", 150)])
def test_nothing_is_found_in_a_few_runs(target, runs, tmp_path):
    if importlib.util.find_spec("atheris") is None:
        absent("atheris is not installed")
    done = run(target, f"-runs={runs}", "-seed=1", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    # Seeds come on top, where there are more than runs.
    finished = re.search(r"Done (\d+) runs", done.stderr)
    assert finished is not None
    assert int(finished[1]) >= runs
    assert [path for path in (tmp_path / "build" / "fuzz").iterdir() if path.is_file()] == []
