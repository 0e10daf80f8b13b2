"""Matrix products of few tokens, bound by reading the weights; Triton.

Owns `linear`, `norm_linear` and `linear_add`. One token: each program holds its rows of weights in registers, so that
all its loads are in flight at once. Few tokens: tensor cores, one tile of 16 tokens. More: cuBLAS, except for 8-bit
rows, which cuBLAS would need dequantised; they use tiles of 64 tokens while reading weights dominates.
Stateless; used by the engine's single thread.

Shape letters: T tokens, H inputs, O outputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from service.engine.kernels.int8_rows import Int8Rows, Weight, in_full, levels_of
from service.engine.kernels.triton.launch import (
    early,
    launch,
    launch_options,
    let_next_start,
    split_width,
    wait_for_inputs,
)
from service.engine.kernels.triton.linear_sizes import (
    MAX_INT8_TOKENS,
    MAX_SMALL_TOKENS,
    RowConfig,
    TileConfig,
    row_config,
    tile_config,
)
from service.engine.kernels.triton.norm import rms_norm

MAX_TILE_TOKENS = 64
"""Larger tiles were not tried: only more than 64 tokens of 8-bit rows would have them."""
MAX_HELD_WIDTH = 8192
"""Inputs of a row that a program can hold."""


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
        # Adjacent programs read the same weights.
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
