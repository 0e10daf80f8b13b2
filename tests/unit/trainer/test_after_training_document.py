"""docs/training.md from "After training" on: its commands run as they stand, one after another."""

from __future__ import annotations

import re
import shlex
import shutil

import pytest

from tests.support.programs import ROOT
from tests.support.training import run_small, write_checkpoint, write_words
from trainer.cli import main

TEXT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").partition("## After training\n")[2]
EXTRA = {
    "evaluate": ["--device", "cpu", "--max-new-tokens", "8"],
    # Six updates make nothing better; what is tried are the commands.
    "publish": ["--device", "cpu", "--max-new-tokens", "8", "--force", "a test"],
    "benchmark": ["--device", "cpu", "--text-tokens", "20", "--steps", "1", "--modes", "cached"],
    "report": [],
}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A run, the set that it was trained on with pages that it has not seen, an adapter from elsewhere, a volume."""
    write_checkpoint(tmp_path / "shared" / "nano")
    words = write_words(tmp_path / "sets" / "scans", 16)
    shutil.copytree(words / "validation", words / "test")
    run_small(tmp_path, model=str(tmp_path / "shared" / "nano"), dataset_name=str(words), max_steps=3,
              output_dir=tmp_path / "runs" / "scans")  # fmt: skip
    shutil.copytree(tmp_path / "runs" / "scans" / "best", tmp_path / "elsewhere")
    (tmp_path / "adapters").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPSYNTH_TRAINER_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def test_every_command_runs(workplace, capsys):
    lines = [line for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
    assert len(lines) == 5
    for line in lines:
        python, dash_m, trainer, *words = shlex.split(line)
        assert (python, dash_m, trainer) == ("python", "-m", "trainer")
        assert main([*words, *EXTRA[words[0]]]) == 0, f"{line}\n{capsys.readouterr().err}"
    run = workplace / "runs" / "scans"
    assert {"evaluation.json", "worst.jsonl", "report.html"} <= {path.name for path in run.iterdir()}
    page = (run / "report.html").read_text()
    assert page.count("<svg") == 3, "rates, losses, error rates"
    assert (workplace / "adapters" / "scans" / "current").read_text().startswith("1\n")
    out = capsys.readouterr().out
    assert re.search(r"^cached +[0-9.]+ +1\.00 x$", out, re.MULTILINE)
    assert (workplace / "adapters" / "found" / "1" / "manifest.json").is_file()


def test_every_flag_that_is_named_exists(capsys):
    help_text = ""
    for command in ("evaluate", "publish", "report", "benchmark"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        help_text += capsys.readouterr().out
    assert {flag for flag in re.findall(r"--[a-z][a-z-]+[a-z]", TEXT) if flag not in help_text} == set()
