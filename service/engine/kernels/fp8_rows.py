"""Matrices as rows of 8-bit floats (e4m3) with a float32 scale for each row.

Both sides of a product come so: weights with a scale for each output, made once, and activations with one for each
token, made by the kernel that writes them. `linear_fp8` of a set of kernels multiplies them. Stateless, safe in any
thread.

Shape letters: O outputs, C channels (inner dimension).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_HIGHEST = 448.0
"""The largest number of the type."""
FP8_LEAST_ROW = 1e-12
"""A row whose values are all smaller is scaled as if one of them were this."""
_MULTIPLE = 16
"""Tensor cores read so many 8-bit numbers at once, so both dimensions of a matrix must be multiples."""


@dataclass(frozen=True, slots=True)
class Fp8Rows:
    """A matrix `[R, C]`: `values * scale` of each row."""

    values: Tensor
    """float8_e4m3fn `[R, C]`, contiguous."""
    scale: Tensor
    """float32 `[R]`, contiguous."""

    def in_full(self) -> Tensor:
        """The matrix in float32."""
        return self.values.float() * self.scale.unsqueeze(1)


def to_fp8(matrix_RC: Tensor) -> Fp8Rows:
    """Round each row to 8 bits so that its largest value becomes the largest number.

    Args:
        matrix_RC: Of any type; computed in float32.

    Returns:
        Its rows, on the same device.
    """
    wide_RC = matrix_RC.float()
    scale_R = wide_RC.abs().amax(dim=1).clamp_min(FP8_LEAST_ROW) / FP8_HIGHEST
    return Fp8Rows((wide_RC / scale_R.unsqueeze(1)).to(FP8).contiguous(), scale_R)


def fp8_weight(weight_OC: Tensor) -> Tensor | Fp8Rows:
    """A weight as rows, or as it is where its dimensions do not suit products in FP8."""
    return weight_OC if any(size % _MULTIPLE for size in weight_OC.shape) else to_fp8(weight_OC)
