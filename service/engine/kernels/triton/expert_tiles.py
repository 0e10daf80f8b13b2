"""Mixture of experts for more than a few tokens, Triton: tiles of pairs that share an expert, on tensor cores.

Owns `mix_tiles` and its steps, which mixtures with adapters take one by one: the pairs are sorted by expert and cut
into tiles of one expert each (`sort_pairs`), two products run over the tiles, and each token sums its experts' results
in the order of its choices. Nothing waits for the host: the grid has as many tiles as could be needed, and idle
programs leave. Stateless; used by the engine's single thread.

Shape letters: T tokens, H hidden width, E experts, K experts per token, I expert width, J = 2 * I. A pair is
token * K + choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.engine.kernels.int8_rows import Int8Rows, Weight, levels_of
from service.engine.kernels.triton.expert_pairs import silu
from service.engine.kernels.triton.launch import early, launch, launch_options, let_next_start, wait_for_inputs
from service.engine.kernels.triton.sorting import SortedPairs, sort_pairs


@dataclass(frozen=True, slots=True)
class TileConfig:
    """How tiles of pairs are multiplied."""

    pairs: int
    """Of a tile."""
    up_columns: int
    """Gates, and as many ups, of a program."""
    down_columns: int
    depth: int
    num_warps: int
    num_stages: int


TILE_CONFIGS: tuple[tuple[int, TileConfig], ...] = (
    (32, TileConfig(16, 32, 64, 128, 4, 5)),
    (128, TileConfig(32, 64, 128, 128, 4, 3)),
    (768, TileConfig(64, 64, 128, 64, 4, 3)),
    (1 << 62, TileConfig(128, 64, 128, 64, 8, 3)),
)
"""By tokens at most. 4, 16 and 32 tokens 47, 92 and 111 us (of 35 others the best 47, 91 and 109); 64, 128, 256, 512
and 768 tokens 122, 128, 134, 147 and 195 us (32 pairs of 64 and 64 columns 124, 130, 145 and 208); 1024 and 4096 tokens
194 and 532 us (four stages 226 of 64 pairs, and 634). H200, 558e320."""
INT8_TILE_CONFIGS: tuple[tuple[int, TileConfig], ...] = (
    (32, TileConfig(16, 32, 64, 128, 4, 5)),
    (64, TileConfig(16, 32, 64, 128, 4, 4)),
    (512, TileConfig(32, 64, 64, 128, 4, 3)),
    (1 << 62, TileConfig(128, 64, 128, 64, 8, 3)),
)
"""4, 16, 64, 256, 1024 and 4096 tokens 36, 62, 77, 99, 230 and 736 us (of 23 to 35 others the best 36, 62, 78, 100, 228
and 739). H200, 558e320."""
FLOAT32_TILE_CONFIGS: tuple[tuple[int, TileConfig], ...] = (
    (256, TileConfig(16, 32, 32, 64, 2, 2)),
    (1 << 62, TileConfig(32, 64, 64, 32, 2, 2)),
)
"""In float32 no tensor core multiplies, and larger tiles do not fit into shared memory. At nano's dimensions 4, 64,
240, 480 and 1800 tokens 24, 32, 46, 69 and 167 us (16 pairs of 32 columns, depth 32, 4 warps: 34 and 43, then 144 and
489 of 480 and 1800). H200, 558e320."""
_SUM_COLUMNS, _SUM_WARPS = 256, 1
"""16, 256 and 4096 tokens 1.6, 2.7 and 26.6 us (128 to 2048 columns and 1 to 4 warps: the best 1.8, 2.9 and 26.8).
H200, de9a6fa."""


@triton.jit
def _tile_up(
    x: tl.tensor,
    pairs: tl.tensor,
    tile_experts: tl.tensor,
    gate_up: tl.tensor,
    scales: tl.tensor,
    extra: tl.tensor,
    out: tl.tensor,
    NUM_CHOSEN: tl.constexpr,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    PAIRS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EXTRA: tl.constexpr,
    SCALED: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """`silu(gate) * up` of some features of a tile; grid `[feature groups, tiles]`."""
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    tile = tl.program_id(1)
    expert = tl.load(tile_experts + tile).to(tl.int64)
    if expert < 0:
        return
    pair = tl.load(pairs + tile * PAIRS + tl.arange(0, PAIRS))
    pair_inside = (pair >= 0)[:, None]
    row = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row_inside = (row < INNER)[:, None]
    depth = tl.arange(0, DEPTH)[None]
    xs = x + (pair // NUM_CHOSEN)[:, None].to(tl.int64) * HIDDEN + depth
    gates = gate_up + (expert * 2 * INNER + row[:, None]) * HIDDEN + depth
    ups = gates + INNER * HIDDEN
    gate = tl.zeros([PAIRS, COLUMNS], tl.float32)
    up = tl.zeros([PAIRS, COLUMNS], tl.float32)
    for start in range(0, HIDDEN, DEPTH):
        inside = start + depth < HIDDEN
        value = tl.load(xs + start, pair_inside & inside, other=0.0)
        gates_tile = tl.load(gates + start, row_inside & inside, other=0.0)
        gate = tl.dot(value, gates_tile.to(value.dtype).T, gate, input_precision="ieee")
        ups_tile = tl.load(ups + start, row_inside & inside, other=0.0)
        up = tl.dot(value, ups_tile.to(value.dtype).T, up, input_precision="ieee")
    if SCALED:
        rows = scales + expert * 2 * INNER + row
        gate *= tl.load(rows, row < INNER, other=0.0)[None]
        up *= tl.load(rows + INNER, row < INNER, other=0.0)[None]
    if EXTRA:
        extras = extra + pair[:, None].to(tl.int64) * 2 * INNER + row[None]
        inside = pair_inside & (row < INNER)[None]
        gate += tl.load(extras, inside, other=0.0).to(tl.float32)
        up += tl.load(extras + INNER, inside, other=0.0).to(tl.float32)
    activated = (silu(gate) * up).to(out.dtype.element_ty)
    tl.store(out + pair[:, None].to(tl.int64) * INNER + row[None], activated, pair_inside & (row < INNER)[None])


@triton.jit
def _tile_down(
    activated: tl.tensor,
    pairs: tl.tensor,
    tile_experts: tl.tensor,
    down: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    HIDDEN: tl.constexpr,
    INNER: tl.constexpr,
    PAIRS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SCALED: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Some features of a tile's results, pair by pair; grid `[feature groups, tiles]`."""
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    tile = tl.program_id(1)
    expert = tl.load(tile_experts + tile).to(tl.int64)
    if expert < 0:
        return
    pair = tl.load(pairs + tile * PAIRS + tl.arange(0, PAIRS)).to(tl.int64)
    pair_inside = (pair >= 0)[:, None]
    row = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row_inside = (row < HIDDEN)[:, None]
    depth = tl.arange(0, DEPTH)[None]
    values = activated + pair[:, None] * INNER + depth
    downs = down + (expert * HIDDEN + row[:, None]) * INNER + depth
    sums = tl.zeros([PAIRS, COLUMNS], tl.float32)
    for start in range(0, INNER, DEPTH):
        inside = start + depth < INNER
        value = tl.load(values + start, pair_inside & inside, other=0.0)
        downs_tile = tl.load(downs + start, row_inside & inside, other=0.0)
        sums = tl.dot(value, downs_tile.to(value.dtype).T, sums, input_precision="ieee")
    if SCALED:
        sums *= tl.load(scales + expert * HIDDEN + row, row < HIDDEN, other=0.0)[None]
    result = sums.to(out.dtype.element_ty)
    tl.store(out + pair[:, None] * HIDDEN + row[None], result, pair_inside & (row < HIDDEN)[None])


