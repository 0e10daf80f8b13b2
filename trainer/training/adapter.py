"""A model's adapter, written as PEFT's two files; the same bytes wherever it was trained.

Owns what the files say. Knows PEFT, not who injected the adapter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.contract.volume import CONFIG_FILE, WEIGHTS_FILE
from shared.deepseek_ocr.checkpoint import share_weights
from trainer.training.errors import TrainingCode, TrainingError

ADAPTER = "default"
"""PEFT's name of the adapter that is trained."""


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's tensors by the keys of its file."""
    # By default PEFT asks the Hub whether the base model has new tokens.
    return get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)


def adapter_shapes(model: PeftModel) -> dict[str, tuple[int, ...]]:
    """Shapes of the file's tensors."""
    return {key: tuple(tensor.shape) for key, tensor in adapter_tensors(model).items()}


def save_adapter(model: PeftModel, folder: Path, base_model: str, modules: tuple[str, ...]) -> None:
    """Write the adapter's weights and its `adapter_config.json`; makes the folder.

    Args:
        model: the trained model.
        folder: where to write.
        base_model: name of the base model, without folders of this machine.
        modules: full names of the adapted modules.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.detach().float().cpu().contiguous() for key, tensor in adapter_tensors(model).items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    text = json.dumps(adapter_config(model, base_model, modules), indent=2, sort_keys=True, default=_plain)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    share_weights(folder, CONFIG_FILE)


def load_adapter(model: PeftModel, folder: Path) -> None:
    """Copy the tensors that `save_adapter` wrote into a model's adapter of the same modules and rank.

    PEFT's own loading renames keys by transformers' table for old checkpoints; for DeepSeek-OCR-2 (PEFT 0.21.2,
    transformers 5.17) it then finds none of the keys that it wrote itself, warns, and leaves the adapter unchanged.
    Raises `TrainingError` if keys or shapes differ from those of the model's adapter.
    """
    own = adapter_tensors(model)
    given = load_file(folder / WEIGHTS_FILE)
    if {key: tensor.shape for key, tensor in given.items()} != {key: tensor.shape for key, tensor in own.items()}:
        raise TrainingError(
            TrainingCode.CHECKPOINT_CORRUPT,
            f"{folder} holds an adapter of other modules or another rank",
            "use the options that it was trained with",
        )
    with torch.no_grad():
        for key, tensor in own.items():  # views of the live parameters
            tensor.copy_(given[key])


def adapter_config(model: PeftModel, base_model: str, modules: tuple[str, ...]) -> dict[str, Any]:
    """PEFT's configuration, without values that name this machine and with full module names instead of a pattern."""
    values = dict(model.peft_config[ADAPTER].to_dict())
    values.pop("auto_mapping", None)
    return values | {
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "target_modules": sorted(modules),
        "task_type": None,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(getattr(value, "value", value))
