"""Which backend a CUDA run uses: Unsloth where it is installed and loads the model itself, else plain PEFT.

Neither is imported before it is chosen.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Final

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from shared.deepseek_ocr.registry import find_kind
from trainer.backends.protocol import Backend
from trainer.training.errors import TrainingCode, TrainingError

CONFIG_NAME: Final = "config.json"
ENVIRONMENT = {"UNSLOTH_DISABLE_STATISTICS": "1", "UNSLOTH_COMPILE_DISABLE": "1"}
"""No telemetry; no compilation of blocks either, which had not finished a first step after two minutes on an H100."""


def unsloth_backend(model: str | None, *, required: bool) -> Backend:
    """The backend of a run on CUDA for a base model, which does not matter where Unsloth is `required`.

    Raises `TrainingError` if it is required and not installed.
    """
    if not required and not (model and _is_loaded_by_unsloth(model)):
        from trainer.backends.peft import adapt as plain_adapt

        return plain_adapt
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


def _is_loaded_by_unsloth(model: str) -> bool:
    """Whether Unsloth has a class for a base model; others gain nothing from it. False where the model is unknown.

    Reads config.json alone: what loads a checkpoint imports transformers, which Unsloth has to come before.
    """
    path = Path(model) / CONFIG_NAME
    try:
        if not path.parent.is_dir():
            path = Path(hf_hub_download(model, CONFIG_NAME))
        kind = find_kind(json.loads(path.read_text(encoding="utf-8")).get("model_type"))
    except (OSError, ValueError, HfHubHTTPError):
        return False  # the backend says what is wrong with the model
    return kind is not None and kind.adopter is not None
