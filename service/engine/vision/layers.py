"""Layers of the vision encoders as the flat passes take them: weights by name, biases of their products summed.

A product adds to the residual stream itself; the biases it would add are constants, so they are summed beforehand and
enter where the stream is read, in the norms.

Shape letters: C channels, E = 3 * C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Affine:
    """A norm's weight and bias with its eps, and what the stream lacks where it reads it (float32)."""

    shift_C: Tensor | None
    weight_C: Tensor
    bias_C: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Layer:
    """A transformer layer's weights; biases of the two products that end in the stream are in the shifts."""

    before_attention: Affine
    qkv_weight_EC: Tensor
    qkv_bias_E: Tensor
    out_weight_CC: Tensor
    before_mlp: Affine
    up_weight: Tensor
    up_bias: Tensor
    down_weight: Tensor


def affine(norm: Any, shift_C: Tensor | None) -> Affine:
    """A norm that reads a stream which lacks the shift."""
    return Affine(shift_C=shift_C, weight_C=norm.weight, bias_C=norm.bias, eps=norm.eps)


def added(shift_C: Tensor | None, bias_C: Tensor) -> Tensor:
    """What a stream lacks after a product whose bias was left out."""
    return bias_C.float() if shift_C is None else shift_C + bias_C.float()


def through(weight: Tensor, shift_C: Tensor | None, bias: Tensor | None) -> Tensor:
    """What a linear layer makes of the stream's shift, with its own bias, in the weight's type."""
    total = torch.zeros(weight.shape[0], device=weight.device) if bias is None else bias.float()
    if shift_C is not None:
        total = total + weight.float() @ shift_C
    return total.to(weight.dtype)
