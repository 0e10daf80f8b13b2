"""Attention with decomposed relative positions, computed by plain scaled dot-product attention.

SAM adds to each score q.k / sqrt(D) a bias q.Rh[row] + q.Rw[column]. Stored in full, that bias takes N * L * L numbers
a view: at 1024 px (L = 4096, 12 heads) 403 MB in bf16, 6.4 GB for 16 views. Instead the bias is made part of the dot
product: each query is widened by its H + W biases, each key by a one-hot of its row and one of its column. So fused
kernels, which never store the scores, compute it.

In float32 a CPU would take longer to multiply the widened queries and keys in full. So it stores the scores, a few rows
of one head at a time, which fit into its cache; of windows, which are small, it stores the bias alone, in bfloat16 too.

Memory of 16 views of 1024 px in bf16, published size (width 768): 65,536 tokens make 0.09 GiB an activation, 0.28 for
qkv, 0.28 each for the widened q, k, v (12 heads of 64 + 64 + 64) and for the output, 0.38 for the MLP's hidden layer;
counting all copies that exist at once, a layer needs about 2 GiB, and inference keeps nothing between layers.

Shape letters: V views or windows, N heads, L = H * W positions, D head width, S side of a grid, K key rows or columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

HEAD_MULTIPLE = 8
"""Fused kernels need head widths that are multiples of 8."""
MIN_HEADWISE = 257
"""Number of positions from which a CPU works head by head; below are windows, which are many and small."""
HEADWISE_ROWS = 160
"""Queries whose scores a CPU stores at once: 1 MB for the 1,600 positions of nano's views. This makes encoding a view
1.13 times as fast on two cores of an EPYC (torch 2.13.0); 80, 320 and 400 were within the noise of 160."""


def relative_table(rel_pos: Tensor, size: int) -> Tensor:
    """Gather the relative position embedding of each pair of rows (or columns).

    Args:
        rel_pos: `[2 * stored size - 1, D]`, interpolated if the stored size differs.
        size: rows or columns of the grid.

    Returns:
        `[S, S, D]`, first query, then key.

    Source:
        `get_rel_pos` of segment-anything: linear interpolation over distances, in float32.
    """
    distances = 2 * size - 1
    if rel_pos.shape[0] != distances:
        resized = F.interpolate(rel_pos.float().t().unsqueeze(0), size=distances, mode="linear")
        rel_pos = resized[0].t().to(rel_pos.dtype)
    index = torch.arange(size, device=rel_pos.device)
    return rel_pos[index[:, None] - index[None, :] + (size - 1)]


def near_distances(rel_pos: Tensor, size: int) -> Tensor:
    """Embeddings of the distances in a band of so many rows (or columns): `[2 * size - 1, D]`."""
    first = rel_pos.shape[0] // 2 - (size - 1)
    return rel_pos[first : first + 2 * size - 1]


def relative_attention(q_VNLD: Tensor, k_VNLD: Tensor, v_VNLD: Tensor, rows_HKD: Tensor, columns_WKD: Tensor) -> Tensor:
    """Attend among all positions of each grid, biased by relative rows and columns.

    Args:
        q_VNLD: queries, positions in reading order.
        k_VNLD: keys, in the same order.
        v_VNLD: values, in the same order.
        rows_HKD: `relative_table` of the rows.
        columns_WKD: `relative_table` of the columns.

    Returns:
        `[V, N, L, D]`.
    """
    height, width, head_dim = rows_HKD.shape[0], columns_WKD.shape[0], q_VNLD.shape[-1]
    scale = head_dim**-0.5
    if q_VNLD.device.type == "cpu" and not torch.is_grad_enabled():
        if q_VNLD.shape[2] < MIN_HEADWISE:
            return _attend_with_bias(q_VNLD, k_VNLD, v_VNLD, rows_HKD, columns_WKD)
        if q_VNLD.dtype != torch.bfloat16:
            return _attend_by_heads(q_VNLD, k_VNLD, v_VNLD, rows_HKD, columns_WKD)
    q_VNHWD = q_VNLD.unflatten(2, (height, width))
    # The kernel scales every score including the bias, so the tables are divided by the scale first.
    bias_rows = torch.einsum("vnhwd,hkd->vnhwk", q_VNHWD, rows_HKD / scale).flatten(2, 3)
    bias_columns = torch.einsum("vnhwd,wkd->vnhwk", q_VNHWD, columns_WKD / scale).flatten(2, 3)
    extra = height + width
    padding = -(head_dim + extra) % HEAD_MULTIPLE
    one_hot_LK = _one_hot_positions(height, width, padding, k_VNLD)
    q = torch.cat((q_VNLD, bias_rows, bias_columns, q_VNLD.new_zeros((*q_VNLD.shape[:3], padding))), dim=-1)
    k = torch.cat((k_VNLD, one_hot_LK.expand(*k_VNLD.shape[:2], -1, -1)), dim=-1)
    # Flash kernels take one head width for all three; other kernels would store the scores.
    v = F.pad(v_VNLD, (0, extra + padding))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[..., :head_dim]


def _attend_with_bias(q_VNLD: Tensor, k_VNLD: Tensor, v_VNLD: Tensor, rows_HKD: Tensor, columns_WKD: Tensor) -> Tensor:
    """`relative_attention` of small grids on a CPU, without gradients.

    16 windows of 10 x 10 positions take 4.2 ms instead of 8.5 on one core of an EPYC (torch 2.13.0).
    """
    q_VNHWD = q_VNLD.unflatten(2, (rows_HKD.shape[0], columns_WKD.shape[0]))
    bias_rows = torch.einsum("vnhwd,hkd->vnhwk", q_VNHWD, rows_HKD).flatten(2, 3)
    bias_columns = torch.einsum("vnhwd,wkd->vnhwk", q_VNHWD, columns_WKD).flatten(2, 3)
    if q_VNLD.dtype == torch.bfloat16:
        # Faster than a sum that broadcasts over so few columns; encoding takes 0.8 of the time with AMX.
        one_hot_LK = _one_hot_positions(rows_HKD.shape[0], columns_WKD.shape[0], 0, q_VNLD)
        bias_VNLL = torch.cat((bias_rows, bias_columns), dim=-1) @ one_hot_LK.t()
    else:
        bias_VNLL = (bias_rows.unsqueeze(-1) + bias_columns.unsqueeze(-2)).flatten(3)
    return F.scaled_dot_product_attention(q_VNLD, k_VNLD, v_VNLD, attn_mask=bias_VNLL)


def _attend_by_heads(q_VNLD: Tensor, k_VNLD: Tensor, v_VNLD: Tensor, rows_HKD: Tensor, columns_WKD: Tensor) -> Tensor:
    """`relative_attention` on a CPU, without gradients."""
    height, width, head_dim = rows_HKD.shape[0], columns_WKD.shape[0], q_VNLD.shape[-1]
    q_VNHWD = q_VNLD.unflatten(2, (height, width))
    bias_rows = torch.einsum("vnhwd,hkd->vnhwk", q_VNHWD, rows_HKD).flatten(0, 1).flatten(1, 2)
    bias_columns = torch.einsum("vnhwd,wkd->vnhwk", q_VNHWD, columns_WKD).flatten(0, 1).flatten(1, 2)
    out_VNLD = torch.empty_like(q_VNLD, memory_format=torch.contiguous_format)
    heads = zip(*(x.flatten(0, 1) for x in (q_VNLD, k_VNLD, v_VNLD)), bias_rows, bias_columns, strict=True)
    for out_LD, (q_LD, k_LD, v_LD, by_row_LK, by_column_LK) in zip(out_VNLD.flatten(0, 1), heads, strict=True):
        k_DL, dense_v_LD = k_LD.contiguous().t(), v_LD.contiguous()
        for first in range(0, height * width, HEADWISE_ROWS):
            some = slice(first, first + HEADWISE_ROWS)
            scores = (by_row_LK[some].unsqueeze(2) + by_column_LK[some].unsqueeze(1)).flatten(1)
            scores.addmm_(q_LD[some], k_DL, alpha=head_dim**-0.5)
            torch.mm(scores.softmax(dim=-1), dense_v_LD, out=out_LD[some])
    return out_VNLD


def _one_hot_positions(height: int, width: int, padding: int, like: Tensor) -> Tensor:
    """For each position a one-hot of its row and one of its column: `[L, height + width + padding]`."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device).repeat_interleave(width, dim=0)
    columns = torch.eye(width, dtype=like.dtype, device=like.device).repeat(height, 1)
    return F.pad(torch.cat((rows, columns), dim=-1), (0, padding))
