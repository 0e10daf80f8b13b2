"""A model's twin in bfloat16, which reads canvases where a processor multiplies such numbers many times as fast.

Processors with AMX have tiles for that; others gain little, and attention of a single token is even slower there. Steps
of canvases alone attend to keys and values in bfloat16 as well: for 16 rows of 450 tokens 0.64 ms a layer instead of
2.6 (one core of a Xeon, torch 2.13.0). Their products stay float32. Used by the engine's single thread.
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
