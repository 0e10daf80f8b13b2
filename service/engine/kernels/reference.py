"""The engine's kernels in plain torch: what each function means, and how a CPU computes it.

Owns the truth that `kernels.fused` is tested against; both offer the same names and signatures. Beside the single
functions stand compositions (`norm_linear`, `linear_add`, `norm_route`, `mixture_add`, `decode_attention`,
`begin_step`) that a GPU computes in one go: where residuals are added by what produces them, a decode step's layer is
`norm_linear`, `decode_attention`, `linear_add`, `norm_route`, `mixture_add`. A dense MLP is a mixture of one expert.
`choose` stands in `choice.py`. Stateless; any thread.

Shape letters: T tokens, B rows (one token each), R sequences, H hidden width, O outputs, N heads, D head width,
E experts, K experts per token, I expert width, J = 2 * I, V vocabulary, S slots, P positions, X blocks of a row; for
adapters S their slots, P parts of a group, R rank, Q = P * R, see `service.engine.lora`.
Caches of one layer are `[blocks, N, block tokens, D]`; a cell is block * block tokens + offset.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from service.engine.gpu.state import AnswerState
from service.engine.kernels.choice import choose
from service.engine.lora import ExpertLowRank
from shared.deepseek_ocr.moe import grouped_experts

__all__ = [
    "add_rms_norm",
    "begin_step",
    "choose",
    "decode_attention",
    "gated",
    "linear",
    "linear_add",
    "lora_add",
    "mixture",
    "mixture_add",
    "mixture_lora",
    "mixture_lora_add",
    "norm_linear",
    "norm_route",
    "paged_attention",
    "prefill_attention",
    "rms_norm",
    "rotate_and_store",
    "route",
]


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


def linear(x_TH: Tensor, weight_OH: Tensor) -> Tensor:
    """Multiply each token by a weight matrix; `[T, O]`."""
    return F.linear(x_TH, weight_OH)


def norm_linear(x_TH: Tensor, norm_H: Tensor, eps: float, weight_OH: Tensor) -> Tensor:
    """Normalise, then multiply; `[T, O]`."""
    return linear(rms_norm(x_TH, norm_H, eps), weight_OH)


def linear_add(x_TH: Tensor, weight_OH: Tensor, residual_TO: Tensor) -> None:
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
        part_width: Outputs of a part that stand together.
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
    """`silu(gate) * up`, in float32, of gates and ups that stand block by block.

    Args:
        joined_TO: Gates of the first block, its ups, gates of the second block, and so on.
        num_blocks: Blocks.

    Returns:
        `[T, O / 2]`, block after block.
    """
    gates, ups = joined_TO.float().unflatten(1, (num_blocks, 2, -1)).unbind(2)
    return (F.silu(gates) * ups).flatten(1).to(joined_TO.dtype)


def rotate_and_store(
    qkv_T3ND: Tensor,
    cos_PD: Tensor,
    sin_PD: Tensor,
    positions_T: Tensor,
    cells_T: Tensor,
    keys: Tensor,
    values: Tensor,
) -> None:
    """Rotate queries and keys in place; store the rotated keys, and the values, in the cache.

    Args:
        qkv_T3ND: Queries, keys, values.
        cos_PD: Cosines of all positions, float32, both halves alike.
        sin_PD: Sines.
        positions_T: Of the tokens.
        cells_T: int64, where each token goes; below 0: nowhere.
        keys: One layer's cache.
        values: One layer's cache.
    """
    cos_T11D, sin_T11D = (table[positions_T][:, None, None] for table in (cos_PD, sin_PD))
    qk_T2ND = qkv_T3ND[:, :2]
    first, second = qk_T2ND.float().chunk(2, dim=-1)
    turned = torch.cat((first, second), dim=-1) * cos_T11D + torch.cat((-second, first), dim=-1) * sin_T11D
    qk_T2ND.copy_(turned)
    stored = cells_T >= 0
    block_T = torch.div(cells_T[stored], keys.shape[2], rounding_mode="floor")
    offset_T = cells_T[stored] % keys.shape[2]
    keys[block_T, :, offset_T] = qkv_T3ND[stored, 1]
    values[block_T, :, offset_T] = qkv_T3ND[stored, 2]


def paged_attention(
    q_BND: Tensor, keys: Tensor, values: Tensor, tables_BX: Tensor, lengths_B: Tensor, scale: float
) -> Tensor:
    """One query a row over the row's tokens in the cache, softmax in float32.

    Args:
        q_BND: Queries; strides are free but for the last.
        keys: One layer's cache.
        values: One layer's cache.
        tables_BX: int32, each row's blocks in order; those past its length may be anything.
        lengths_B: int32, tokens of each row, the newest included; 0 gives zeros.
        scale: Of the products.

    Returns:
        `[B, N, D]`, contiguous, in the queries' dtype.
    """
    tables_BX = tables_BX.clamp(0, keys.shape[0] - 1)
    keys_BNSD, values_BNSD = (cache[tables_BX].transpose(1, 2).flatten(2, 3).float() for cache in (keys, values))
    scores_BNS = torch.einsum("bnd,bnsd->bns", q_BND.float(), keys_BNSD) * scale
    seen_BS = torch.arange(scores_BNS.shape[-1], device=q_BND.device) < lengths_B[:, None]
    weights_BNS = scores_BNS.masked_fill(~seen_BS[:, None], float("-inf")).softmax(dim=-1).nan_to_num(0.0)
    # Cells past the length may hold anything, even what is no number, and 0 times that is no number either.
    values_BNSD = values_BNSD.masked_fill(~seen_BS[:, None, :, None], 0.0)
    return torch.einsum("bns,bnsd->bnd", weights_BNS, values_BNSD).to(q_BND.dtype)


def decode_attention(
    qkv_B3ND: Tensor,
    cos_PD: Tensor,
    sin_PD: Tensor,
    positions_B: Tensor,
    cells_B: Tensor,
    keys: Tensor,
    values: Tensor,
    tables_BX: Tensor,
    lengths_B: Tensor,
    scale: float,
) -> Tensor:
    """`rotate_and_store` and `paged_attention` of one new token a row.

    Args:
        qkv_B3ND: Queries, keys, values; whether it is changed is left open.
        cos_PD: Cosines of all positions, float32, both halves alike.
        sin_PD: Sines.
        positions_B: Of the tokens.
        cells_B: int64, the cell that the row's table gives for its last token, or below 0: nothing is stored, and the
            row's result means nothing.
        keys: One layer's cache.
        values: One layer's cache.
        tables_BX: int32, each row's blocks in order.
        lengths_B: int32, tokens of each row, the new one included; 0 gives zeros.
        scale: Of the products.

    Returns:
        `[B, N, D]`.
    """
    rotate_and_store(qkv_B3ND, cos_PD, sin_PD, positions_B, cells_B, keys, values)
    return paged_attention(qkv_B3ND[:, 0], keys, values, tables_BX, lengths_B, scale)


def prefill_attention(
    q_TND: Tensor, k_TND: Tensor, v_TND: Tensor, starts_R1: Tensor, max_length: int, scale: float
) -> Tensor:
    """Causal attention within each of several sequences laid end to end.

    Args:
        q_TND: Queries; strides are free but for the last.
        k_TND: Keys.
        v_TND: Values.
        starts_R1: int32 `[R + 1]`, where each sequence begins, and where the last one ends.
        max_length: Tokens of the longest sequence.
        scale: Of the products.

    Returns:
        `[T, N, D]`, contiguous.
    """
    out_TND = torch.empty(q_TND.shape, dtype=q_TND.dtype, device=q_TND.device)
    starts = starts_R1.tolist()
    for start, end in itertools.pairwise(starts):
        assert end - start <= max_length, "max_length is too small"
        q, k, v = (tensor[start:end].transpose(0, 1).unsqueeze(0) for tensor in (q_TND, k_TND, v_TND))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        out_TND[start:end] = seen[0].transpose(0, 1)
    return out_TND


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


def mixture(x_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_EJH: Tensor, down_EHI: Tensor) -> Tensor:
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
    return grouped_experts(x_TH, weights_TK, experts_TK, gate_up_EJH, down_EHI)


def mixture_add(
    x_TH: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_EJH: Tensor,
    down_EHI: Tensor,
    residual_TH: Tensor,
) -> None:
    """`mixture`, added to the residual in place."""
    residual_TH += mixture(x_TH, weights_TK, experts_TK, gate_up_EJH, down_EHI)


def mixture_lora(
    x_TH: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_EJH: Tensor,
    down_EHI: Tensor,
    low: ExpertLowRank,
    slots_T: Tensor,
) -> Tensor:
    """`mixture` of experts that carry low-rank sums: a token's experts those of its adapter.

    Args:
        x_TH: Tokens.
        weights_TK: Of the chosen experts, float32.
        experts_TK: int32; no expert twice for one token.
        gate_up_EJH: Gate rows over up rows; experts beyond those that `low` has are chosen by nobody.
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
        joined = F.linear(x_TH[token], gate_up_EJH[expert])
        lora_add(x_TH[token], joined, up_A, up_B, kinds, inner)
        active = gated(joined, 1)
        result = F.linear(active, down_EHI[expert])
        lora_add(active, result, down_A, down_B, kinds, result.shape[1])
        out_TH.index_add_(0, token, result * weights_TK[token, choice, None])
    return out_TH.to(x_TH.dtype)


