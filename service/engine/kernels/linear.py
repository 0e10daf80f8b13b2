"""Matrix products of few tokens, where streaming the weights is all that counts; Triton.

Owns `linear`, `norm_linear` and `linear_add`. One token: every program holds its rows of weights whole, in registers,
so that all its loads are under way at once. Few tokens: tensor cores, one tile of 16 tokens. More: cuBLAS; but 8-bit
rows, which cuBLAS would need in full, stay with tiles of 64 tokens as long as reading weights counts most.
Stateless; used by the engine's single thread.

Shape letters: T tokens, H inputs, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from service.engine.int8_rows import Int8Rows, Weight, in_full, levels_of
from service.engine.kernels.launch import (
    early,
    launch,
    launch_options,
    let_next_start,
    split_width,
    wait_for_inputs,
)
from service.engine.kernels.norm import rms_norm

MAX_SMALL_TOKENS = 16
"""More tokens go to cuBLAS. 16 tokens to 1280, 3840 and 129,280 outputs 4.1, 7.2 and 120 us, 24 tokens 5.2, 9.0 and 126
at best; cuBLAS, its norm by itself, takes 7.5 and 123 for the last two of 16, and 4.5, 7.5 and 125 for 24. H100,
3aebed2."""
MAX_INT8_TOKENS = 256
"""The same for 8-bit rows: as many as a decode step has rows, so that the head, the widest of all products, is never
there in full. 256 tokens to 1280, 3840 and 129,280 outputs 9.4, 21 and 357 us (rows widened for cuBLAS more than 11, 27
and 763). H200, 558e320."""
MAX_TILE_TOKENS = 64
MAX_HELD_WIDTH = 8192
"""Inputs of a row that a program can hold."""


@dataclass(frozen=True, slots=True)
class RowConfig:
    """How one token is multiplied."""

    rows: int
    num_warps: int


@dataclass(frozen=True, slots=True)
class TileConfig:
    """How few tokens are multiplied."""

    rows: int
    depth: int
    num_warps: int
    num_stages: int


ROW_CONFIGS: tuple[tuple[int, RowConfig], ...] = (
    (2048, RowConfig(rows=8, num_warps=8)),
    (16384, RowConfig(rows=4, num_warps=4)),
    (1 << 62, RowConfig(rows=8, num_warps=8)),
)
"""By outputs at most. One token to 1280, 3840 and 129,280 of them 2.4, 4.8 and 109 us (of 15 others the best 2.1, 4.7
and 108). H100, 3aebed2."""
TILE_CONFIGS: tuple[tuple[int, TileConfig], ...] = (
    (2048, TileConfig(rows=16, depth=128, num_warps=4, num_stages=5)),
    (16384, TileConfig(rows=32, depth=256, num_warps=4, num_stages=5)),
    (1 << 62, TileConfig(rows=64, depth=256, num_warps=4, num_stages=3)),
)
"""By outputs at most. 16 tokens to as many 4.1, 7.2 and 120 us (of 50 others the best 4.1, 7.0 and 122). H100,
3aebed2."""
INT8_ROW_CONFIGS: tuple[tuple[int, RowConfig], ...] = (
    (2048, RowConfig(rows=4, num_warps=4)),
    (16384, RowConfig(rows=8, num_warps=2)),
    (1 << 62, RowConfig(rows=16, num_warps=2)),
)
"""One token of 8-bit rows to 1280, 3840 and 129,280 outputs 1.8, 3.2 and 49 us (with the configurations of 16 bits 1.9,
4.3 and 68). H200, 558e320."""
INT8_TILE_CONFIGS: tuple[tuple[int, int, TileConfig], ...] = (
    (16, 2048, TileConfig(rows=16, depth=256, num_warps=4, num_stages=4)),
    (16, 16384, TileConfig(rows=32, depth=64, num_warps=4, num_stages=5)),
    (16, 1 << 62, TileConfig(rows=64, depth=128, num_warps=2, num_stages=3)),
    (1 << 62, 2048, TileConfig(rows=32, depth=128, num_warps=4, num_stages=4)),
    (64, 16384, TileConfig(rows=32, depth=128, num_warps=8, num_stages=4)),
    (1 << 62, 16384, TileConfig(rows=128, depth=64, num_warps=8, num_stages=4)),
    (1 << 62, 1 << 62, TileConfig(rows=128, depth=64, num_warps=4, num_stages=3)),
)
"""Of 8-bit rows by tokens and outputs at most. 16 tokens to 1280, 3840 and 129,280 outputs 4.0, 7.2 and 58 us, 64
tokens 7.3, 13.3 and 99, 256 tokens 9.4, 21 and 357 (64 rows, depth 64, 4 warps, as before, 11.6, 18.4 and 149, then
12.1, 23.9 and 552). H200, 558e320."""


@triton.jit
def normed_part(
    x: tl.tensor, norm: tl.tensor, scale: tl.tensor, width: tl.constexpr, start: tl.constexpr, PART: tl.constexpr
) -> tl.tensor:
    """A part of a token, times `scale` and the norm's weights, rounded where the norm rounds."""
    column = start + tl.arange(0, PART)
    inside = column < width
    value = tl.load(x + column, inside, other=0.0)
    scaled = (value.to(tl.float32) * scale).to(value.dtype)
    return (scaled.to(tl.float32) * tl.load(norm + column, inside, other=0.0).to(tl.float32)).to(value.dtype)


