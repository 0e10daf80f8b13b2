"""Attention of one new token a row over its cache, Triton.

Owns `paged_attention`, and `decode_attention`, which also rotates and stores the new token on its way. A program takes
one head of one row, or a share of its tokens where rows are few; the last of a head's programs joins their parts.

Each lane row of a tile keeps a softmax of its own over the tokens that it sees, and they are joined once at the end, so
that no step of the loop makes warps wait for each other. Stateless; used by the engine's single thread.

Shape letters: B rows, N heads, D head width, X blocks of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.engine.answer_ring import AnswerRing
from service.engine.kernels.triton.launch import (
    NUM_TICKETS,
    early,
    is_last,
    launch,
    launch_options,
    let_next_start,
    tickets,
    wait_for_inputs,
)

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
_PROGRAMS_WANTED = 1280
_MAX_SHARES = 32
"""Heads of all rows times shares, and shares at most; measured with `CONFIGS`."""


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """How a share of a head's tokens is read."""

    tokens: int
    """Of a tile."""
    num_warps: int
    num_stages: int


CONFIGS: tuple[tuple[int, AttentionConfig], ...] = (
    (40, AttentionConfig(8, 1, 2)),
    (640, AttentionConfig(16, 2, 1)),
    (1280, AttentionConfig(16, 1, 2)),
    (1 << 62, AttentionConfig(8, 1, 2)),
)
"""By heads of all rows at most. At 530 tokens a row 1, 4, 16, 64, 128 and 256 rows 5.6, 7.9, 17.2, 48.8, 91.8 and 166
us (32 tokens and 4 warps, 320 programs wanted: 6.4, 9.2, 20.9, 49.4, 97.5 and 188); 1 row at 4000 tokens 15.9 us (64
tokens and 4 warps 12.9), 16 rows at 2000 tokens 47 us. H200, 558e320. On a H100 (3aebed2) others were 5 % faster at
most, except for 4000 tokens (15 %)."""


