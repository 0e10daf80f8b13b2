"""Weights as 8-bit rows: whole numbers from -127 to 127, and a scale for each row, which is an output of a product.

`Int8Rows` replaces a tensor where weights may be either. A product multiplies activations by the levels, which the
activations' type represents exactly, and the sum by the row's scale. Stateless, safe in any thread.

Rows that a checkpoint already stores as 8 bits (`shared.deepseek_ocr.quantisation`) keep their levels and scales: both
formats map a row's largest value to the last level. Scales are float32, one per row.

Shape letters: O outputs, I inputs, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shared.deepseek_ocr.quantisation import LEVELS

_FEW_WEIGHTS = 1 << 23
"""Rounded at once: what lies between takes four bytes a weight, several times."""


@dataclass(frozen=True, slots=True)
class Int8Rows:
    """Weights `[..., O, I]`."""

    levels: Tensor
    """int8 `[..., O, I]`, contiguous."""
    scale: Tensor
    """float32 `[..., O]`, contiguous."""

    def __getitem__(self, index: int | slice) -> Int8Rows:
        """Some along the first dimension, as a tensor would give them."""
        return Int8Rows(self.levels[index], self.scale[index])

    def __len__(self) -> int:
        """Along the first dimension."""
        return len(self.levels)

    @property
    def shape(self) -> torch.Size:
        """Of the weights."""
        return self.levels.shape


Weight = Tensor | Int8Rows
"""In full, or as 8-bit rows."""


def nearest_levels(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to its levels.

    Args:
        weight_OI: Of any type; computed in float32.

    Returns:
        Whole numbers in float32, and a scale for each row; no weight is off by more than half its row's scale.
    """
    wide_OI = weight_OI.float()
    scale_O = wide_OI.abs().amax(dim=1) / LEVELS
    return (wide_OI / scale_O.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)).round_(), scale_O


def to_int8(weight: Tensor, device: torch.device) -> Int8Rows:
    """Round weights on the device where they are wanted.

    Args:
        weight: `[..., O, I]`, anywhere; goes to the device piece by piece, so that it never lies there as a whole.
        device: Of the result.

    Returns:
        Its rows.
    """
    rows_OI = weight.reshape(-1, weight.shape[-1])
    levels_OI = torch.empty(rows_OI.shape, dtype=torch.int8, device=device)
    scale_O = torch.empty(len(rows_OI), dtype=torch.float32, device=device)
    piece = max(1, _FEW_WEIGHTS // weight.shape[-1])
    for start in range(0, len(rows_OI), piece):
        levels, scale = nearest_levels(rows_OI[start : start + piece].to(device))
        levels_OI[start : start + piece] = levels
        scale_O[start : start + piece] = scale
    return Int8Rows(levels_OI.view(weight.shape), scale_O.view(weight.shape[:-1]))


def levels_of(weight: Weight) -> tuple[Tensor, Tensor | None]:
    """What a kernel multiplies by, and the scale of its sums; None: there is none."""
    return (weight.levels, weight.scale) if isinstance(weight, Int8Rows) else (weight, None)


def in_full(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The weights as a tensor, those that are rows in the given type, rounded once."""
    if not isinstance(weight, Int8Rows):
        return weight
    out = torch.empty(weight.shape, dtype=dtype, device=weight.levels.device)
    return torch.mul(weight.levels, weight.scale.unsqueeze(-1), out=out)


def one_after_another(first: Weight, second: Weight) -> Weight:
    """Joined along the first dimension; both are of one kind."""
    if isinstance(first, Int8Rows) and isinstance(second, Int8Rows):
        return Int8Rows(torch.cat((first.levels, second.levels)), torch.cat((first.scale, second.scale)))
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    return torch.cat((first, second))


def one_below_another(weight_EOI: Weight) -> Weight:
    """`[E, O, I]` as `[E * O, I]`, without a copy."""
    if isinstance(weight_EOI, Int8Rows):
        return Int8Rows(weight_EOI.levels.flatten(0, 1), weight_EOI.scale.flatten())
    return weight_EOI.flatten(0, 1)


def split_inputs(weight_OI: Weight, count: int) -> Weight:
    """`[O, count * I]` as `[count, O, I]`; parts of a row keep their row's scale."""
    if isinstance(weight_OI, Int8Rows):
        levels_EOI = weight_OI.levels.unflatten(1, (count, -1)).transpose(0, 1)
        return Int8Rows(levels_EOI.contiguous(), weight_OI.scale.expand(count, -1).contiguous())
    return weight_OI.unflatten(1, (count, -1)).transpose(0, 1)
