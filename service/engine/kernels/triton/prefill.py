"""Causal attention of whole prompts laid end to end, Triton: tiles of queries over tiles of keys.

Owns `prefill_attention`. Stateless; used by the engine's single thread.

Shape letters: T tokens, R sequences, N heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.engine.kernels.triton.launch import launch, launch_options

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """Tiles of a program."""

    queries: int = 64
    keys: int = 64
    num_warps: int = 4
    num_stages: int = 3


CONFIG = PrefillConfig()
"""A prompt of 276, 906 and 4096 tokens 7.8, 20 and 130 us, 15 of 276 tokens 27 us (of 45 others the best 7.5, 20, 139
and 27). H200, de9a6fa."""
FLOAT32_CONFIG = PrefillConfig(queries=16, keys=32, num_warps=2, num_stages=2)
"""In float32 no tensor core multiplies, and larger tiles do not fit into shared memory. Four prompts of 120 and 450
tokens at nano's dimensions 15 and 93 us (4 warps 22 and 130; 64 keys 16 and 86). H200, 558e320."""


@triton.jit
def _attend_tile(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    start: tl.tensor,
    length: tl.tensor,
    token: tl.tensor,
    most: tl.tensor,
    total: tl.tensor,
    sums: tl.tensor,
    factor: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    WIDTH: tl.constexpr,
    KEYS: tl.constexpr,
    MASK: tl.constexpr,
) -> tl.tensor:
    """One tile of keys; `MASK`: it reaches to the diagonal or past the end."""
    other = start + tl.arange(0, KEYS)
    column = tl.arange(0, WIDTH)
    inside = (other < length)[:, None]
    if MASK:
        key = tl.load(keys + other[:, None] * key_stride + column[None], inside, other=0.0)
    else:
        key = tl.load(keys + other[:, None] * key_stride + column[None])
    score = tl.dot(query, key.T, input_precision="ieee") * factor
    if MASK:
        score = tl.where(token[:, None] >= other[None], score, -1e30)
    larger = tl.maximum(most, tl.max(score, 1))
    keep = tl.exp2(most - larger)
    weight = tl.exp2(score - larger[:, None])
    if MASK:
        value = tl.load(values + other[:, None] * value_stride + column[None], inside, other=0.0)
    else:
        value = tl.load(values + other[:, None] * value_stride + column[None])
    total = total * keep + tl.sum(weight, 1)
    sums = tl.dot(weight.to(value.dtype), value, sums * keep[:, None], input_precision="ieee")
    return larger, total, sums


@triton.jit
def _attend_prompt(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    starts: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    query_stride: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    """Grid `[tiles of queries, heads, sequences]`; the longest tiles start first."""
    head = tl.program_id(1)
    sequence = tl.program_id(2)
    begin = tl.load(starts + sequence).to(tl.int64)
    length = (tl.load(starts + sequence + 1) - begin).to(tl.int32)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    if tile * QUERIES >= length:
        return
    token = tile * QUERIES + tl.arange(0, QUERIES)
    column = tl.arange(0, WIDTH)
    inside = (token < length)[:, None]
    queries += begin * query_stride + head * WIDTH
    keys += begin * key_stride + head * WIDTH
    values += begin * value_stride + head * WIDTH
    query = tl.load(queries + token[:, None] * query_stride + column[None], inside, other=0.0)
    factor = scale * LOG2_E
    most = tl.full([QUERIES], -1e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, WIDTH], tl.float32)
    # Tiles wholly before the first query need no mask.
    unmasked = tile * QUERIES // KEYS * KEYS
    for start in range(0, unmasked, KEYS):
        most, total, sums = _attend_tile(
            query, keys, values, start, length, token, most, total, sums, factor, key_stride, value_stride,
            WIDTH, KEYS, False,
        )  # fmt: skip
    for start in range(unmasked, tl.minimum((tile + 1) * QUERIES, length), KEYS):
        most, total, sums = _attend_tile(
            query, keys, values, start, length, token, most, total, sums, factor, key_stride, value_stride,
            WIDTH, KEYS, True,
        )  # fmt: skip
    target = ((begin + token[:, None]) * HEADS + head) * WIDTH + column[None]
    tl.store(out + target, (sums / total[:, None]).to(out.dtype.element_ty), inside)


def prefill_attention(
    q_TND: Tensor, k_TND: Tensor, v_TND: Tensor, starts_R1: Tensor, max_length: int, scale: float
) -> Tensor:
    """See `reference.prefill_attention`."""
    config = FLOAT32_CONFIG if q_TND.dtype == torch.float32 else CONFIG
    return attend_prompts(q_TND, k_TND, v_TND, starts_R1, max_length, scale, config)


def attend_prompts(
    q_TND: Tensor,
    k_TND: Tensor,
    v_TND: Tensor,
    starts_R1: Tensor,
    max_length: int,
    scale: float,
    config: PrefillConfig,
) -> Tensor:
    """`prefill_attention` with given tiles."""
    _, heads, width = q_TND.shape
    for tensor in (q_TND, k_TND, v_TND):
        assert tensor.stride(-1) == 1
        assert tensor.stride(-2) == width
    out_TND = torch.empty(q_TND.shape, dtype=q_TND.dtype, device=q_TND.device)
    if max_length == 0:
        return out_TND
    launch(
        _attend_prompt, (triton.cdiv(max_length, config.queries), heads, len(starts_R1) - 1),
        q_TND, k_TND, v_TND, starts_R1, out_TND, scale, q_TND.stride(0), k_TND.stride(0), v_TND.stride(0),
        HEADS=heads, WIDTH=width, QUERIES=config.queries, KEYS=config.keys,
        **launch_options(config.num_warps, config.num_stages, is_early=False),
    )  # fmt: skip
    return out_TND
