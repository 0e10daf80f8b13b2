"""Sets of options by goal. A preset for a GPU is refused without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from trainer.training.errors import TrainingCode, TrainingError
from trainer.training.options import ATTENTION, MLP


@dataclass(frozen=True, slots=True)
class Preset:
    """Values for a goal."""

    goal: str
    needs_gpu: bool
    values: Mapping[str, Any]


PRESETS: Final[Mapping[str, Preset]] = {
    "smoke": Preset(
        "minutes on a CPU with nano: shows that everything works",
        needs_gpu=False,
        values={
            "batch_size": 8,
            "learning_rate": 4e-3,
            "lora_rank": 16,
            "lora_alpha": 32,
            "target_modules": (*ATTENTION, *MLP),
            "max_steps": 60,
            "eval_steps": 30,
            "max_eval_samples": 8,
            "logging_steps": 5,
            "early_stopping_patience": None,
        },
    ),
    "quality": Preset(
        "the lowest error rate on a card of 24 GB or more",
        needs_gpu=True,
        values={
            "batch_size": 8,
            "gradient_accumulation_steps": 2,
            "learning_rate": 2e-4,
            "lora_rank": 32,
            "lora_alpha": 64,
            "target_modules": (*ATTENTION, *MLP),
            "num_epochs": 5.0,
            "max_eval_samples": 256,
            "gradient_checkpointing": True,
        },
    ),
    "low-vram": Preset(
        "a card of 12 to 16 GB: 4-bit base, one sample at a time",
        needs_gpu=True,
        values={
            "batch_size": 1,
            "gradient_accumulation_steps": 16,
            "learning_rate": 2e-4,
            "lora_rank": 16,
            "lora_alpha": 32,
            "target_modules": ATTENTION,
            "use_qlora": True,
            "gradient_checkpointing": True,
            "max_length": 3072,
            "max_eval_samples": 64,
        },
    ),
    "long-context": Preset(
        "long answers or documents of many pages: up to the model's 8192 tokens",
        needs_gpu=True,
        values={
            "batch_size": 1,
            "gradient_accumulation_steps": 16,
            "learning_rate": 1e-4,
            "lora_rank": 16,
            "lora_alpha": 32,
            "target_modules": ATTENTION,
            "gradient_checkpointing": True,
            "max_length": 8192,
            "max_eval_samples": 64,
        },
    ),
}


def preset_values(name: str, *, has_gpu: bool) -> Mapping[str, Any]:
    """Values of a preset by option; raises `TrainingError` if there is no such preset, or if it needs a GPU."""
    preset = PRESETS.get(name)
    if preset is None:
        raise TrainingError(
            TrainingCode.OPTION_UNKNOWN, f"there is no preset {name!r}", f"known are {', '.join(PRESETS)}"
        )
    if preset.needs_gpu and not has_gpu:
        raise TrainingError(
            TrainingCode.GPU_MISSING,
            f"preset {name} ({preset.goal}) is for a CUDA device, and there is none",
            "run it on a machine with a GPU (in a container: with --gpus all), or take --preset smoke with nano here",
        )
    return preset.values
