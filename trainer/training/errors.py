"""Every error of a training run, with its code and what to do about it.

A `TrainingError` ends a run before it starts, or after everything worth keeping has been written. Codes are stable:
programs may rely on them.
"""

from __future__ import annotations

import signal
from enum import StrEnum
from typing import Final

from shared.contract.durable import DISK_FULL

_FULL_WORDS: Final = ("No space left", "Disk quota exceeded", "File too large", "file write failed", "unexpected pos ")
"""How torch's and safetensors' own errors report a full disk."""


class TrainingCode(StrEnum):
    """Why a run cannot start or continue."""

    OPTION_UNKNOWN = "option_unknown"
    OPTION_INVALID = "option_invalid"
    GPU_MISSING = "gpu_missing"
    BACKEND_MISSING = "backend_missing"
    PACKAGE_MISSING = "package_missing"
    MODEL_UNUSABLE = "model_unusable"
    TARGET_UNMATCHED = "target_unmatched"
    NO_SAMPLES = "no_samples"
    OUTPUT_EXISTS = "output_exists"
    OUTPUT_BUSY = "output_busy"
    OUTPUT_UNWRITABLE = "output_unwritable"
    RESUME_MISMATCH = "resume_mismatch"
    CHECKPOINT_CORRUPT = "checkpoint_corrupt"
    DISK_FULL = "disk_full"
    OUT_OF_MEMORY = "out_of_memory"
    LOSS_NOT_FINITE = "loss_not_finite"
    STEP_FAILED = "step_failed"
    PROCESS_LOST = "process_lost"


class TrainingError(Exception):
    """A run that cannot start or continue: why (a stable `code`), and the `remedy`."""

    def __init__(self, code: TrainingCode, message: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy} [{code}]")
        self.code = code
        self.remedy = remedy


class TrainingStopped(Exception):  # noqa: N818 - nothing went wrong
    """The run was asked to stop and has written a checkpoint; with `--resume` it continues from there."""

    def __init__(self, message: str, signal_number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    @property
    def exit_status(self) -> int:
        """As shells report a process that the signal has ended: schedulers restart it, while 0 would mean done."""
        return 128 + self.signal_number


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk has no room, whichever library raised it."""
    return getattr(error, "errno", None) in DISK_FULL or any(words in str(error) for words in _FULL_WORDS)