@triton.jit
def _rotated(x: tl.tensor, cos: tl.tensor, sin: tl.tensor, WIDTH: tl.constexpr) -> tl.tensor:
    """A head's vector turned to its position, rounded as `rotate_and_store` rounds it."""
    column = tl.arange(0, WIDTH)
    value = tl.load(x + column)
    partner = tl.load(x + (column + WIDTH // 2) % WIDTH).to(tl.float32)
    partner = tl.where(column < WIDTH // 2, -partner, partner)
    return (value.to(tl.float32) * tl.load(cos + column) + partner * tl.load(sin + column)).to(value.dtype)


@triton.jit
def _attend(  # noqa: PLR0915 -- what a helper would take and return is most of it
    qkv: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    positions: tl.tensor,
    cells: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    tables: tl.tensor,
    lengths: tl.tensor,
    prompts: tl.tensor,
    partial: tl.tensor,
    ticket: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    row_stride: tl.tensor,
    table_stride: tl.tensor,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    SHARES: tl.constexpr,
    SHARES_POWER: tl.constexpr,
    STORE: tl.constexpr,
    RING: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Grid `[heads, rows, shares]`; `qkv` is the row's three vectors a head if `STORE`, else its query.

    `RING` is 0 without one; it needs `STORE`.
    """
    head = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    share = tl.program_id(2)
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    length = tl.load(lengths + row)
    column = tl.arange(0, WIDTH)
    lane = tl.arange(0, TOKENS)
    qkv += row * row_stride + head * WIDTH
    # Finite instead of -inf, so that a lane that sees no token does not become NaN; its weight ends up 0.
    most = tl.full([TOKENS], -1e30, tl.float32)
    total = tl.zeros([TOKENS], tl.float32)
    sums = tl.zeros([TOKENS, WIDTH], tl.float32)
    if STORE:
        position = tl.load(positions + row)
        cos += position * WIDTH
        sin += position * WIDTH
        query = _rotated(qkv, cos, sin, WIDTH).to(tl.float32) * (scale * LOG2_E)
        if share == 0:
            # Use the key and value just computed: other programs of this head must not wait for the store below.
            key = _rotated(qkv + HEADS * WIDTH, cos, sin, WIDTH)
            value = tl.load(qkv + 2 * HEADS * WIDTH + column)
            cell = tl.load(cells + row)
            target = ((cell // BLOCK * HEADS + head) * BLOCK + cell % BLOCK) * WIDTH + column
            tl.store(keys + target, key, (column >= 0) & (cell >= 0))
            tl.store(values + target, value, (column >= 0) & (cell >= 0))
            mine = (lane == 0) & (length > 0)
            most = tl.where(mine, tl.sum(query * key.to(tl.float32)), most)
            total = tl.where(mine, 1.0, total)
            sums = tl.where(mine[:, None], value[None].to(tl.float32), sums)
        if RING > 0:
            prompt = tl.load(prompts + row)
            # Answer tokens that the new one does not see.
            skipped = position + 1 - length
        length = tl.maximum(length - 1, 0)
    else:
        query = tl.load(qkv + column).to(tl.float32) * (scale * LOG2_E)
    tables += row * table_stride
    # Shares are cut at tiles.
    tiles = tl.cdiv(length, TOKENS)
    first = share * tiles // SHARES * TOKENS
    end = tl.minimum((share + 1) * tiles // SHARES * TOKENS, length)
    for start in tl.range(first, end, TOKENS, num_stages=STAGES):
        token = start + lane
        inside = token < end
        place = token
        if RING > 0:
            place = tl.where(token < prompt, token, prompt + (token - prompt + skipped) % RING)
        block = tl.load(tables + place // BLOCK, inside, other=0).to(tl.int64)
        source = ((block * HEADS + head) * BLOCK + place % BLOCK) * WIDTH
        key = tl.load(keys + source[:, None] + column[None], inside[:, None], other=0.0)
        value = tl.load(values + source[:, None] + column[None], inside[:, None], other=0.0)
        score = tl.where(inside, tl.sum(key.to(tl.float32) * query[None], 1), -1e30)
        larger = tl.maximum(most, score)
        keep = tl.exp2(most - larger)
        weight = tl.exp2(score - larger)
        total = total * keep + weight
        sums = sums * keep[:, None] + value.to(tl.float32) * weight[:, None]
        most = larger
    top = tl.max(most)
    shrink = tl.where(most > -1e29, tl.exp2(most - top), 0.0)
    whole = tl.sum(total * shrink)
    result = tl.sum(sums * shrink[:, None], 0)
    target = (row * HEADS + head) * WIDTH + column
    if SHARES == 1:
        tl.store(out + target, (result / tl.maximum(whole, 1e-30)).to(out.dtype.element_ty))
    else:
        # A part stores its sums, then its largest score and its total.
        part = partial + (row * HEADS + head) * SHARES * (WIDTH + 2)
        mine = part + share * (WIDTH + 2)
        tl.store(mine + column, result)
        tl.store(mine + WIDTH, top)
        tl.store(mine + WIDTH + 1, whole)
        if is_last(ticket + row * HEADS + head, SHARES):
            one = tl.arange(0, SHARES_POWER)
            there = one < SHARES
            tops = tl.load(part + one * (WIDTH + 2) + WIDTH, there, other=-1e30, cache_modifier=".cg")
            wholes = tl.load(part + one * (WIDTH + 2) + WIDTH + 1, there, other=0.0, cache_modifier=".cg")
            parts = tl.load(
                part + one[:, None] * (WIDTH + 2) + column[None], there[:, None], other=0.0, cache_modifier=".cg"
            )
            shrinks = tl.exp2(tops - tl.max(tops))
            whole = tl.sum(wholes * shrinks)
            result = tl.sum(parts * shrinks[:, None], 0)
            tl.store(out + target, (result / tl.maximum(whole, 1e-30)).to(out.dtype.element_ty))


def paged_attention(
    q_BND: Tensor, keys: Tensor, values: Tensor, tables_BX: Tensor, lengths_B: Tensor, scale: float
) -> Tensor:
    """See `reference.paged_attention`."""
    return attend(q_BND, None, None, None, None, keys, values, tables_BX, lengths_B, scale)


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
    """See `reference.decode_attention`."""
    return attend(
        qkv_B3ND,
        cos_PD,
        sin_PD,
        positions_B,
        cells_B,
        keys,
        values,
        tables_BX,
        lengths_B,
        scale,
        ring=ring,
        prompts_B=prompts_B,
    )


def attend(
    qkv: Tensor,
    cos_PD: Tensor | None,
    sin_PD: Tensor | None,
    positions_B: Tensor | None,
    cells_B: Tensor | None,
    keys: Tensor,
    values: Tensor,
    tables_BX: Tensor,
    lengths_B: Tensor,
    scale: float,
    config: AttentionConfig | None = None,
    shares: int | None = None,
    ring: AnswerRing | None = None,
    prompts_B: Tensor | None = None,
) -> Tensor:
    """`decode_attention`, or `paged_attention` where there are no cells; `qkv` accordingly."""
    (rows, heads), (_, _, block, width) = (len(qkv), qkv.shape[-2]), keys.shape
    assert qkv.stride(-1) == 1
    assert qkv.stride(-2) == width
    assert keys.is_contiguous()
    assert values.is_contiguous()
    assert tables_BX.stride(1) == 1
    device = qkv.device
    out_BND = torch.empty(rows, heads, width, dtype=qkv.dtype, device=device)
    if rows == 0:
        return out_BND
    config, shares = config or config_for(rows * heads), shares or shares_for(rows * heads)
    assert shares == 1 or rows * heads <= NUM_TICKETS
    partial = torch.empty(rows * heads * shares * (width + 2), dtype=torch.float32, device=device)
    is_early = early(device, rows)
    launch(
        _attend, (heads, rows, shares),
        qkv, cos_PD, sin_PD, positions_B, cells_B, keys, values, tables_BX, lengths_B, prompts_B, partial,
        tickets(device), out_BND, scale, qkv.stride(0), tables_BX.stride(0),
        HEADS=heads, WIDTH=width, BLOCK=block, TOKENS=config.tokens, SHARES=shares,
        SHARES_POWER=triton.next_power_of_2(shares), STORE=cells_B is not None,
        RING=ring.cells if ring else 0, STAGES=config.num_stages, EARLY=is_early,
        **launch_options(config.num_warps, 1, is_early),
    )  # fmt: skip
    return out_BND


def config_for(programs: int) -> AttentionConfig:
    """How a share of a head's tokens is read where rows have so many heads."""
    return next(config for most, config in CONFIGS if programs <= most)


def shares_for(programs: int) -> int:
    """Into how many shares a head's tokens are cut, so that the card is full; a power of two."""
    return max(1, min(_MAX_SHARES, triton.next_power_of_2(_PROGRAMS_WANTED // programs)))
