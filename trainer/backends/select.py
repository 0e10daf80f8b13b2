"""Which backend a CUDA run uses: Unsloth where it is installed and faster, else plain PEFT.

Neither is imported before it is chosen.
"""

from __future__ import annotations

import importlib.util
import os

from trainer.backends.protocol import Backend
from trainer.training.errors import TrainingCode, TrainingError

ENVIRONMENT = {"UNSLOTH_DISABLE_STATISTICS": "1", "UNSLOTH_COMPILE_DISABLE": "1"}
"""No telemetry; no compilation of blocks either, which had not finished a first step after two minutes on an H100."""


def unsloth_backend(*, required: bool) -> Backend:
    """The backend of a run on CUDA; raises `TrainingError` if Unsloth is `required` and not installed."""
    if importlib.util.find_spec("unsloth") is None:
        if required:
            raise TrainingError(
                TrainingCode.BACKEND_MISSING,
                "Unsloth is not installed",
                "install the extra trainer-cuda, or take --backend peft",
            )
        from trainer.backends.peft import adapt as plain

        return plain
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # noqa: TID251 - read by Unsloth alone, at its import
    from trainer.backends.unsloth import adapt

    return adapt
