"""Norms, matrix products and adapters' low-rank sums in plain torch.

Shape letters: T tokens, H hidden width, O outputs; for adapters S their slots, P parts of a group, R rank, Q = P * R,
see `service.engine.lora.bank`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from service.engine.kernels.int8_rows import Weight, in_full


def rms_norm(x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """Normalise each token by its root mean square, in float32.

    Args:
        x_TH: Tokens.
        weight_H: Scale of each feature.
        eps: Added to the mean square.

    Returns:
        `[T, H]` in the tokens' dtype.
    """
    wide = x_TH.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return weight_H * normed.to(x_TH.dtype)


def add_rms_norm(x_TH: Tensor, residual_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """Add `x_TH` to the residual, in place, and normalise the sum.

    Args:
        x_TH: What a block gave.
        residual_TH: Changed to the sum, rounded to its dtype.
        weight_H: Scale of each feature.
        eps: Added to the mean square.

    Returns:
        `[T, H]`, the rounded sum normalised.
    """
    residual_TH += x_TH
    return rms_norm(residual_TH, weight_H, eps)


def linear(x_TH: Tensor, weight_OH: Weight) -> Tensor:
    """Multiply each token by a weight matrix; `[T, O]`."""
    return F.linear(x_TH, in_full(weight_OH, x_TH.dtype))


def norm_linear(x_TH: Tensor, norm_H: Tensor, eps: float, weight_OH: Weight) -> Tensor:
    """Normalise, then multiply; `[T, O]`."""
    return linear(rms_norm(x_TH, norm_H, eps), weight_OH)


def linear_add(x_TH: Tensor, weight_OH: Weight, residual_TO: Tensor) -> None:
    """Multiply, and add the result to the residual in place."""
    residual_TO += linear(x_TH, weight_OH)


def lora_add(x_TH: Tensor, out_TO: Tensor, A_SQH: Tensor, B_SOR: Tensor, slots_T: Tensor, part_width: int) -> None:
    """Add `B (A x)` of each token's adapter to what the base gave, in place.

    Args:
        x_TH: What the base's projections took.
        out_TO: What they gave. Output o belongs to part `o // part_width % P` and sees that part's R rows of A alone.
        A_SQH: Of all slots.
        B_SOR: Of all slots, the scaling multiplied in.
        slots_T: int32, each token's slot; below 0: nothing is added, and nothing written.
        part_width: Adjacent outputs that form one part.
    """
    rank, outputs = B_SOR.shape[2], B_SOR.shape[1]
    parts = A_SQH.shape[1] // rank
    for slot in slots_T.unique().tolist():
        if slot < 0:
            continue
        rows = (slots_T == slot).nonzero()[:, 0]
        low_TQ = F.linear(x_TH[rows], A_SQH[slot])
        if parts == 1:
            sums_TO = F.linear(low_TQ, B_SOR[slot])
        else:
            up_GPWR = B_SOR[slot].view(outputs // (parts * part_width), parts, part_width, rank)
            sums_TO = torch.einsum("tpr,gpwr->tgpw", low_TQ.view(-1, parts, rank), up_GPWR).flatten(1)
        out_TO.index_add_(0, rows, sums_TO)


def gated(joined_TO: Tensor, num_blocks: int) -> Tensor:
    """`silu(gate) * up`, in float32, of gates and ups that alternate in blocks.

    Args:
        joined_TO: Gates of the first block, its ups, gates of the second block, and so on.
        num_blocks: Blocks.

    Returns:
        `[T, O / 2]`, block after block.
    """
    gates, ups = joined_TO.float().unflatten(1, (num_blocks, 2, -1)).unbind(2)
    return (F.silu(gates) * ups).flatten(1).to(joined_TO.dtype)
