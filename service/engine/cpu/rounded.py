"""A model's twin in bfloat16, which reads canvases where a processor multiplies such numbers many times as fast.

Processors with AMX have tiles for that; others gain little. Steps of one token stay float32: they are bound by reading
keys and values, which attention to a single token reads more slowly in bfloat16. Used by the engine's single thread.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from service.engine.cpu.packed_linear import MAX_WEIGHTS, with_packed_layers
from shared.deepseek_ocr.protocol import OcrModel


def has_tiles() -> bool:
    """Whether this processor multiplies matrices of bfloat16 in tiles, and this torch says so."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16"))


def rounded_twin(model: OcrModel) -> OcrModel | None:
    """Copy a model in bfloat16.

    Args:
        model: In evaluation mode; stays as it is.

    Returns:
        The copy, with packed layers; None if the weights are not float32, not on a CPU or more than `MAX_WEIGHTS`.
    """
    if not isinstance(model, nn.Module):
        return None
    parameters = list(model.parameters())
    if sum(each.numel() for each in parameters) > MAX_WEIGHTS:
        return None
    if any(each.device.type != "cpu" or each.dtype != torch.float32 for each in parameters):
        return None
    return with_packed_layers(copy.deepcopy(model).to(torch.bfloat16))
