"""A disk that fills up while a run writes to it: a real, small file system, which root may mount."""

from __future__ import annotations

import os
import subprocess
from functools import partial

import pytest

from tests.support.training import events, run_small, small_options, write_checkpoint, write_words
from trainer.cli import main
from trainer.training.checkpoints import newest_valid, validation_error

FULL = {"lora_rank": 32, "target_modules": "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"}


@pytest.fixture
def mounted(tmp_path):
    """A function that mounts a file system of so many KiB, or gives it another size."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0 or _mount("size=64k", folder):
        pytest.skip("only root may mount a file system, and not everywhere")
    try:
        yield partial(_resized, folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _resized(folder, size_kib):
    assert _mount(f"remount,size={size_kib}k", folder) == 0
    return folder


def _mount(options, folder):
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode


def train_in(place, run, *words):
    options = small_options(place, **FULL, max_steps=4, eval_steps=2, output_dir=run)
    flags = [
        word
        for name, value in options.items()
        if name != "use_tensorboard"
        for word in (f"--{name.replace('_', '-')}", *str(value).split())
    ]
    return main(["train", *flags, "--device", "cpu", *words])


@pytest.mark.parametrize("size_kib", [8, 200, pytest.param(600, marks=pytest.mark.bench)])
def test_a_full_disk_is_said_truly_and_the_run_goes_on_after_room_is_made(tmp_path, mounted, capsys, size_kib):
    """It is full before the first update, at the first checkpoint, and at the second."""
    write_checkpoint(tmp_path / "model")
    write_words(tmp_path / "words", 12)
    run = mounted(size_kib) / "run"
    assert train_in(tmp_path, run) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "[disk_full]" in last
    kept, _ = newest_valid(run / "checkpoints")
    assert (f"{kept.name} is complete" if kept else "there is no checkpoint yet") in last
    assert (kept is not None) is (size_kib == 600)
    assert not list(run.rglob("*.partial"))
    mounted(65536)
    assert train_in(tmp_path, run, "--resume") == 0
    assert validation_error(run / "best") is None
    assert events(run, "start")[-1]["step"] == (int(kept.name.removeprefix("step-")) if kept else 0)


def test_what_comes_after_training_says_it_in_a_line_too(tmp_path, mounted, capsys):
    write_checkpoint(tmp_path / "model")
    write_words(tmp_path / "words", 12)
    run_small(tmp_path, max_steps=2, eval_steps=2)
    place, run = mounted(4), str(tmp_path / "run")
    reading = ["--data", str(tmp_path / "words"), "--limit", "2", "--max-new-tokens", "4", "--device", "cpu"]
    for words in (
        ["merge", "--adapter", run, *reading, "--out", str(place / "merged")],
        ["export", "--to", "peft", "--adapter", run, "--out", str(place / "peft")],
        ["report", run, "--output", str(place / "report.html")],
        ["evaluate", "--adapter", run, *reading, "--out", str(place)],
    ):
        assert main(words) == 2
        assert capsys.readouterr().err.strip().splitlines()[-1].endswith("make room and repeat the command [disk_full]")
    assert not [path for path in place.iterdir() if path.is_dir()], "neither merge nor export left a folder"
