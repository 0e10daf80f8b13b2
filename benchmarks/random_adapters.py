"""Adapters of random numbers, in every projection that the engine takes: noise that costs what sense would cost."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from service.engine.engine import TorchEngine
from service.engine.lora.files import AdapterFiles
from service.engine.lora.shapes import layer_shapes
from shared.contract.peft_config import parse_config
from shared.deepseek_ocr.configuration import TextConfig

STRENGTH = 1e-3
"""Of the up projections; small, so that activations stay those of the base."""


def adapter_names(count: int) -> list[str]:
    """What `load_random_adapters` calls them."""
    return [f"random-{index}@1" for index in range(count)]


def load_random_adapters(engine: TorchEngine, text: TextConfig, count: int, rank: int) -> None:
    """Fill an engine's slots.

    Args:
        engine: With as many slots, for this rank.
        text: The decoder's dimensions.
        count: Adapters.
        rank: Of each.
    """
    for seed, name in enumerate(adapter_names(count)):
        engine.load_adapter(name, random_adapter(text, rank, seed))


def random_adapter(text: TextConfig, rank: int, seed: int, strength: float = STRENGTH) -> AdapterFiles:
    """One adapter, as PEFT would write it.

    Args:
        text: The decoder's dimensions.
        rank: Of its matrices.
        seed: Of its numbers.
        strength: Of its up projections.

    Returns:
        Tensors and config.
    """
    noise = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for layer in range(text.num_hidden_layers):
        mlp = "mlp" if layer < text.first_k_dense_replace else "mlp.shared_experts"
        modules = {
            "qkv": [f"self_attn.{name}_proj" for name in "qkv"],
            "out": ["self_attn.o_proj"],
            "gate_up": [f"{mlp}.gate_proj", f"{mlp}.up_proj"],
            "down": [f"{mlp}.down_proj"],
        }
        for group, shape in layer_shapes(text, layer).items():
            for module in modules[group]:
                key = f"base_model.model.model.layers.{layer}.{module}"
                tensors[f"{key}.lora_A.weight"] = torch.randn(rank, shape.inputs, generator=noise)
                ups = torch.randn(shape.part_width, rank, generator=noise)
                tensors[f"{key}.lora_B.weight"] = ups * strength
    targets = sorted({name.split(".")[-3] for name in tensors})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets}
    return AdapterFiles(tensors, parse_config(json.dumps(config).encode()))
