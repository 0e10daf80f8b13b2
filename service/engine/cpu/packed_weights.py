"""Matrices of the packed decoder: weights laid out so that a product with few rows reads as little as it can.

Owns the two layouts and the choice between them. A product of few rows is bound by reading its weights. Where they are
int8 rows with scales, as a checkpoint that ships in a repository has them, their levels are exact in float16, so they
are kept as such and the scale is multiplied in afterwards: half the bytes, and the same sums up to rounding in float32.
All other weights stay float32. Knows nothing of layers. Used by the engine's single thread.

Measured on two cores of an EPYC without AVX-512 (torch 2.13.0), weights not in the cache: 2048 x 320 takes one row
81 us as float16 (on one core; 215 us as float32 by `linear`, 130 us on two cores by `mm` with two columns) and eight
163 us (201 us); 320 x 320 takes one row 16 us (23 us).

Shape letters: B rows, I inputs, O outputs, P columns (B, at least two).
"""

from __future__ import annotations

import warnings
from typing import Protocol

import torch
from torch import Tensor

from service.engine.kernels.int8_rows import nearest_levels


class Matrix(Protocol):
    """Weights `[O, I]` as products with few rows want them."""

    def product(self, x_BI: Tensor) -> Tensor:
        """`x @ weights.T`, a new contiguous tensor `[B, O]`."""

    def add_to(self, residual_BO: Tensor, x_BI: Tensor) -> None:
        """The same, added to a residual in place."""


class FullMatrix:
    """Weights in float32.

    The activations' rows are `mm`'s columns: so MKL reads weights at full bandwidth from two columns on, and at half of
    it for one, hence a single row is computed twice.
    """

    def __init__(self, weight_OI: Tensor) -> None:
        self._weight_OI = weight_OI.detach().contiguous()

    def product(self, x_BI: Tensor) -> Tensor:
        """See `Matrix`."""
        rows = len(x_BI)
        x_PI = x_BI.contiguous() if rows > 1 else x_BI.expand(2, -1).contiguous()
        return torch.mm(self._weight_OI, x_PI.t())[:, :rows].t().contiguous()

    def add_to(self, residual_BO: Tensor, x_BI: Tensor) -> None:
        """See `Matrix`."""
        residual_BO.add_(self.product(x_BI))


class HalfWeights:
    """Weights in float16; sums in float32.

    Args:
        weight_OI: float32.

    Raises:
        AttributeError: This torch has no such product.
        RuntimeError: This torch, or this processor, has none.
    """

    def __init__(self, weight_OI: Tensor) -> None:
        self._multiply = torch.fbgemm_linear_fp16_weight_fp32_activation
        with warnings.catch_warnings():
            # Both functions say once in a process that they will leave torch one day; `pack` then does without.
            warnings.simplefilter("ignore", UserWarning)
            self._packed = torch.fbgemm_pack_gemm_matrix_fp16(weight_OI.contiguous())
            self._multiply(weight_OI[:1].contiguous(), self._packed, None)

    def product(self, x_BI: Tensor) -> Tensor:
        """`x @ weights.T`, `[B, O]`, of float32 rows."""
        return self._multiply(x_BI, self._packed, None)


class HalfMatrix:
    """Levels in float16 and a scale for each row; sums in float32.

    Args:
        levels_OI: Numbers that float16 holds exactly.
        scale_O: float32.

    Raises:
        AttributeError: As for `HalfWeights`.
        RuntimeError: As for `HalfWeights`.
    """

    def __init__(self, levels_OI: Tensor, scale_O: Tensor) -> None:
        self._scale_O = scale_O
        self._levels = HalfWeights(levels_OI)

    def product(self, x_BI: Tensor) -> Tensor:
        """See `Matrix`."""
        return self._levels.product(x_BI).mul_(self._scale_O)

    def add_to(self, residual_BO: Tensor, x_BI: Tensor) -> None:
        """See `Matrix`."""
        residual_BO.addcmul_(self._levels.product(x_BI), self._scale_O)


def pack(weight_OI: Tensor) -> Matrix:
    """Lay out weights, in the shorter way where nothing is lost by it."""
    weight_OI = weight_OI.detach()
    rows = find_levels(weight_OI)
    if rows:
        try:
            return HalfMatrix(*rows)
        except (AttributeError, RuntimeError):
            pass  # A processor without AVX2, or a torch without these functions.
    return FullMatrix(weight_OI)


def find_levels(weight_OI: Tensor) -> tuple[Tensor, Tensor] | None:
    """Undo `quantisation.dequantise_rows`.

    Args:
        weight_OI: float32.

    Returns:
        Whole numbers and a scale for each row whose products are the weights, bit for bit; None: there are none.
    """
    # A row's largest value is its last level, as `quantise_rows` chooses scales.
    levels_OI, scale_O = nearest_levels(weight_OI)
    return (levels_OI, scale_O) if torch.equal(levels_OI * scale_O.unsqueeze(1), weight_OI) else None


def in_panels(levels_OI: Tensor, panel: int, in_a_word: int) -> Tensor:
    """Lay out levels as `level_products.h` has them.

    Args:
        levels_OI: Whole numbers of 8 bits.
        panel: Outputs that are laid out together; divides their number.
        in_a_word: Inputs of 32 bits: four bytes, or two of 16 bits.

    Returns:
        Contiguous, int8 or int16.
    """
    outputs, inputs = levels_OI.shape
    levels_OI = levels_OI.to(torch.int16 if in_a_word == 2 else torch.int8)
    return levels_OI.view(outputs // panel, panel, inputs // in_a_word, in_a_word).transpose(1, 2).contiguous()
