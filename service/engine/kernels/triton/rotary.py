"""Rotating queries and keys to their positions and storing them in the cache, Triton: one program a token and head.

Owns `rotate_and_store`. Stateless; used by the engine's single thread.

Shape letters: T tokens, N heads, D head width, P positions.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from service.engine.kernels.triton.launch import early, launch, launch_options, let_next_start, wait_for_inputs

_NUM_WARPS = 4
"""276 and 4096 tokens 3.0 and 22.5 us (others 2.8 to 3.1 and 21.1 to 25.5). H200, de9a6fa."""


@triton.jit
def _rotate_and_store(
    qkv: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    positions: tl.tensor,
    cells: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    HEADS: tl.constexpr,
    HEADS_POWER: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Grid `[tokens]`."""
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS_POWER)[:, None]
    column = tl.arange(0, HALF)[None]
    inside = (head < HEADS) & (column < HALF)
    table = tl.load(positions + token).to(tl.int64) * 2 * HALF + column
    cos_first, cos_second = tl.load(cos + table), tl.load(cos + table + HALF)
    sin_first, sin_second = tl.load(sin + table), tl.load(sin + table + HALF)
    cell = tl.load(cells + token)
    inside_cache = inside & (cell >= 0)
    source = qkv + (token * 3 * HEADS + head) * 2 * HALF + column
    target = ((cell // BLOCK * HEADS + head) * BLOCK + cell % BLOCK) * 2 * HALF + column
    for part in tl.static_range(2):
        at = source + part * HEADS * 2 * HALF
        first, second = tl.load(at, inside, other=0.0), tl.load(at + HALF, inside, other=0.0)
        wide_first, wide_second = first.to(tl.float32), second.to(tl.float32)
        turned_first = (wide_first * cos_first - wide_second * sin_first).to(first.dtype)
        turned_second = (wide_second * cos_second + wide_first * sin_second).to(first.dtype)
        tl.store(at, turned_first, inside)
        tl.store(at + HALF, turned_second, inside)
        if part == 1:
            tl.store(keys + target, turned_first, inside_cache)
            tl.store(keys + target + HALF, turned_second, inside_cache)
    at = source + 2 * HEADS * 2 * HALF
    tl.store(values + target, tl.load(at, inside, other=0.0), inside_cache)
    tl.store(values + target + HALF, tl.load(at + HALF, inside, other=0.0), inside_cache)


def rotate_and_store(
    qkv_T3ND: Tensor,
    cos_PD: Tensor,
    sin_PD: Tensor,
    positions_T: Tensor,
    cells_T: Tensor,
    keys: Tensor,
    values: Tensor,
) -> None:
    """See `reference.rotate_and_store`."""
    tokens, _, heads, width = qkv_T3ND.shape
    for tensor in (qkv_T3ND, cos_PD, sin_PD, keys, values):
        assert tensor.is_contiguous(), "rotate_and_store needs contiguous tensors"
    if tokens == 0:
        return
    is_early = early(qkv_T3ND.device, tokens)
    launch(
        _rotate_and_store, (tokens,),
        qkv_T3ND, cos_PD, sin_PD, positions_T, cells_T, keys, values,
        HEADS=heads, HEADS_POWER=triton.next_power_of_2(heads), HALF=width // 2, BLOCK=keys.shape[2], EARLY=is_early,
        **launch_options(_NUM_WARPS, 1, is_early),
    )  # fmt: skip
