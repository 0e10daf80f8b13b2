"""Rotary positions, cache writes and attention in plain torch.

Shape letters: T tokens, B rows (one token each), R sequences, N heads, D head width, P positions, X blocks of a row.
Caches of one layer are `[blocks, N, block tokens, D]`; a cell is block * block tokens + offset.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from service.engine.answer_ring import AnswerRing


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
        q_BND: Queries; any strides, contiguous in the last dimension.
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
    # Cells past the length may hold NaN, and 0 * NaN is NaN.
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
    ring: AnswerRing | None = None,
    prompts_B: Tensor | None = None,
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
        lengths_B: int32, tokens that each row's new one sees, itself included; 0 gives zeros.
        scale: Of the products.
        ring: Where the answer's tokens go round; the new one then sees the prompt and the newest of the answer, as far
            as its length goes. None: nowhere.
        prompts_B: int32, tokens of each row's prompt; with a ring only.

    Returns:
        `[B, N, D]`.
    """
    rotate_and_store(qkv_B3ND, cos_PD, sin_PD, positions_B, cells_B, keys, values)
    if ring is None or prompts_B is None:
        return paged_attention(qkv_B3ND[:, 0], keys, values, tables_BX, lengths_B, scale)
    seen_BS = torch.arange(int(lengths_B.max()), device=keys.device).expand(len(lengths_B), -1)
    # Answer tokens before the newest that are seen are skipped.
    newest_BS = seen_BS + (positions_B + 1 - lengths_B - prompts_B)[:, None]
    cells_BS = torch.where(seen_BS < prompts_B[:, None], seen_BS, prompts_B[:, None] + newest_BS % ring.cells)
    block, last = keys.shape[2], tables_BX.shape[1] - 1
    blocks_BS = tables_BX.gather(1, (cells_BS // block).clamp(0, last).long()).clamp(0, len(keys) - 1).long()
    # Laid out again, one token a block, in the order in which they are seen.
    keys, values = (cache[blocks_BS, :, cells_BS % block].flatten(0, 1)[:, :, None] for cache in (keys, values))
    tables_BS = torch.arange(seen_BS.numel(), device=keys.device).view(seen_BS.shape)
    return paged_attention(qkv_B3ND[:, 0], keys, values, tables_BS, lengths_B, scale)


def prefill_attention(
    q_TND: Tensor, k_TND: Tensor, v_TND: Tensor, starts_R1: Tensor, max_length: int, scale: float
) -> Tensor:
    """Causal attention within each of several sequences laid end to end.

    Args:
        q_TND: Queries; any strides, contiguous in the last dimension.
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
