"""Several processes of one run, started by torchrun."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.support.training import events, run_small, start_small, write_checkpoint, write_words

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