@triton.jit
def _sum_pairs(
    results: tl.tensor,
    weights: tl.tensor,
    residual: tl.tensor,
    out: tl.tensor,
    NUM_CHOSEN: tl.constexpr,
    HIDDEN: tl.constexpr,
    COLUMNS: tl.constexpr,
    ADD: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Each token's weighted sum over its choices; grid `[tokens, feature groups]`."""
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < HIDDEN
    sums = tl.zeros([COLUMNS], tl.float32)
    for choice in tl.static_range(NUM_CHOSEN):
        pair = token * NUM_CHOSEN + choice
        sums += tl.load(weights + pair) * tl.load(results + pair * HIDDEN + column, inside, other=0.0).to(tl.float32)
    if ADD:
        sums += tl.load(residual + token * HIDDEN + column, inside, other=0.0).to(tl.float32)
    tl.store(out + token * HIDDEN + column, sums.to(out.dtype.element_ty), inside)


def tile_config(x_TH: Tensor, weights: Weight) -> TileConfig:
    """How tiles of such tokens are multiplied with such weights."""
    configs = INT8_TILE_CONFIGS if isinstance(weights, Int8Rows) else TILE_CONFIGS
    if x_TH.dtype == torch.float32:
        configs = FLOAT32_TILE_CONFIGS
    return next(config for most, config in configs if len(x_TH) <= most)


def mix_tiles(
    x_TH: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_EJH: Weight,
    down_EHI: Weight,
    residual_TH: Tensor | None,
    out_TH: Tensor,
    config: TileConfig,
) -> None:
    """`out = mixture + residual`, the pairs sorted by expert."""
    order = sort_pairs(experts_TK, len(gate_up_EJH), config.pairs)
    _, results = multiply_tiles(x_TH, order, experts_TK.shape[1], gate_up_EJH, down_EHI, config)
    sum_pairs(results, weights_TK, residual_TH, out_TH)


def sum_pairs(results: Tensor, weights_TK: Tensor, residual_TH: Tensor | None, out_TH: Tensor) -> None:
    """`out = weighted sum of each token's results + residual`."""
    (tokens, hidden), chosen = out_TH.shape, weights_TK.shape[1]
    is_early = early(out_TH.device, tokens)
    launch(
        _sum_pairs, (tokens, triton.cdiv(hidden, _SUM_COLUMNS)),
        results, weights_TK, residual_TH, out_TH,
        NUM_CHOSEN=chosen, HIDDEN=hidden, COLUMNS=_SUM_COLUMNS, ADD=residual_TH is not None, EARLY=is_early,
        **launch_options(_SUM_WARPS, 1, is_early),
    )  # fmt: skip


def multiply_tiles(
    x_TH: Tensor,
    order: SortedPairs,
    num_chosen: int,
    gate_up_EJH: Weight,
    down_EHI: Weight,
    config: TileConfig,
    extra: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Each pair's expert, unweighted.

    Args:
        x_TH: Tokens.
        order: Their pairs by expert.
        num_chosen: K.
        gate_up_EJH: Gate rows over up rows.
        down_EHI: Down projections.
        config: How tiles are multiplied.
        extra: `[pairs, J]`, added to gates and ups before they are activated.

    Returns:
        What the downs took, `[pairs, I]`, and what they gave, `[pairs, H]`.
    """
    _, hidden, inner = down_EHI.shape
    (gate_up, gate_up_scale), (down, down_scale) = levels_of(gate_up_EJH), levels_of(down_EHI)
    num_pairs = len(x_TH) * num_chosen
    is_early = early(x_TH.device, len(x_TH))
    options = launch_options(config.num_warps, config.num_stages, is_early)
    activated = torch.empty(num_pairs, inner, dtype=x_TH.dtype, device=x_TH.device)
    launch(
        _tile_up, (triton.cdiv(inner, config.up_columns), order.num_tiles),
        x_TH, order.pairs, order.tile_experts, gate_up, gate_up_scale, extra, activated,
        NUM_CHOSEN=num_chosen, HIDDEN=hidden, INNER=inner, PAIRS=config.pairs, COLUMNS=config.up_columns,
        DEPTH=config.depth, EXTRA=extra is not None, SCALED=gate_up_scale is not None, EARLY=is_early, **options,
    )  # fmt: skip
    results = torch.empty(num_pairs, hidden, dtype=x_TH.dtype, device=x_TH.device)
    launch(
        _tile_down, (triton.cdiv(hidden, config.down_columns), order.num_tiles),
        activated, order.pairs, order.tile_experts, down, down_scale, results,
        HIDDEN=hidden, INNER=inner, PAIRS=config.pairs, COLUMNS=config.down_columns,
        DEPTH=config.depth, SCALED=down_scale is not None, EARLY=is_early, **options,
    )  # fmt: skip
    return activated, results
