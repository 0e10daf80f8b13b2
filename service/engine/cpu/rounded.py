"""A model's twin in bfloat16, which reads canvases where a processor multiplies such numbers many times as fast.

Processors with AMX have tiles for that; others gain little. Used by the engine's single thread.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from service.engine.cpu.packed_linear import MAX_WEIGHTS, with_packed_layers
from service.engine.cpu.rounded_decoder import MAX_EXPERTS, RoundedDecoder
from shared.deepseek_ocr.protocol import OcrModel


def has_tiles() -> bool:
    """Whether this processor multiplies matrices of bfloat16 in tiles, and this torch says so."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16"))


@dataclass(frozen=True, slots=True)
class RoundedReader:
    """Both halves of a model in bfloat16."""

    encoder: Any
    """Has `encode_bands`; a model without layers to decode with."""
    decoder: RoundedDecoder


def rounded_reader(model: OcrModel, max_tokens: int) -> RoundedReader | None:
    """Copy a model in bfloat16.

    Args:
        model: In evaluation mode; stays as it is.
        max_tokens: Positions that may occur.

    Returns:
        The copy; None if the weights are not float32, not on a CPU, more than `MAX_WEIGHTS` or those of many experts.
    """
    if not isinstance(model, nn.Module) or model.decoder.config.n_routed_experts > MAX_EXPERTS:
        return None
    parameters = list(model.parameters())
    if sum(each.numel() for each in parameters) > MAX_WEIGHTS:
        return None
    if any(each.device.type != "cpu" or each.dtype != torch.float32 for each in parameters):
        return None
    encoder = copy.deepcopy(model, {id(model.decoder.layers): nn.ModuleList()})
    return RoundedReader(with_packed_layers(encoder.to(torch.bfloat16)), RoundedDecoder(model, max_tokens))
