"""Adapters' low-rank products, Triton: programs share the adapters among a tile's tokens.

Owns `lora_add` and `gated`. Two kernels: down to the rank, then up and into place. A program takes a tile of tokens and
the adapters that occur among them, reading other tokens as zeros. Where tokens are few, several programs share the
adapters, so many adapters in a tile cost little more than one. Any order is correct; rows of equal adapters next to
each other are fastest, as in a prefill and in the engine's decode steps. Programs without an adapter exit at once. A
token's result does not depend on the other rows. Nothing waits for the host. Stateless; used by the engine's single
thread.

Shape letters: T tokens, H inputs, O outputs, S slots, R rank, P parts, Q = P * R; see `reference.lora_add`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.engine.kernels.triton.launch import early, launch, launch_options, let_next_start, wait_for_inputs

FEW_TOKENS = 256
"""Up to here tiles of 16 tokens, so that there are programs enough."""
FEW_TILE, FEW_DEPTH, FEW_STAGES = 16, 256, 3
MANY_TILE, MANY_DEPTH, MANY_STAGES = 64, 128, 4
SHARED_TOKENS = 128
"""So many tokens over how many there are is how many programs share a tile's adapters."""
MAX_SHARES = 8
DOWN_ROWS, UP_COLUMNS = 16, 64
GATED_COLUMNS = 1024
_NUM_WARPS = 4
"""Eight adapters of rank 16 on query, key and value: 1, 16, 64 and 256 tokens 4.7, 7.5, 6.5 and 7.9 us (in one
share and with a depth of 128: 5.1, 38.6, 12.0 and 8.5), 1024 and 4096 tokens 11.1 and 26.8 us (three stages 12.4 and
27.8; tiles of 16 and 32 tokens 11.1 at least and 27). H200, 558e320; shares of 64 and 256 tokens as `SHARED_TOKENS`
gives them."""


@triton.jit
def _next_slot(slots: tl.tensor, below: tl.tensor) -> tl.tensor:
    """The largest slot below one; -1: there is none."""
    return tl.max(tl.where(slots < below, slots, -1))


@triton.jit
def _slot_after(slots: tl.tensor, slot: tl.tensor, count: tl.tensor) -> tl.tensor:
    """The slot that comes so many after one."""
    for _ in range(count):
        slot = _next_slot(slots, slot)
    return slot