@triton.jit
def square_sum(x: tl.tensor, width: tl.constexpr, start: tl.constexpr, PART: tl.constexpr) -> tl.tensor:
    """Sum of squares over a part of a token."""
    column = start + tl.arange(0, PART)
    value = tl.load(x + column, column < width, other=0.0).to(tl.float32)
    return tl.sum(value * value)


@triton.jit
def _one_token(
    x: tl.tensor,
    norm: tl.tensor,
    weight: tl.tensor,
    scales: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    num_outputs: tl.tensor,
    WIDTH: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    ROWS: tl.constexpr,
    NORM: tl.constexpr,
    ADD: tl.constexpr,
    SCALED: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Rows of weights times one token; grid `[row groups, tokens]`."""
    token = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_inside = row[:, None] < num_outputs
    starts = weight + row[:, None].to(tl.int64) * WIDTH
    column = tl.arange(0, FIRST)[None]
    first = tl.load(starts + column, row_inside & (column < WIDTH), other=0.0)
    if SECOND > 0:
        column = FIRST + tl.arange(0, SECOND)[None]
        second = tl.load(starts + column, row_inside & (column < WIDTH), other=0.0)
    if SCALED:
        factor = tl.load(scales + row, row < num_outputs, other=0.0)
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    x += token * WIDTH
    if NORM:
        squares = square_sum(x, WIDTH, 0, FIRST)
        if SECOND > 0:
            squares += square_sum(x, WIDTH, FIRST, SECOND)
        scale = tl.rsqrt(squares / WIDTH + eps)
        sums = tl.sum(first.to(tl.float32) * normed_part(x, norm, scale, WIDTH, 0, FIRST)[None].to(tl.float32), 1)
        if SECOND > 0:
            part = normed_part(x, norm, scale, WIDTH, FIRST, SECOND)
            sums += tl.sum(second.to(tl.float32) * part[None].to(tl.float32), 1)
    else:
        column = tl.arange(0, FIRST)
        part = tl.load(x + column, column < WIDTH, other=0.0)
        sums = tl.sum(first.to(tl.float32) * part[None].to(tl.float32), 1)
        if SECOND > 0:
            column = FIRST + tl.arange(0, SECOND)
            part = tl.load(x + column, column < WIDTH, other=0.0)
            sums += tl.sum(second.to(tl.float32) * part[None].to(tl.float32), 1)
    if SCALED:
        sums *= factor
    target = token * num_outputs + row
    if ADD:
        sums += tl.load(residual + target, row < num_outputs, other=0.0).to(tl.float32)
    tl.store(out + target, sums.to(out.dtype.element_ty), row < num_outputs)


@triton.jit(do_not_specialize=["num_tokens"])
def _few_tokens(
    x: tl.tensor,
    norm: tl.tensor,
    weight: tl.tensor,
    scales: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    num_tokens: tl.tensor,
    num_outputs: tl.tensor,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    TILES: tl.constexpr,
    NORM: tl.constexpr,
    ADD: tl.constexpr,
    SCALED: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Rows of weights times one tile of tokens; grid `[row groups * tiles]`."""
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    token = tl.arange(0, TOKENS)
    if TILES > 1:
        # Neighbours read the same weights.
        token += tl.program_id(0) % TILES * TOKENS
    token_inside = (token < num_tokens)[:, None]
    row = tl.program_id(0) // TILES * ROWS + tl.arange(0, ROWS)
    row_inside = (row < num_outputs)[:, None]
    depth = tl.arange(0, DEPTH)[None]
    xs = x + token[:, None] * WIDTH + depth
    weights = weight + row[:, None].to(tl.int64) * WIDTH + depth
    scale = tl.full([TOKENS], 1.0, tl.float32)
    if NORM:
        squares = tl.zeros([TOKENS, DEPTH], tl.float32)
        for start in range(0, WIDTH, DEPTH):
            value = tl.load(xs + start, token_inside & (start + depth < WIDTH), other=0.0).to(tl.float32)
            squares += value * value
        scale = tl.rsqrt(tl.sum(squares, 1) / WIDTH + eps)
    sums = tl.zeros([TOKENS, ROWS], tl.float32)
    for start in range(0, WIDTH, DEPTH):
        inside = start + depth < WIDTH
        value = tl.load(xs + start, token_inside & inside, other=0.0)
        if NORM:
            scaled = (value.to(tl.float32) * scale[:, None]).to(value.dtype).to(tl.float32)
            value = (scaled * tl.load(norm + start + depth, inside, other=0.0).to(tl.float32)).to(value.dtype)
        rows = tl.load(weights + start, row_inside & inside, other=0.0)
        sums = tl.dot(value, rows.to(value.dtype).T, sums, input_precision="ieee")
    if SCALED:
        sums *= tl.load(scales + row, row < num_outputs, other=0.0)[None]
    target = token[:, None] * num_outputs + row[None]
    inside = token_inside & (row < num_outputs)[None]
    if ADD:
        sums += tl.load(residual + target, inside, other=0.0).to(tl.float32)
    tl.store(out + target, sums.to(out.dtype.element_ty), inside)


def linear(x_TH: Tensor, weight_OH: Weight) -> Tensor:
    """See `reference.linear`."""
    if not _is_small(x_TH, weight_OH):
        return F.linear(x_TH, in_full(weight_OH, x_TH.dtype))
    return _multiply(x_TH, None, 0.0, weight_OH, None)


def norm_linear(x_TH: Tensor, norm_H: Tensor, eps: float, weight_OH: Weight) -> Tensor:
    """See `reference.norm_linear`."""
    if not _is_small(x_TH, weight_OH):
        return F.linear(rms_norm(x_TH, norm_H, eps), in_full(weight_OH, x_TH.dtype))
    return _multiply(x_TH, norm_H, eps, weight_OH, None)


def linear_add(x_TH: Tensor, weight_OH: Weight, residual_TO: Tensor) -> None:
    """See `reference.linear_add`."""
    if not _is_small(x_TH, weight_OH):
        residual_TO.addmm_(x_TH, in_full(weight_OH, x_TH.dtype).t())
        return
    _multiply(x_TH, None, 0.0, weight_OH, residual_TO)


def _is_small(x_TH: Tensor, weight_OH: Weight) -> bool:
    most = MAX_INT8_TOKENS if isinstance(weight_OH, Int8Rows) else MAX_SMALL_TOKENS
    return 0 < x_TH.shape[0] <= most and x_TH.shape[1] <= MAX_HELD_WIDTH


def _multiply(x_TH: Tensor, norm_H: Tensor | None, eps: float, weight_OH: Weight, residual_TO: Tensor | None) -> Tensor:
    if x_TH.shape[0] == 1:
        return multiply_one(x_TH, norm_H, eps, weight_OH, residual_TO, row_config(weight_OH))
    return multiply_few(x_TH, norm_H, eps, weight_OH, residual_TO, tile_config(x_TH.shape[0], weight_OH))


def row_config(weight_OH: Weight) -> RowConfig:
    """How one token is multiplied with such weights."""
    configs = INT8_ROW_CONFIGS if isinstance(weight_OH, Int8Rows) else ROW_CONFIGS
    return next(config for most, config in configs if len(weight_OH) <= most)


def tile_config(tokens: int, weight_OH: Weight) -> TileConfig:
    """How so many tokens are multiplied with such weights."""
    outputs = len(weight_OH)
    if isinstance(weight_OH, Int8Rows):
        return next(config for most, widest, config in INT8_TILE_CONFIGS if tokens <= most and outputs <= widest)
    return next(config for widest, config in TILE_CONFIGS if outputs <= widest)


def multiply_one(
    x_TH: Tensor,
    norm_H: Tensor | None,
    eps: float,
    weight_OH: Weight,
    residual_TO: Tensor | None,
    config: RowConfig,
) -> Tensor:
    """Each token for itself, `normed(x) @ weight.T + residual` in place of the residual, if there is one."""
    (tokens, width), outputs = x_TH.shape, len(weight_OH)
    weight, scale = levels_of(weight_OH)
    _require_contiguous(x_TH, weight, scale)
    out_TO = torch.empty(tokens, outputs, dtype=x_TH.dtype, device=x_TH.device) if residual_TO is None else residual_TO
    first, second = split_width(width)
    is_early = early(x_TH.device, tokens)
    launch(
        _one_token, (triton.cdiv(outputs, config.rows), tokens),
        x_TH, norm_H, weight, scale, residual_TO, out_TO, eps, outputs,
        WIDTH=width, FIRST=first, SECOND=second, ROWS=config.rows,
        NORM=norm_H is not None, ADD=residual_TO is not None, SCALED=scale is not None, EARLY=is_early,
        **launch_options(config.num_warps, 1, is_early),
    )  # fmt: skip
    return out_TO


def multiply_few(
    x_TH: Tensor,
    norm_H: Tensor | None,
    eps: float,
    weight_OH: Weight,
    residual_TO: Tensor | None,
    config: TileConfig,
) -> Tensor:
    """All tokens, 64 of them in one pass over the weights."""
    (tokens, width), outputs = x_TH.shape, len(weight_OH)
    weight, scale = levels_of(weight_OH)
    _require_contiguous(x_TH, weight, scale)
    out_TO = torch.empty(tokens, outputs, dtype=x_TH.dtype, device=x_TH.device) if residual_TO is None else residual_TO
    tile_tokens = min(MAX_TILE_TOKENS, max(16, triton.next_power_of_2(tokens)))
    tiles = triton.cdiv(tokens, tile_tokens)
    is_early = early(x_TH.device, tokens)
    launch(
        _few_tokens, (triton.cdiv(outputs, config.rows) * tiles,),
        x_TH, norm_H, weight, scale, residual_TO, out_TO, eps, tokens, outputs,
        WIDTH=width, TOKENS=tile_tokens, ROWS=config.rows, DEPTH=config.depth, TILES=tiles,
        NORM=norm_H is not None, ADD=residual_TO is not None, SCALED=scale is not None, EARLY=is_early,
        **launch_options(config.num_warps, config.num_stages, is_early),
    )  # fmt: skip
    return out_TO


def _require_contiguous(*tensors: Tensor | None) -> None:
    for tensor in tensors:
        assert tensor is None or tensor.is_contiguous(), "kernels of linear need contiguous tensors"
