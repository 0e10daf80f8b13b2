"""A run killed at random moments loses nothing, publishes nothing half, and ends where an undisturbed one does."""

from __future__ import annotations

import random
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.support.training import run_small, start_small, write_checkpoint, write_words
from trainer.training.checkpoints import step_folders, validation_error

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]
KILLS = 20
UPDATES = ("--max-steps", "240", "--save-steps", "4", "--eval-steps", "20")


def test_twenty_kills_at_random_moments(tmp_path):
    write_checkpoint(tmp_path / "model")
    write_words(tmp_path / "words", 24)
    random.seed(1)
    kills = 0
    while kills < KILLS:
        process = start_small(tmp_path, *UPDATES, "--resume")
        log = tmp_path / "run" / "log.jsonl"
        size = log.stat().st_size if log.exists() else 0
        # From here on the run writes; before it there is only the interpreter to be killed.
        while process.poll() is None and (log.stat().st_size if log.exists() else 0) == size:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 1.5))
        if process.poll() is not None:
            _, errors = process.communicate()
            assert process.returncode == 0, errors
            break
        process.kill()
        process.communicate()
        kills += 1
        run = tmp_path / "run"
        faults = {path.name: validation_error(path) for _, path in step_folders(run / "checkpoints")}
        assert not any(faults.values()), faults
        best = run / "best"
        assert not best.exists() or validation_error(best) is None
    assert kills >= 5, "the run was over too soon to tell anything"
    process = start_small(tmp_path, *UPDATES, "--resume")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    run_small(tmp_path, output_dir=tmp_path / "whole", max_steps=240, save_steps=4, eval_steps=20)
    place = "checkpoints/step-240/adapter_model.safetensors"
    first, second = (load_file(tmp_path / name / place) for name in ("run", "whole"))
    assert all(torch.equal(first[key], second[key]) for key in second)