@triton.jit(do_not_specialize=["num_tokens"])
def _down(
    x: tl.tensor,
    weight: tl.tensor,
    slots: tl.tensor,
    out: tl.tensor,
    num_tokens: tl.tensor,
    WIDTH: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    SHARES: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """`A x`; grid `[token tiles, row groups, shares of a tile's adapters]`."""
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    token_slots = tl.load(slots + token, token < num_tokens, other=-1)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    depth = tl.arange(0, DEPTH)[None]
    xs = x + token[:, None].to(tl.int64) * WIDTH + depth
    target = out + token[:, None] * NUM_ROWS + row[None]
    slot = _slot_after(token_slots, tl.max(token_slots), tl.program_id(2))
    while slot >= 0:
        mine = (token_slots == slot)[:, None]
        weights = weight + (slot.to(tl.int64) * NUM_ROWS + row[:, None]) * WIDTH + depth
        sums = tl.zeros([TOKENS, ROWS], tl.float32)
        for start in range(0, WIDTH, DEPTH):
            inside = start + depth < WIDTH
            value = tl.load(xs + start, mine & inside, other=0.0)
            rows = tl.load(weights + start, (row < NUM_ROWS)[:, None] & inside, other=0.0)
            sums = tl.dot(value, rows.T, sums, input_precision="ieee")
        # Skip rows that no adapter needs.
        tl.store(target, sums.to(out.dtype.element_ty), mine & (row < NUM_ROWS)[None])
        slot = _slot_after(token_slots, slot, SHARES)


@triton.jit(do_not_specialize=["num_tokens"])
def _up_add(
    low: tl.tensor,
    weight: tl.tensor,
    slots: tl.tensor,
    out: tl.tensor,
    num_tokens: tl.tensor,
    NUM_OUTPUTS: tl.constexpr,
    PARTS: tl.constexpr,
    PART_WIDTH: tl.constexpr,
    RANK: tl.constexpr,
    RANK_TILE: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHARES: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """`out += B low`; grid `[token tiles, column groups of each part in each block, shares as above]`."""
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    token_slots = tl.load(slots + token, token < num_tokens, other=-1)
    groups: tl.constexpr = (PART_WIDTH + COLUMNS - 1) // COLUMNS
    piece = tl.program_id(1) // groups
    within = tl.program_id(1) % groups * COLUMNS + tl.arange(0, COLUMNS)
    column = piece * PART_WIDTH + within
    rank = tl.arange(0, RANK_TILE)[None]
    lows = low + token[:, None] * (PARTS * RANK) + piece % PARTS * RANK + rank
    target = out + token[:, None].to(tl.int64) * NUM_OUTPUTS + column[None]
    slot = _slot_after(token_slots, tl.max(token_slots), tl.program_id(2))
    while slot >= 0:
        mine = (token_slots == slot)[:, None]
        value = tl.load(lows, mine & (rank < RANK), other=0.0)
        weights = weight + (slot.to(tl.int64) * NUM_OUTPUTS + column[:, None]) * RANK + rank
        rows = tl.load(weights, (within < PART_WIDTH)[:, None] & (rank < RANK), other=0.0)
        sums = tl.dot(value, rows.T, input_precision="ieee")
        inside = mine & (within < PART_WIDTH)[None]
        sums += tl.load(target, inside, other=0.0).to(tl.float32)
        tl.store(target, sums.to(out.dtype.element_ty), inside)
        slot = _slot_after(token_slots, slot, SHARES)


@triton.jit
def _gate(
    joined: tl.tensor,
    out: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """`silu(gate) * up`; grid `[tokens, column groups]`."""
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < WIDTH
    gates = joined + token * 2 * WIDTH + column // BLOCK_WIDTH * (2 * BLOCK_WIDTH) + column % BLOCK_WIDTH
    gate = tl.load(gates, inside, other=0.0).to(tl.float32)
    up = tl.load(gates + BLOCK_WIDTH, inside, other=0.0).to(tl.float32)
    value = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + token * WIDTH + column, value.to(out.dtype.element_ty), inside)


def lora_add(x_TH: Tensor, out_TO: Tensor, A_SQH: Tensor, B_SOR: Tensor, slots_T: Tensor, part_width: int) -> None:
    """See `reference.lora_add`."""
    (tokens, width), (_, outputs, rank), num_rows = x_TH.shape, B_SOR.shape, A_SQH.shape[1]
    for tensor in (x_TH, out_TO, A_SQH, B_SOR, slots_T):
        assert tensor.is_contiguous(), "kernels of lora need contiguous tensors"
    if not tokens:
        return
    low_TQ = torch.empty(tokens, num_rows, dtype=x_TH.dtype, device=x_TH.device)
    is_few = tokens <= FEW_TOKENS
    tile, depth = (FEW_TILE, FEW_DEPTH) if is_few else (MANY_TILE, MANY_DEPTH)
    shares = max(1, min(SHARED_TOKENS // tokens, MAX_SHARES, tokens, len(A_SQH)))
    tiles, is_early = triton.cdiv(tokens, tile), early(x_TH.device, tokens)
    options = launch_options(_NUM_WARPS, FEW_STAGES if is_few else MANY_STAGES, is_early)
    launch(
        _down, (tiles, triton.cdiv(num_rows, DOWN_ROWS), shares),
        x_TH, A_SQH, slots_T, low_TQ, tokens,
        WIDTH=width, NUM_ROWS=num_rows, TOKENS=tile, ROWS=DOWN_ROWS, DEPTH=depth, SHARES=shares, EARLY=is_early,
        **options,
    )  # fmt: skip
    launch(
        _up_add, (tiles, outputs // part_width * triton.cdiv(part_width, UP_COLUMNS), shares),
        low_TQ, B_SOR, slots_T, out_TO, tokens,
        NUM_OUTPUTS=outputs, PARTS=num_rows // rank, PART_WIDTH=part_width, RANK=rank,
        RANK_TILE=max(16, triton.next_power_of_2(rank)), TOKENS=tile, COLUMNS=UP_COLUMNS, SHARES=shares,
        EARLY=is_early, **options,
    )  # fmt: skip


def gated(joined_TO: Tensor, num_blocks: int) -> Tensor:
    """See `reference.gated`."""
    assert joined_TO.is_contiguous()
    tokens, width = joined_TO.shape[0], joined_TO.shape[1] // 2
    out_TW = torch.empty(tokens, width, dtype=joined_TO.dtype, device=joined_TO.device)
    if tokens:
        is_early = early(joined_TO.device, tokens)
        launch(
            _gate, (tokens, triton.cdiv(width, GATED_COLUMNS)),
            joined_TO, out_TW,
            WIDTH=width, BLOCK_WIDTH=width // num_blocks, COLUMNS=GATED_COLUMNS, EARLY=is_early,
            **launch_options(_NUM_WARPS, 1, is_early),
        )  # fmt: skip
    return out_TW