def mixture_lora_add(
    x_TH: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_EJH: Tensor,
    down_EHI: Tensor,
    low: ExpertLowRank,
    slots_T: Tensor,
    residual_TH: Tensor,
) -> None:
    """`mixture_lora`, added to the residual in place."""
    residual_TH += mixture_lora(x_TH, weights_TK, experts_TK, gate_up_EJH, down_EHI, low, slots_T)


def begin_step(
    slots_B: Tensor, state: AnswerState, embeddings_VH: Tensor, tables_SX: Tensor, block_tokens: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What a decode step reads of the state: the newest tokens' embeddings and where they belong.

    Args:
        slots_B: int64.
        state: Of the slots.
        embeddings_VH: Of the vocabulary.
        tables_SX: int32, each slot's blocks.
        block_tokens: Tokens of a block.

    Returns:
        Embeddings `[B, H]`, positions `[B]` int32, lengths `[B]` int32 (position + 1; 0 where a slot is done), cells
        `[B]` int64 (-1 where a slot is done), tables `[B, X]` int32.
    """
    positions_B, done_B, tables_BX = state.position_S[slots_B], state.done_S[slots_B], tables_SX[slots_B]
    block_B = tables_BX.gather(1, (positions_B // block_tokens).long().unsqueeze(1).clamp(max=tables_BX.shape[1] - 1))
    cells_B = block_B[:, 0].long() * block_tokens + positions_B % block_tokens
    lengths_B = torch.where(done_B, 0, positions_B + 1).int()
    return embeddings_VH[state.token_S[slots_B]], positions_B, lengths_B, cells_B.masked_fill(done_B, -1), tables_BX
