"""Runs as processes: several of one run, started by torchrun; one that is told to end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.training import events, run_small, start_small, write_checkpoint, write_words
from trainer.training import checkpoints

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]


STEPS = 30
STEPS_AN_EPOCH = 5
"""Of 18 pages, four at a time."""
COMPARED = 4
"""Steps of several processes that are compared with those of one."""
WORDS = ("--max-steps", str(STEPS), "--save-steps", "2", "--eval-steps", str(STEPS), "--batch-size", "2",
         "--keep-checkpoints", str(STEPS))  # fmt: skip


def ended(process, status=0):
    _, errors = process.communicate(timeout=900)
    assert process.returncode == status, errors
    return errors


def losses(run):
    return {event["step"]: event["loss"] for event in events(run, "log")}


def weights(run):
    return load_file(run / "checkpoints" / f"step-{COMPARED}" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a model, pages, and `run`: one of two processes that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    write_checkpoint(folder / "model")
    write_words(folder / "words", 24)
    ended(start_small(folder, *WORDS, processes=2))
    return folder


def test_two_processes_learn_what_one_learns_with_twice_the_batch(whole):
    alone = whole / "alone"
    run_small(
        whole, output_dir=alone, batch_size=4, max_steps=STEPS, eval_steps=STEPS, save_steps=2, keep_checkpoints=STEPS
    )
    together = weights(whole / "run")
    for key, tensor in weights(alone).items():
        torch.testing.assert_close(together[key], tensor, atol=2e-4, rtol=1e-3)
    assert len(events(whole / "run", "evaluate")) == 1
    assert losses(whole / "run").keys() == losses(alone).keys() == set(range(1, STEPS + 1))
    # Rounding adds up from step to step.
    first = range(1, COMPARED + 1)
    assert [losses(whole / "run")[step] for step in first] == pytest.approx(
        [losses(alone)[step] for step in first], rel=2e-3
    )


def test_a_killed_process_ends_the_run_with_one_line_and_the_run_resumes(whole, tmp_path):
    write_checkpoint(tmp_path / "model")
    write_words(tmp_path / "words", 24)
    log = tmp_path / "run" / "log.jsonl"

    def last_saved():
        return max((event["step"] for event in events(tmp_path / "run", "save")), default=0) if log.exists() else 0

    # One is resumed in the first epoch, the other in the second, whose order is another.
    for killed, saved in ((0, 2), (1, STEPS_AN_EPOCH + 1)):
        process = start_small(tmp_path, *WORDS, "--resume", processes=2)
        wait_for(lambda saved=saved: last_saved() >= saved, process)
        os.kill(process_of_rank(process.pid, killed), signal.SIGKILL)
        errors = ended(process, 1)
        lost = [line for line in errors.splitlines() if line.endswith("[process_lost]")]
        assert len(lost) == 1, errors
        assert f"error: process {1 - killed} lost another process" in lost[0]
        assert "Signal 9 (SIGKILL)" in errors, "torchrun names the one that was killed"
        assert "[rank" not in errors, "no traceback of ours"
    ended(start_small(tmp_path, *WORDS, "--resume", processes=2))
    assert events(tmp_path / "run", "start")[-1]["step"] % STEPS_AN_EPOCH, "resumed within an epoch"
    assert losses(whole / "run").keys() == losses(tmp_path / "run").keys() == set(range(1, STEPS + 1))
    assert losses(tmp_path / "run") == pytest.approx(losses(whole / "run"), rel=1e-5)


def process_of_rank(torchrun: int, rank: int) -> int:
    children = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()
    (found,) = [pid for pid in children if f"\0RANK={rank}\0" in "\0" + Path(f"/proc/{pid}/environ").read_text()]
    return int(found)


def wait_for(is_there, process, limit_s=900):
    end = time.monotonic() + limit_s
    while not is_there():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_program_with_a_checkpoint_and_its_own_status(tmp_path, number):
    write_checkpoint(tmp_path / "model")
    write_words(tmp_path / "words", 24)
    process = start_small(tmp_path, "--max-steps", "2000", "--eval-steps", "2000")
    log = tmp_path / "run" / "log.jsonl"
    wait_for(lambda: log.exists() and '"log"' in log.read_text(), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    assert "--resume continues from there" in errors
    (newest, _) = checkpoints.newest_valid(tmp_path / "run" / "checkpoints")
    assert newest is not None
