"""docs/training.md and docs/troubleshooting.md: commands run as they stand, flags exist, codes are all there are."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from tests.support.programs import ROOT
from tests.support.training import events, write_checkpoint, write_words
from trainer.cli import main
from trainer.training.errors import TrainingCode
from trainer.training.presets import PRESETS
from trainer.training.reward_options import DEFAULT_WEIGHTS

DOCUMENT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
TEXT = DOCUMENT.partition("## Training\n")[2].partition("\n## ")[0]
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """What the commands name: a set of scans, a file of options; nano's place is taken by a smaller model."""
    write_checkpoint(tmp_path / "shared" / "nano")
    write_words(tmp_path / "sets" / "scans", 16)
    (yaml,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "scans.yaml").write_text(yaml, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPSYNTH_TRAINER_THREADS", "1")
    return tmp_path


def commands():
    blocks = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if not line.startswith("make ")]


def test_every_command_runs(workplace, capsys):
    assert len(commands()) == 3
    # Few updates: what is tried are the commands.
    short = ["--eval-steps", "4", "--no-use-tensorboard", "--device", "cpu"]
    for line in commands():
        python, dash_m, trainer, *words = shlex.split(line)
        assert (python, dash_m, trainer) == ("python", "-m", "trainer")
        limit = [] if "--max-steps" in words else ["--max-steps", "6"]
        assert main([*words, *limit, *short]) == 0, f"{line}\n{capsys.readouterr().err}"
    assert events(workplace / "runs" / "scans", "finished")
    record = json.loads((workplace / "runs" / "from-file" / "run.json").read_text())
    assert (record["options"]["max_steps"], record["options"]["lora_rank"]) == (20, 8)


def test_every_flag_that_is_named_exists(capsys):
    help_text = ""
    for command in ("train", "prepare", "publish", "evaluate"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        help_text += capsys.readouterr().out
    others = {"--nproc-per-node", "--logdir", "--gpus"}
    for text in (TEXT, TROUBLES):
        flags = set(re.findall(r"(?<!-)--[a-z][a-z-]+[a-z]", text)) - others
        assert {flag for flag in flags if flag not in help_text} == set()


def test_every_preset_is_explained_and_none_else():
    table = TEXT.partition("| preset |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([a-z-]+)`", table, re.MULTILINE)) == PRESETS.keys()


def test_every_code_is_explained_and_none_else():
    table = TROUBLES.partition("| code |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([a-z_]+)`", table, re.MULTILINE)) == {code.value for code in TrainingCode}


def test_rewards_are_explained_with_their_weights_and_their_flags_exist(capsys):
    section = DOCUMENT.partition("## Training by rewards\n")[2].partition("\n## ")[0]
    table = section.partition("| reward |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `([a-z]+)` \|.*\| ([0-9.]+) \|$", table, re.MULTILINE)
    assert {name: float(weight) for name, weight in rows} == DEFAULT_WEIGHTS
    with pytest.raises(SystemExit):
        main(["reinforce", "--help"])
    help_text = capsys.readouterr().out
    assert (
        set(re.findall(r"--[a-z][a-z-]+[a-z]", section)) - set(re.findall(r"--[a-z][a-z-]+[a-z]", help_text)) == set()
    )


def test_the_page_stays_short():
    assert len(DOCUMENT.splitlines()) <= 250
