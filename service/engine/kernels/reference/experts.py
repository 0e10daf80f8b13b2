"""Routing and mixtures of experts in plain torch, with and without adapters.

Shape letters: T tokens, H hidden width, E experts, K experts per token, I expert width, J = 2 * I; for adapters see
`service.engine.lora.bank`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from service.engine.kernels.int8_rows import Weight, in_full
from service.engine.kernels.reference.linear import gated, linear, lora_add, rms_norm
from service.engine.lora.bank import ExpertLowRank
from shared.deepseek_ocr.moe import grouped_experts


def route(
    x_TH: Tensor, gate_EH: Tensor, num_chosen: int, normalise: bool, scale: float, num_shared: int = 0
) -> tuple[Tensor, Tensor]:
    """Choose experts for each token: a softmax in float32, the best kept, ties to the lower index.

    Args:
        x_TH: Tokens.
        gate_EH: The router's weights, float32.
        num_chosen: Routed experts kept.
        normalise: Whether their weights are made to sum to 1 first.
        scale: Factor of the weights.
        num_shared: Experts that every token passes: numbers E, E + 1, ... with weight 1 follow the chosen ones.

    Returns:
        Weights `[T, K]` float32 and experts `[T, K]` int32, K = `num_chosen` + `num_shared`, best first.
    """
    probabilities_TE = F.linear(x_TH.float(), gate_EH).softmax(dim=-1)
    sorted_TE, order_TE = probabilities_TE.sort(dim=-1, descending=True, stable=True)
    weights_TK, experts_TK = sorted_TE[:, :num_chosen], order_TE[:, :num_chosen]
    if num_chosen > 1 and normalise:
        weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + 1e-20)
    ones = weights_TK.new_ones(x_TH.shape[0], num_shared)
    shared = torch.arange(num_shared, device=x_TH.device) + gate_EH.shape[0]
    experts_TK = torch.cat((experts_TK, shared.expand(x_TH.shape[0], -1)), dim=1)
    return torch.cat((weights_TK * scale, ones), dim=1), experts_TK.int()


def norm_route(
    x_TH: Tensor,
    norm_H: Tensor,
    eps: float,
    gate_EH: Tensor,
    num_chosen: int,
    normalise: bool,
    scale: float,
    num_shared: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise, then route.

    Args:
        x_TH: Tokens.
        norm_H: Scale of each feature.
        eps: Added to the mean square.
        gate_EH: The router's weights, float32.
        num_chosen: Routed experts kept.
        normalise: Whether their weights are made to sum to 1 first.
        scale: Factor of the weights.
        num_shared: Experts that every token passes.

    Returns:
        The normalised tokens `[T, H]`, then what `route` returns.
    """
    y_TH = rms_norm(x_TH, norm_H, eps)
    return y_TH, *route(y_TH, gate_EH, num_chosen, normalise, scale, num_shared)


def mixture(x_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_EJH: Weight, down_EHI: Weight) -> Tensor:
    """Sum each token's experts `down(silu(gate(x)) * up(x))`, weighted, in float32.

    Args:
        x_TH: Tokens.
        weights_TK: Of the chosen experts, float32.
        experts_TK: int32; no expert twice for one token.
        gate_up_EJH: Gate rows over up rows.
        down_EHI: Down projections.

    Returns:
        `[T, H]` in the tokens' dtype.
    """
    dtype = x_TH.dtype
    return grouped_experts(x_TH, weights_TK, experts_TK, in_full(gate_up_EJH, dtype), in_full(down_EHI, dtype))


def mixture_add(
    x_TH: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_EJH: Weight,
    down_EHI: Weight,
    residual_TH: Tensor,
) -> None:
    """`mixture`, added to the residual in place."""
    residual_TH += mixture(x_TH, weights_TK, experts_TK, gate_up_EJH, down_EHI)


def mixture_lora(
    x_TH: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_EJH: Weight,
    down_EHI: Weight,
    low: ExpertLowRank,
    slots_T: Tensor,
) -> Tensor:
    """`mixture` of experts that carry low-rank sums: a token's experts those of its adapter.

    Args:
        x_TH: Tokens.
        weights_TK: Of the chosen experts, float32.
        experts_TK: int32; no expert twice for one token.
        gate_up_EJH: Gate rows over up rows; no token chooses an expert beyond those that `low` has.
        down_EHI: Down projections.
        low: Of all slots and experts.
        slots_T: int32, each token's slot; below 0: none.

    Returns:
        `[T, H]` in the tokens' dtype.
    """
    inner, num_experts = down_EHI.shape[2], low.up_A_SEQH.shape[1]
    up_A, up_B, down_A, down_B = (tensor.flatten(0, 1) for tensor in low.tensors)
    out_TH = torch.zeros_like(x_TH, dtype=torch.float32)
    for expert in range(num_experts):
        token, choice = (experts_TK == expert).nonzero(as_tuple=True)
        kinds = torch.where(slots_T[token] >= 0, slots_T[token] * num_experts + expert, -1)
        joined = linear(x_TH[token], gate_up_EJH[expert])
        lora_add(x_TH[token], joined, up_A, up_B, kinds, inner)
        active = gated(joined, 1)
        result = linear(active, down_EHI[expert])
        lora_add(active, result, down_A, down_B, kinds, result.shape[1])
        out_TH.index_add_(0, token, result * weights_TK[token, choice, None])
    return out_TH.to(x_TH.dtype)


def mixture_lora_add(
    x_TH: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_EJH: Weight,
    down_EHI: Weight,
    low: ExpertLowRank,
    slots_T: Tensor,
    residual_TH: Tensor,
) -> None:
    """`mixture_lora`, added to the residual in place."""
    residual_TH += mixture_lora(x_TH, weights_TK, experts_TK, gate_up_EJH, down_EHI, low, slots_T)
