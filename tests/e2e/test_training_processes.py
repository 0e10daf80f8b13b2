"""Runs as processes: several of one run, started by torchrun; one that is told to end."""

from __future__ import annotations

import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.support.training import events, run_small, start_small, write_checkpoint, write_words
from trainer.training import checkpoints

pytestmark = pytest.mark.e2e


def weights(run):
    return load_file(run / "checkpoints" / "step-4" / "adapter_model.safetensors")


def test_two_processes_learn_what_one_learns_with_twice_the_batch(tmp_path):
    write_checkpoint(tmp_path / "model")
    write_words(tmp_path / "words", 24)
    run_small(tmp_path, batch_size=4, max_steps=4, eval_steps=4)
    alone = weights(tmp_path / "run")
    words = ("--max-steps", "4", "--eval-steps", "4", "--batch-size", "2", "--overwrite")
    process = start_small(tmp_path, *words, processes=2)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    together = weights(tmp_path / "run")
    for key, tensor in alone.items():
        torch.testing.assert_close(together[key], tensor, atol=2e-4, rtol=1e-3)
    assert len(events(tmp_path / "run", "evaluate")) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_program_with_a_checkpoint_and_its_own_status(tmp_path, number):
    write_checkpoint(tmp_path / "model")
    write_words(tmp_path / "words", 24)
    process = start_small(tmp_path, "--max-steps", "2000", "--eval-steps", "2000")
    log = tmp_path / "run" / "log.jsonl"
    end = time.monotonic() + 60
    while not (log.exists() and '"log"' in log.read_text()):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    assert "--resume continues from there" in errors
    (newest, _) = checkpoints.newest_valid(tmp_path / "run" / "checkpoints")
    assert newest is not None
