"""Choosing experts for tokens, Triton.

Owns `route` and `norm_route`. Few tokens: programs share a token's experts between them, and the last of them chooses.
Many: programs take 16 tokens each, the products in three passes of tensor cores that together are as exact as float32;
while there are few such programs, several share the width of 16 tokens between them, and the last of them chooses.
Stateless; used by the engine's single thread.

Shape letters: T tokens, H hidden width, E experts, K experts per token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.engine.kernels.triton.launch import (
    NUM_TICKETS,
    early,
    is_last,
    launch,
    launch_options,
    let_next_start,
    split_width,
    tickets,
    wait_for_inputs,
)
from service.engine.kernels.triton.linear import normed_part, square_sum
from service.engine.kernels.triton.norm import rms_norm

MAX_SHARED_TOKENS = 96
"""64 tokens 4.7 us (6.3 the other way), 128 tokens 9.1 (7.2). H100, 3aebed2."""
_EXPERTS_OF_PROGRAM, _FEW_WARPS = 4, 1
"""1, 16 and 64 tokens 3.0, 3.4 and 4.6 us (8 experts and 4 warps 4.6, 5.0 and 6.7). H200, 558e320."""
_TOKENS_OF_PROGRAM, _DEPTH = 16, 64
_MANY_WARPS, _MANY_STAGES = 4, 3
_PROGRAMS_WANTED, _MAX_SHARES = 256, 8
"""256, 512 and 1024 tokens 7.7, 9.7 and 11.7 us (four shares 8.7, 9.3 and 11.8; one 16.7, 17.3 and 17.8), 4096 tokens
28 us (32 tokens of a program 25). H200, 558e320."""


@triton.jit
def _choose_experts(
    logits: tl.tensor,
    token: tl.tensor,
    token_inside: tl.tensor,
    weights: tl.tensor,
    experts: tl.tensor,
    scale: tl.tensor,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_POWER: tl.constexpr,
    NUM_CHOSEN: tl.constexpr,
    NUM_SHARED: tl.constexpr,
    COLUMNS: tl.constexpr,
    NORMALISE: tl.constexpr,
) -> None:
    """From logits `[tokens, EXPERTS_POWER]` to choices; lanes past the experts hold minus infinity."""
    expert = tl.arange(0, EXPERTS_POWER)[None]
    shares = tl.exp(logits - tl.max(logits, 1)[:, None])
    shares = shares / tl.sum(shares, 1)[:, None]
    shares = tl.where(expert < NUM_EXPERTS, shares, -1.0)
    column = tl.arange(0, COLUMNS)[None]
    best = tl.where(column < NUM_CHOSEN, 0.0, 1.0) + tl.zeros_like(tl.max(logits, 1))[:, None]
    # Shared experts follow the chosen ones.
    chosen = (column - NUM_CHOSEN + NUM_EXPERTS) + tl.zeros_like(tl.max(logits, 1)).to(tl.int32)[:, None]
    kept = tl.zeros_like(tl.max(logits, 1))
    for choice in tl.static_range(NUM_CHOSEN):
        greatest, index = tl.max(shares, 1, return_indices=True, return_indices_tie_break_left=True)
        best = tl.where(column == choice, greatest[:, None], best)
        chosen = tl.where(column == choice, index[:, None], chosen)
        kept += greatest
        shares = tl.where(expert == index[:, None], -1.0, shares)
    factor = tl.where(column < NUM_CHOSEN, scale, 1.0)
    if NORMALISE:
        best = tl.where(column < NUM_CHOSEN, best / (kept + 1e-20)[:, None], best)
    target = token[:, None] * (NUM_CHOSEN + NUM_SHARED) + column
    inside = token_inside[:, None] & (column < NUM_CHOSEN + NUM_SHARED)
    tl.store(weights + target, best * factor, inside)
    tl.store(experts + target, chosen, inside)


@triton.jit
def _route_one(
    x: tl.tensor,
    norm: tl.tensor,
    gate: tl.tensor,
    normed: tl.tensor,
    logits: tl.tensor,
    weights: tl.tensor,
    experts: tl.tensor,
    ticket: tl.tensor,
    eps: tl.tensor,
    scale: tl.tensor,
    WIDTH: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_POWER: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_CHOSEN: tl.constexpr,
    NUM_SHARED: tl.constexpr,
    COLUMNS: tl.constexpr,
    NORMALISE: tl.constexpr,
    NORM: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Grid `[expert groups, tokens]`."""
    group = tl.program_id(0)
    token = tl.program_id(1)
    expert = group * GROUP + tl.arange(0, GROUP)
    expert_inside = (expert < NUM_EXPERTS)[:, None]
    gates = gate + expert[:, None] * WIDTH
    first_column = tl.arange(0, FIRST)
    first = tl.load(gates + first_column[None], expert_inside & (first_column < WIDTH)[None], other=0.0)
    if SECOND > 0:
        second_column = FIRST + tl.arange(0, SECOND)
        second = tl.load(gates + second_column[None], expert_inside & (second_column < WIDTH)[None], other=0.0)
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    x += token * WIDTH
    if NORM:
        squares = square_sum(x, WIDTH, 0, FIRST)
        if SECOND > 0:
            squares += square_sum(x, WIDTH, FIRST, SECOND)
        shrink = tl.rsqrt(squares / WIDTH + eps)
        part = normed_part(x, norm, shrink, WIDTH, 0, FIRST)
        tl.store(normed + token * WIDTH + first_column, part, (first_column < WIDTH) & (group == 0))
    else:
        part = tl.load(x + first_column, first_column < WIDTH, other=0.0)
    sums = tl.sum(first * part[None].to(tl.float32), 1)
    if SECOND > 0:
        if NORM:
            part = normed_part(x, norm, shrink, WIDTH, FIRST, SECOND)
            tl.store(normed + token * WIDTH + second_column, part, (second_column < WIDTH) & (group == 0))
        else:
            part = tl.load(x + second_column, second_column < WIDTH, other=0.0)
        sums += tl.sum(second * part[None].to(tl.float32), 1)
    tl.store(logits + token * NUM_EXPERTS + expert, sums, expert < NUM_EXPERTS)
    if is_last(ticket + token, tl.num_programs(0)):
        each = tl.arange(0, EXPERTS_POWER)[None]
        row = tl.load(
            logits + token * NUM_EXPERTS + each, each < NUM_EXPERTS, other=-float("inf"), cache_modifier=".cg"
        )
        one = tl.zeros([1], tl.int32)
        _choose_experts(
            row, one + token, one == 0, weights, experts, scale,
            NUM_EXPERTS, EXPERTS_POWER, NUM_CHOSEN, NUM_SHARED, COLUMNS, NORMALISE,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_tokens"])
def _route_many(
    x: tl.tensor,
    gate: tl.tensor,
    logits: tl.tensor,
    weights: tl.tensor,
    experts: tl.tensor,
    ticket: tl.tensor,
    scale: tl.tensor,
    num_tokens: tl.tensor,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    TOKENS: tl.constexpr,
    SHARES: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_POWER: tl.constexpr,
    NUM_CHOSEN: tl.constexpr,
    NUM_SHARED: tl.constexpr,
    COLUMNS: tl.constexpr,
    NORMALISE: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Grid `[token groups, shares of the width]`; `logits` holds a part for each share, where there are several."""
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    token_inside = token < num_tokens
    expert = tl.arange(0, EXPERTS_POWER)
    expert_inside = (expert < NUM_EXPERTS)[:, None]
    depth = tl.arange(0, DEPTH)[None]
    xs = x + token[:, None].to(tl.int64) * WIDTH + depth
    gates = gate + expert[:, None] * WIDTH + depth
    sums = tl.zeros([TOKENS, EXPERTS_POWER], tl.float32)
    part_width: tl.constexpr = ((WIDTH + DEPTH * SHARES - 1) // (DEPTH * SHARES)) * DEPTH
    first = tl.program_id(1) * part_width
    for start in range(first, tl.minimum(first + part_width, WIDTH), DEPTH):
        inside = start + depth < WIDTH
        value = tl.load(xs + start, token_inside[:, None] & inside, other=0.0).to(tl.float32)
        gate_part = tl.load(gates + start, expert_inside & inside, other=0.0)
        sums = tl.dot(value, gate_part.T, sums, input_precision="tf32x3")
    is_chooser = True
    if SHARES > 1:
        cells = logits + token[:, None].to(tl.int64) * EXPERTS_POWER + expert[None]
        part_size = num_tokens.to(tl.int64) * EXPERTS_POWER
        tl.store(cells + tl.program_id(1) * part_size, sums, token_inside[:, None])
        is_chooser = is_last(ticket + tl.program_id(0), SHARES)
        if is_chooser:
            # Summed in the order of the shares, so the result does not depend on which program finishes last.
            sums = tl.zeros([TOKENS, EXPERTS_POWER], tl.float32)
            for share in tl.static_range(SHARES):
                sums += tl.load(cells + share * part_size, token_inside[:, None], other=0.0, cache_modifier=".cg")
    if is_chooser:
        sums = tl.where((expert < NUM_EXPERTS)[None], sums, -float("inf"))
        _choose_experts(
            sums, token.to(tl.int64), token_inside, weights, experts, scale,
            NUM_EXPERTS, EXPERTS_POWER, NUM_CHOSEN, NUM_SHARED, COLUMNS, NORMALISE,
        )  # fmt: skip


def route(
    x_TH: Tensor, gate_EH: Tensor, num_chosen: int, normalise: bool, scale: float, num_shared: int = 0
) -> tuple[Tensor, Tensor]:
    """See `reference.route`."""
    _, weights_TK, experts_TK = _route(x_TH, None, 0.0, gate_EH, num_chosen, normalise, scale, num_shared)
    return weights_TK, experts_TK


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
    """See `reference.norm_route`."""
    return _route(x_TH, norm_H, eps, gate_EH, num_chosen, normalise, scale, num_shared)


def _route(
    x_TH: Tensor,
    norm_H: Tensor | None,
    eps: float,
    gate_EH: Tensor,
    num_chosen: int,
    normalise: bool,
    scale: float,
    num_shared: int,
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, device, num_experts = len(x_TH), x_TH.device, len(gate_EH)
    assert x_TH.is_contiguous()
    assert gate_EH.is_contiguous()
    assert gate_EH.dtype == torch.float32
    is_few = tokens <= MAX_SHARED_TOKENS
    normed_TH = x_TH
    if norm_H is not None:
        normed_TH = torch.empty_like(x_TH) if is_few else rms_norm(x_TH, norm_H, eps)
    columns = num_chosen + num_shared
    weights_TK = torch.empty(tokens, columns, dtype=torch.float32, device=device)
    experts_TK = torch.empty(tokens, columns, dtype=torch.int32, device=device)
    is_early = early(device, tokens)
    meta = {
        "WIDTH": x_TH.shape[1],
        "NUM_EXPERTS": num_experts,
        "EXPERTS_POWER": triton.next_power_of_2(num_experts),
        "NUM_CHOSEN": num_chosen,
        "NUM_SHARED": num_shared,
        "COLUMNS": triton.next_power_of_2(columns),
        "NORMALISE": normalise and num_chosen > 1,
        "EARLY": is_early,
    }
    if is_few and tokens:
        first, second = split_width(x_TH.shape[1])
        logits_TE = torch.empty(tokens, num_experts, dtype=torch.float32, device=device)
        launch(
            _route_one, (triton.cdiv(num_experts, _EXPERTS_OF_PROGRAM), tokens),
            x_TH, norm_H, gate_EH, normed_TH, logits_TE, weights_TK, experts_TK, tickets(device), eps, scale,
            FIRST=first, SECOND=second, GROUP=_EXPERTS_OF_PROGRAM, NORM=norm_H is not None,
            **meta, **launch_options(_FEW_WARPS, 1, is_early),
        )  # fmt: skip
    elif tokens:
        groups = triton.cdiv(tokens, _TOKENS_OF_PROGRAM)
        shares = max(1, min(_MAX_SHARES, triton.next_power_of_2(_PROGRAMS_WANTED // groups)))
        assert groups <= NUM_TICKETS
        parts_PTE = torch.empty(shares, tokens, meta["EXPERTS_POWER"], dtype=torch.float32, device=device)
        launch(
            _route_many, (groups, shares),
            normed_TH, gate_EH, parts_PTE, weights_TK, experts_TK, tickets(device), scale, tokens,
            DEPTH=_DEPTH, TOKENS=_TOKENS_OF_PROGRAM, SHARES=shares,
            **meta, **launch_options(_MANY_WARPS, _MANY_STAGES, is_early),
        )  # fmt: skip
    return normed_TH, weights_TK, experts_TK
