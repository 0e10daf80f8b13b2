"""Tensors as int8 rows with float16 scales, for a checkpoint inside a repository.

Owns the arithmetic and the definition of a row. For storage only: loading converts the rows back to floats.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 127
SCALE_SUFFIX = "_scale"


def is_quantisable(key: str, tensor: Tensor) -> bool:
    """Whether a tensor is stored as int8: matrices are, except the gates, whose small errors change the routing."""
    return tensor.ndim >= 2 and not key.endswith("mlp.gate.weight")


def quantise_rows(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to 255 levels.

    Args:
        tensor: floats with two or more dimensions.

    Returns:
        int8 values of the same shape, and a float16 scale per row. No error exceeds half its row's scale.
    """
    rows = as_rows(tensor.float())
    steps = rows.abs().amax(dim=1) / LEVELS
    # Rounded up: by half a unit in the last place where float16 is normal, by half its smallest step below that,
    # so that the largest value of a row still fits into 127 levels.
    scale = (steps * (1 + 2**-11) + 2**-25).half()
    values = (rows / scale.float().unsqueeze(1)).round().clamp(-LEVELS, LEVELS)
    return values.to(torch.int8).view(tensor.shape), scale


def dequantise_rows(values: Tensor, scale: Tensor) -> Tensor:
    """Undo `quantise_rows`, in float32.

    Args:
        values: int8, as `quantise_rows` returns them.
        scale: float16, one for each row.

    Returns:
        float32 of the same shape as `values`.

    Raises:
        ValueError: Values are not int8, or there is not one scale per row.
    """
    rows = as_rows(values)
    if values.dtype != torch.int8 or scale.shape != (rows.shape[0],):
        raise ValueError(f"{values.dtype} rows {list(rows.shape)} do not go with scales {list(scale.shape)}")
    return (rows.float() * scale.float().unsqueeze(1)).view(values.shape)


def as_rows(tensor: Tensor) -> Tensor:
    """View a tensor as rows, one per index of its first dimension, or of its last but one if the first is 1."""
    return tensor.flatten(0, -2) if tensor.shape[0] == 1 else tensor.flatten(1)
