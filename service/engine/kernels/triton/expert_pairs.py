"""Mixture of experts for very few tokens, Triton: each pair of token and choice is a matrix times a vector.

Owns `mix_pairs` and the two kernels behind it: all loads of a pair's weights are under way at once. Stateless; used by
the engine's single thread.

Shape letters: T tokens, H hidden width, E experts, K experts per token, I expert width, J = 2 * I. A pair is
token * K + choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.engine.kernels.int8_rows import Weight, levels_of
from service.engine.kernels.triton.launch import (
    early,
    launch,
    launch_options,
    let_next_start,
    split_width,
    wait_for_inputs,
)


@dataclass(frozen=True, slots=True)
class PairConfig:
    """How pairs are multiplied one by one."""

    up_rows: int = 8
    up_warps: int = 8
    down_rows: int = 1
    down_warps: int = 4


PAIR_CONFIG = PairConfig()
"""1 token 19.0 us (4, 4, 2 and 4: 23.7; 8, 4, 1 and 4: 20.4). H200, 558e320."""


@triton.jit
def silu(x: tl.tensor) -> tl.tensor:
    """`x * sigmoid(x)`."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def _pair_up(
    x: tl.tensor,
    experts: tl.tensor,
    gate_up: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    NUM_CHOSEN: tl.constexpr,
    HIDDEN: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    SCALED: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """`silu(gate) * up` of some features of one pair; grid `[feature groups, pairs]`."""
    pair = tl.program_id(1)
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    expert = tl.load(experts + pair).to(tl.int64)
    x += (pair // NUM_CHOSEN) * HIDDEN
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_inside = row[:, None] < INNER
    gates = gate_up + (expert * 2 * INNER + row[:, None]) * HIDDEN
    column = tl.arange(0, FIRST)
    inside = column < HIDDEN
    both = row_inside & inside[None]
    gate_weights = tl.load(gates + column[None], both, other=0.0)
    up_weights = tl.load(gates + INNER * HIDDEN + column[None], both, other=0.0)
    value = tl.load(x + column, inside, other=0.0)[None].to(tl.float32)
    gate = tl.sum(gate_weights.to(tl.float32) * value, 1)
    up = tl.sum(up_weights.to(tl.float32) * value, 1)
    if SECOND > 0:
        column = FIRST + tl.arange(0, SECOND)
        inside = column < HIDDEN
        both = row_inside & inside[None]
        gate_weights = tl.load(gates + column[None], both, other=0.0)
        up_weights = tl.load(gates + INNER * HIDDEN + column[None], both, other=0.0)
        value = tl.load(x + column, inside, other=0.0)[None].to(tl.float32)
        gate += tl.sum(gate_weights.to(tl.float32) * value, 1)
        up += tl.sum(up_weights.to(tl.float32) * value, 1)
    if SCALED:
        rows = scales + expert * 2 * INNER + row
        gate *= tl.load(rows, row < INNER, other=0.0)
        up *= tl.load(rows + INNER, row < INNER, other=0.0)
    tl.store(out + pair * INNER + row, (silu(gate) * up).to(out.dtype.element_ty), row < INNER)


@triton.jit
def _down_weights(
    downs: tl.tensor, row_inside: tl.tensor, INNER: tl.constexpr, START: tl.constexpr, PART: tl.constexpr
) -> tl.tensor:
    column = START + tl.arange(0, PART)[None]
    return tl.load(downs + column, row_inside & (column < INNER), other=0.0)


@triton.jit
def _times_vector(
    weights: tl.tensor, vector: tl.tensor, INNER: tl.constexpr, START: tl.constexpr, PART: tl.constexpr
) -> tl.tensor:
    column = START + tl.arange(0, PART)
    value = tl.load(vector + column, column < INNER, other=0.0)[None].to(tl.float32)
    return tl.sum(weights.to(tl.float32) * value, 1)


@triton.jit
def _pair_down(
    activated: tl.tensor,
    weights: tl.tensor,
    experts: tl.tensor,
    down: tl.tensor,
    scales: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    NUM_CHOSEN: tl.constexpr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    ROWS: tl.constexpr,
    ADD: tl.constexpr,
    SCALED: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Some features of one token, summed over its experts; grid `[feature groups, tokens]`."""
    token = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_inside = row[:, None] < HIDDEN
    # The routing comes from two kernels back, so all weights can be loaded before waiting for the previous kernel.
    firsts: tl.tuple = ()
    seconds: tl.tuple = ()
    factors: tl.tuple = ()
    for choice in tl.static_range(NUM_CHOSEN):
        expert = tl.load(experts + token * NUM_CHOSEN + choice).to(tl.int64)
        downs = down + (expert * HIDDEN + row[:, None]) * INNER
        firsts = firsts + (_down_weights(downs, row_inside, INNER, 0, FIRST),)  # noqa: RUF005 -- Triton adds tuples alone
        if SECOND > 0:
            seconds = seconds + (_down_weights(downs, row_inside, INNER, FIRST, SECOND),)  # noqa: RUF005 -- as above
        if SCALED:
            factors = factors + (tl.load(scales + expert * HIDDEN + row, row < HIDDEN, other=0.0),)  # noqa: RUF005 -- as above
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    sums = tl.zeros([ROWS], tl.float32)
    for choice in tl.static_range(NUM_CHOSEN):
        pair = token * NUM_CHOSEN + choice
        result = _times_vector(firsts[choice], activated + pair * INNER, INNER, 0, FIRST)
        if SECOND > 0:
            result += _times_vector(seconds[choice], activated + pair * INNER, INNER, FIRST, SECOND)
        if SCALED:
            result *= factors[choice]
        sums += tl.load(weights + pair) * result
    target = token * HIDDEN + row
    if ADD:
        sums += tl.load(residual + target, row < HIDDEN, other=0.0).to(tl.float32)
    tl.store(out + target, sums.to(out.dtype.element_ty), row < HIDDEN)


def mix_pairs(
    x_TH: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_EJH: Weight,
    down_EHI: Weight,
    residual_TH: Tensor | None,
    out_TH: Tensor,
    config: PairConfig,
) -> None:
    """`out = mixture + residual`, pair by pair."""
    (tokens, chosen), (_, hidden, inner) = experts_TK.shape, down_EHI.shape
    (gate_up, gate_up_scale), (down, down_scale) = levels_of(gate_up_EJH), levels_of(down_EHI)
    is_early = early(x_TH.device, tokens)
    activated = torch.empty(tokens * chosen, inner, dtype=x_TH.dtype, device=x_TH.device)
    first, second = split_width(hidden)
    launch(
        _pair_up, (triton.cdiv(inner, config.up_rows), tokens * chosen),
        x_TH, experts_TK, gate_up, gate_up_scale, activated,
        NUM_CHOSEN=chosen, HIDDEN=hidden, FIRST=first, SECOND=second, INNER=inner, ROWS=config.up_rows,
        SCALED=gate_up_scale is not None, EARLY=is_early,
        **launch_options(config.up_warps, 1, is_early),
    )  # fmt: skip
    first, second = split_width(inner)
    launch(
        _pair_down, (triton.cdiv(hidden, config.down_rows), tokens),
        activated, weights_TK, experts_TK, down, down_scale, residual_TH, out_TH,
        NUM_CHOSEN=chosen, HIDDEN=hidden, INNER=inner, FIRST=first, SECOND=second,
        ROWS=config.down_rows, ADD=residual_TH is not None, SCALED=down_scale is not None, EARLY=is_early,
        **launch_options(config.down_warps, 1, is_early),
    )  # fmt: skip
