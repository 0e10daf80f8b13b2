"""A sweep that is killed in the middle of a trial, and resumed at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.programs import ROOT
from tests.support.training import events, write_checkpoint, write_words

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
WAIT_S = 600.0
STEPS = "150"
"""Of a trial, which is to be killed soon after its fifth step."""


def test_a_killed_sweep_goes_on_with_the_trial_that_it_was_in(tmp_path):
    pytest.importorskip("optuna")
    write_checkpoint(tmp_path / "model")
    write_words(tmp_path / "words", 16)
    out = tmp_path / "sweep"
    command = [sys.executable, "-m", "trainer", "sweep", "--model", str(tmp_path / "model"), "--dataset-name",
               str(tmp_path / "words"), "--out", str(out), "--search", "lora-rank=2,4", "--trials", "2",
               "--device", "cpu",
               "--max-steps", STEPS, "--eval-steps", "75", "--save-steps", "5", "--max-new-tokens", "4",
               "--max-eval-samples", "2", "--no-use-tensorboard"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DEEPSYNTH_TRAINER_THREADS": "1"}
    first = out / "trials" / "0000"
    with (tmp_path / "sweep.txt").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + WAIT_S
        while not ((first / "log.jsonl").is_file() and events(first, "save")):
            assert process.poll() is None, (tmp_path / "sweep.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not events(first, "end"), "it was killed too late to tell"
    done = subprocess.run(
        [*command, "--resume", "--max-steps", STEPS],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "sweep.json").read_text())
    assert [each["state"] for each in record["trials"]] == ["complete", "complete"]
    begun = [event["step"] for event in events(first, "start")]
    assert begun[0] == 0
    assert begun[-1] > 0, "the trial began again"
    assert len(events(first, "finished")) == 1
