"""Layers of the vision encoders as the flat passes take them: weights by name, biases of their products summed.

A product adds to the residual stream itself; the biases it would add are constants, so they are summed beforehand and
enter where the stream is read, in the norms.

In FP8 are the products whose input a norm or an activation writes anyway, in 8 bits then; attention's own product would
need a pass over memory of its own for that.

Shape letters: T tokens, C channels, E = 3 * C, O output channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from service.engine.kernels.fp8_rows import Fp8Rows, fp8_weight

Weight = Tensor | Fp8Rows
"""In full, or in FP8."""


class Activation(StrEnum):
    """Of an MLP."""

    GELU = "gelu"
    QUICK_GELU = "quick_gelu"
    GATED = "gated"
    """Gates and ups in one matrix."""


@dataclass(frozen=True, slots=True)
class Affine:
    """A norm's weight and bias with its eps, and what the stream lacks where it reads it (float32).

    Without a bias it is a norm by the root of the mean square, which has no shift.
    """

    shift_C: Tensor | None
    weight_C: Tensor
    bias_C: Tensor | None
    eps: float


@dataclass(frozen=True, slots=True)
class Layer:
    """A transformer layer's weights; biases of the two products that end in the stream are in the shifts."""

    before_attention: Affine
    qkv_weight_EC: Weight
    qkv_bias_E: Tensor
    out_weight_CC: Tensor
    before_mlp: Affine
    up_weight: Weight
    up_bias: Tensor | None
    """None of gates and ups."""
    down_weight: Weight


class Stream:
    """The residual stream of an encoder.

    A product in FP8 cannot add to the stream; its result waits until the next norm reads the stream, and `tokens` adds
    what still waits.

    Args:
        x_TC: Contiguous; becomes the stream's own.
        kernels: As the encoders take it.
    """

    def __init__(self, x_TC: Tensor, kernels: ModuleType) -> None:
        self._x_TC = x_TC
        self._waiting_TC: Tensor | None = None
        self._kernels: Any = kernels

    def tokens(self) -> Tensor:
        """The stream with all that was added: `[T, C]`."""
        waiting_TC = self._take_waiting()
        return self._x_TC if waiting_TC is None else self._x_TC.add_(waiting_TC)

    def linear(self, norm: Affine, weight: Weight, bias_O: Tensor) -> Tensor:
        """The norm and a linear layer over it: `[T, O]`."""
        if isinstance(weight, Fp8Rows):
            return self._linear_fp8(self._normed_fp8(norm), weight, bias_O)
        return torch.addmm(bias_O, self._normed(norm), weight.t())

    def add_linear(self, y_TC: Tensor, weight_CC: Tensor) -> None:
        """Add a linear layer of something else, which lacks its bias."""
        self._x_TC.addmm_(y_TC, weight_CC.t())

    def add_mlp(self, layer: Layer, activation: Activation) -> None:
        """Add the MLP over its norm, without the last bias."""
        if isinstance(layer.up_weight, Fp8Rows):
            self._waiting_TC = self._mlp_fp8(layer, activation)
            return
        assert isinstance(layer.down_weight, Tensor)
        normed_TC = self._normed(layer.before_mlp)
        if activation is Activation.GATED:
            hidden = self._kernels.gated(normed_TC @ layer.up_weight.t(), 1)
        else:
            linear = getattr(self._kernels, f"linear_{activation}")
            hidden = linear(normed_TC, layer.up_weight, layer.up_bias)
        self._x_TC.addmm_(hidden, layer.down_weight.t())

    def _mlp_fp8(self, layer: Layer, activation: Activation) -> Tensor:
        assert isinstance(layer.up_weight, Fp8Rows)
        assert isinstance(layer.down_weight, Fp8Rows)
        wide_TO = self._linear_fp8(self._normed_fp8(layer.before_mlp), layer.up_weight, None)
        activate = getattr(self._kernels, f"{activation}_fp8")
        hidden = activate(wide_TO) if layer.up_bias is None else activate(wide_TO, layer.up_bias)
        del wide_TO
        return self._linear_fp8(hidden, layer.down_weight, None)

    def _linear_fp8(self, x: Fp8Rows, weight: Fp8Rows, bias_O: Tensor | None) -> Tensor:
        product_TO: Tensor = self._kernels.linear_fp8(x, weight, bias_O, self._x_TC.dtype)
        return product_TO

    def _normed(self, norm: Affine) -> Tensor:
        assert self._waiting_TC is None
        return normed(self._x_TC, norm, self._kernels)

    def _normed_fp8(self, norm: Affine) -> Fp8Rows:
        waiting_TC = self._take_waiting()
        rows: Fp8Rows
        if norm.bias_C is None:
            rows = self._kernels.rms_norm_fp8(self._x_TC, waiting_TC, norm.weight_C, norm.eps)
        else:
            rows = self._kernels.layer_norm_fp8(
                self._x_TC, waiting_TC, norm.shift_C, norm.weight_C, norm.bias_C, norm.eps
            )
        return rows

    def _take_waiting(self) -> Tensor | None:
        waiting_TC, self._waiting_TC = self._waiting_TC, None
        return waiting_TC


def normed(x_TC: Tensor, norm: Affine, kernels: Any) -> Tensor:
    """A norm of tokens: `[T, C]`."""
    out_TC: Tensor
    if norm.bias_C is None:
        out_TC = kernels.rms_norm(x_TC, norm.weight_C, norm.eps)
    else:
        out_TC = kernels.layer_norm(x_TC, norm.shift_C, norm.weight_C, norm.bias_C, norm.eps)
    return out_TC


def weight_of(weight_OC: Tensor, *, is_fp8: bool) -> Weight:
    """A product's weight in the form that the encoder takes."""
    return fp8_weight(weight_OC) if is_fp8 else weight_OC


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
