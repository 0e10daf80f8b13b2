"""One trial of a sweep: a training run in its own process, watched through its log.

A process of its own gives back the device's memory and takes no other trial along when it fails.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from trainer.config import child_environment
from trainer.training.errors import TrainingCode, TrainingError
from trainer.training.events import LOG_FILE, read_events
from trainer.training.options import TrainingOptions
from trainer.training.run_lock import is_busy

POLL_S: Final = 0.2
STOPPED: Final = (128 + signal.SIGTERM, 128 + signal.SIGINT)
"""Statuses of a run that was told to stop, and has a checkpoint."""
GRACE_S: Final = 120.0
"""A stopped run finishes its update and writes a checkpoint; after this it is killed."""


class End(StrEnum):
    """How a trial ended."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What a trial's run came to.

    Attributes:
        end: how it ended.
        cer: lowest error rate of a check; None if there was none.
        seconds: of this process, with loading.
        message: last line that a failed run printed.
    """

    end: End
    cer: float | None
    seconds: float
    message: str = ""


def run_trial(
    options: TrainingOptions,
    device: str | None,
    report: Callable[[int, float], bool],
    is_over: Callable[[], bool],
) -> TrialResult:
    """Train, or go on training, in `options.output_dir`.

    Args:
        options: of the run.
        device: value of CUDA_VISIBLE_DEVICES; None leaves it.
        report: gets each check's percent of the updates and error rate; returns whether the trial is hopeless.
        is_over: whether the sweep's time is up or it was told to stop.

    Returns:
        The result. After `is_over`, the run has a checkpoint and can go on.

    Raises:
        TrainingError: the run has no held-out pages to be judged by.
    """
    folder = options.output_dir
    folder.parent.mkdir(parents=True, exist_ok=True)
    config = folder.with_name(f"{folder.name}.yaml")
    config.write_text(json.dumps(options.as_json(), indent=1) + "\n", encoding="utf-8")  # JSON is YAML
    environment = child_environment() | ({"CUDA_VISIBLE_DEVICES": device} if device is not None else {})
    command = [sys.executable, "-m", "trainer.sweeping.child", "train", "--config", str(config), "--resume"]
    _wait_until_free(folder, is_over)
    start_s = time.monotonic()
    with folder.with_name(f"{folder.name}.txt").open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - this program, no shell
            # The pipe tells the run when this process is gone, however it went.
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment,
        )
        try:
            end = _watch(process, folder / LOG_FILE, report, is_over)
        finally:
            _end(process)
            assert process.stdin is not None
            process.stdin.close()
    seconds = time.monotonic() - start_s
    rates = [float(event["cer"]) for event in read_events(folder / LOG_FILE, "evaluate")]
    best = min(rates, default=None)
    if end is not End.COMPLETE:
        return TrialResult(end, best, seconds)
    if process.returncode != 0:
        lines = folder.with_name(f"{folder.name}.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        return TrialResult(End.FAILED, best, seconds, lines[-1] if lines else f"status {process.returncode}")
    if best is None:
        raise TrainingError(
            TrainingCode.NO_SAMPLES,
            "the set has no held-out pages to compare trials by",
            "name some with --eval-dataset-name, or raise --validation-share",
        )
    return TrialResult(End.COMPLETE, best, seconds)


def _wait_until_free(folder: Path, is_over: Callable[[], bool]) -> None:
    """Wait for the run of a sweep that was killed: it is still writing its checkpoint."""
    deadline_s = time.monotonic() + GRACE_S
    while is_busy(folder) and time.monotonic() < deadline_s and not is_over():
        time.sleep(POLL_S)


def _watch(
    process: subprocess.Popen[bytes], log: Path, report: Callable[[int, float], bool], is_over: Callable[[], bool]
) -> End:
    """Wait for the process; tell it to stop when it is hopeless or the sweep is over."""
    num_reported = 0
    while process.poll() is None:
        if is_over():
            return End.INTERRUPTED
        checks = list(read_events(log, "evaluate"))
        for event in checks[num_reported:]:
            if report(int(100 * event["step"] / max(event["max_steps"], 1)), float(event["cer"])):
                return End.PRUNED
        num_reported = len(checks)
        time.sleep(POLL_S)
    return End.INTERRUPTED if process.returncode in STOPPED else End.COMPLETE


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
