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

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


STEPS = 30
BY_TWO = ("--max-steps", str(STEPS), "--save-steps", "2", "--eval-steps", str(STEPS), "--batch-size", "2", "--resume")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Where a run of two processes was not disturbed: `whole`."""
    folder = tmp_path_factory.mktemp("small")
    write_checkpoint(folder / "model")
    write_words(folder / "words", 24)
    ended(start_small(folder, *BY_TWO, "--output-dir", str(folder / "whole"), processes=2))
    return folder


def ended(process, status=0):
    _, errors = process.communicate(timeout=240)
    assert process.returncode == status, errors
    return errors


def losses(run):
    return {event["step"]: event["loss"] for event in events(run, "log")}


def test_two_processes_learn_what_one_learns_with_twice_the_batch(small):
    run_small(small, output_dir=small / "alone", batch_size=4, max_steps=STEPS, eval_steps=STEPS)
    place = f"checkpoints/step-{STEPS}/adapter_model.safetensors"
    alone, together = (load_file(small / name / place) for name in ("alone", "whole"))
    for key, tensor in alone.items():
        torch.testing.assert_close(together[key], tensor, atol=2e-4, rtol=1e-3)
    assert len(events(small / "whole", "evaluate")) == 1
    assert losses(small / "whole") == pytest.approx(losses(small / "alone"), rel=2e-3)


def test_a_killed_process_ends_the_run_with_one_line_and_the_run_resumes(small):
    log = small / "run" / "log.jsonl"
    for killed in (0, 1):
        before = log.read_text().count('"save"') if log.exists() else 0
        process = start_small(small, *BY_TWO, processes=2)
        wait_for(lambda: log.exists() and log.read_text().count('"save"') > before, process)  # noqa: B023 -- called here
        os.kill(process_of_rank(process.pid, killed), signal.SIGKILL)
        errors = ended(process, 1)
        lost = [line for line in errors.splitlines() if line.endswith("[process_lost]")]
        assert len(lost) == 1, errors
        assert f"error: process {1 - killed} lost another process" in lost[0]
        assert "Signal 9 (SIGKILL)" in errors, "torchrun names the one that was killed"
        assert "[rank" not in errors, "no traceback of ours"
    ended(start_small(small, *BY_TWO, processes=2))
    assert losses(small / "whole").keys() == losses(small / "run").keys() == set(range(1, STEPS + 1))
    assert losses(small / "run") == pytest.approx(losses(small / "whole"), rel=1e-5)


def process_of_rank(torchrun: int, rank: int) -> int:
    children = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()
    (found,) = [pid for pid in children if f"\0RANK={rank}\0" in "\0" + Path(f"/proc/{pid}/environ").read_text()]
    return int(found)


def wait_for(is_there, process, limit_s=240):
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
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    assert "--resume continues from there" in errors
    (newest, _) = checkpoints.newest_valid(tmp_path / "run" / "checkpoints")
    assert newest is not None
