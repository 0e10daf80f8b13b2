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

from service.engine.lora.files import AdapterFiles
from shared.contract.peft_config import parse_config
from shared.contract.volume import CONFIG_FILE, WEIGHTS_FILE
from shared.deepseek_ocr.moe import MixtureOfExperts
from shared.deepseek_ocr.registry import kind_of
from tests.support.adapters import peft_config

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


def adapted_modules(model: Any, targets: Collection[str] = ALL) -> dict[str, torch.nn.Linear]:
    """Linear modules of the decoder that an adapter may have, by name."""
    prefix = kind_of(model).decoder
    return {
        name: module
        for name, module in model.named_modules()
        if name.startswith(prefix) and isinstance(module, torch.nn.Linear) and name.split(".")[-1] in targets
    }


def random_adapter(
    model: Any,
    seed: int,
    *,
    rank: int = 4,
    targets: Collection[str] = ALL,
    strength: float = 0.5,
    experts: str = "",
    **config: object,
) -> AdapterFiles:
    """A LoRA that changes what is read.

    Args:
        model: The base.
        seed: Of its numbers.
        rank: Of its matrices.
        targets: Ends of the modules' names.
        strength: Size of its sum beside the base's product.
        experts: How routed experts are written, if they are changed: `stacked`, `gate_up` or `down` alone of that form,
            or `each`.
        **config: Changes of the config.

    Returns:
        Tensors and config.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, module in adapted_modules(model, targets).items():
        outputs, inputs = module.weight.shape
        size = strength * float(module.weight.detach().std()) / 2 / math.sqrt(rank)
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * size
    if experts:
        for name, weight in _expert_weights(model, experts).items():
            outputs, inputs = weight.shape[-2:]
            many = len(weight) if weight.ndim == 3 else 1
            size = strength * float(weight.detach().std()) / 2 / math.sqrt(rank)
            a, b = (
                torch.randn(many * rank, inputs, generator=generator),
                torch.randn(outputs, many * rank, generator=generator),
            )
            tensors[f"base_model.model.{name}.lora_A.weight"] = a
            tensors[f"base_model.model.{name}.lora_B.weight"] = b * size
    values = peft_config(rank, **({"lora_alpha": 2 * rank, "target_modules": sorted(targets)} | config))
    return AdapterFiles(tensors, parse_config(json.dumps(values).encode()))


def _expert_weights(model: Any, form: str) -> dict[str, Tensor]:
    """Weights of routed experts, views, by the names that PEFT gives what it adds to them."""
    found: dict[str, Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        name = f"model.layers.{index}.mlp.experts"
        if not isinstance(layer.mlp, MixtureOfExperts):
            continue
        gate_up, down = layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj
        if form == "stacked":
            found |= {f"{name}.base_layer": gate_up, name: down}
        elif form == "each":
            for expert, (joined, single) in enumerate(zip(gate_up, down, strict=True)):
                gate, up = joined.chunk(2)
                parts = {"gate_proj": gate, "up_proj": up, "down_proj": single}
                found |= {f"{name}.{expert}.{part}": weight for part, weight in parts.items()}
        else:
            found[name] = {"gate_up": gate_up, "down": down}[form]
    return found


def merged(model: Any, files: AdapterFiles) -> Any:
    """A copy of the model with the adapter added to its weights."""
    result = copy.deepcopy(model)
    values = files.config.values
    rank = values["r"]
    scaling = values["lora_alpha"] / (math.sqrt(rank) if values["use_rslora"] else rank)
    modules = {f"base_model.model.{name}": module.weight for name, module in adapted_modules(result).items()}
    with torch.no_grad():
        for form in ("down", "gate_up", "stacked", "each"):
            weights = {f"base_model.model.{name}": weight for name, weight in _expert_weights(result, form).items()}
            if all(f"{name}.lora_A.weight" in files.tensors for name in weights) and _fits(files, weights):
                modules |= weights
        for key, down in files.tensors.items():
            if not key.endswith(".lora_A.weight"):
                continue
            name = key.removesuffix(".lora_A.weight")
            up, weight = files.tensors[f"{name}.lora_B.weight"], modules[name]
            if weight.ndim == 3:
                # PEFT puts the experts first among A's rows, and last among B's columns.
                delta = torch.einsum("ore,eri->eoi", up.unflatten(1, (rank, -1)), down.unflatten(0, (-1, rank)))
            else:
                delta = up @ down
            weight += scaling * delta
    return result


def write_files(folder: Path, files: AdapterFiles) -> Path:
    """A PEFT folder with these tensors and this config."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in files.tensors.items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(files.config.values), encoding="utf-8")
    return folder


def _fits(files: AdapterFiles, weights: dict[str, Tensor]) -> bool:
    """Whether the form is the one that was written: names alone do not tell gates from downs."""
    return all(
        files.tensors[f"{name}.lora_B.weight"].shape[0] == weight.shape[-2]
        and files.tensors[f"{name}.lora_A.weight"].shape[1] == weight.shape[-1]
        for name, weight in weights.items()
    )
