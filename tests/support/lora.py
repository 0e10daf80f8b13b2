"""Adapters as PEFT writes them for a model of this family, and the model with one merged in."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from service.engine.lora import AdapterFiles

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


def adapted_modules(model: Any, targets: Collection[str] = ALL) -> dict[str, torch.nn.Linear]:
    """Linear modules of the decoder that an adapter may have, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.startswith("model.layers.") and isinstance(module, torch.nn.Linear) and name.split(".")[-1] in targets
    }


def random_adapter(
    model: Any,
    seed: int,
    *,
    rank: int = 4,
    targets: Collection[str] = ALL,
    strength: float = 0.5,
    **config: object,
) -> AdapterFiles:
    """A LoRA that changes what is read.

    Args:
        model: The base.
        seed: Of its numbers.
        rank: Of its matrices.
        targets: Ends of the modules' names.
        strength: Size of its sum beside the base's product.
        **config: Changes of the config.

    Returns:
        Tensors and config.
    """
    generator = torch.Generator().manual_seed(seed)
    alpha = 2 * rank
    tensors: dict[str, Tensor] = {}
    for name, module in adapted_modules(model, targets).items():
        outputs, inputs = module.weight.shape
        size = strength * float(module.weight.detach().std()) / 2 / math.sqrt(rank)
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * size
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "target_modules": sorted(targets)}
    return AdapterFiles(tensors, values | config)


def merged(model: Any, files: AdapterFiles) -> Any:
    """A copy of the model with the adapter added to its weights."""
    result = copy.deepcopy(model)
    rank = files.config["r"]
    scaling = files.config["lora_alpha"] / (math.sqrt(rank) if files.config.get("use_rslora") else rank)
    modules = adapted_modules(result)
    with torch.no_grad():
        for key, down in files.tensors.items():
            if key.endswith(".lora_A.weight"):
                name = key.removesuffix(".lora_A.weight")
                up = files.tensors[f"{name}.lora_B.weight"]
                modules[name.removeprefix("base_model.model.")].weight += scaling * up @ down
    return result


def write_files(folder: Path, files: AdapterFiles) -> Path:
    """A PEFT folder with these tensors and this config."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in files.tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(dict(files.config)), encoding="utf-8")
    return folder
