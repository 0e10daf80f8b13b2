"""Adapters of routed experts, Triton: a mixture whose experts carry low-rank sums, a token those of its own adapter.

Owns `mixture_lora` and `mixture_lora_add`. Pairs of token and choice are sorted a second time, by adapter and expert
together, so a tile has one low-rank pair of matrices; two kernels, down to the rank and up again, run over those tiles
before the activation and after it. The base's products are `expert_tiles`', which take what is to be added to gates
and ups. A token's result does not depend on the other rows. Nothing waits for the host. Stateless; used by the engine's
single thread.

Shape letters: T tokens, H hidden width, E experts, K experts per token, I expert width, J = 2 * I, S slots, R rank,
Q = parts * R, P pairs; a kind is slot * E + expert, and one more for the pairs of tokens without an adapter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.engine.kernels.int8_rows import Weight, levels_of
from service.engine.kernels.triton.expert_tiles import multiply_tiles, sum_pairs, tile_config
from service.engine.kernels.triton.launch import early, launch, launch_options, let_next_start, wait_for_inputs
from service.engine.kernels.triton.sorting import SortedPairs, sort_pairs
from service.engine.lora.bank import ExpertLowRank

FEW_PAIRS = 8192
"""Up to here tiles of 16 pairs: a decode step has few of one kind."""
FEW_TILE, MANY_TILE = 16, 32
DOWN_ROWS, DOWN_DEPTH = 16, 256
UP_COLUMNS = 128
KIND_PAIRS = 256
_NUM_WARPS, _NUM_STAGES = 2, 3
"""Mixtures of eight adapters of rank 16: 1, 16, 64, 256, 1024 and 4096 tokens 47, 131, 165, 209, 326 and 835 us (of
some thirty others the best 46, 130, 165, 208, 326 and 833; tiles of 16 and 64 pairs from 2048 on, depth 128, 64 columns
and 4 warps 54, 136, 182, 212, 365 and 956). H200, 558e320."""


@triton.jit(do_not_specialize=["num_pairs"])
def _name_kinds(
    experts: tl.tensor,
    slots: tl.tensor,
    kinds: tl.tensor,
    num_pairs: tl.tensor,
    NUM_CHOSEN: tl.constexpr,
    NUM_ROUTED: tl.constexpr,
    NUM_KINDS: tl.constexpr,
    PAIRS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Each pair's kind; grid `[pair groups]`."""
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    inside = pair < num_pairs
    slot = tl.load(slots + pair // NUM_CHOSEN, inside, other=-1)
    expert = tl.load(experts + pair, inside, other=0)
    tl.store(kinds + pair, tl.where(slot >= 0, slot * NUM_ROUTED + expert, NUM_KINDS), inside)


@triton.jit
def _pair_down(
    x: tl.tensor,
    pairs: tl.tensor,
    tile_kinds: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    NUM_KINDS: tl.constexpr,
    PAIRS_PER_X: tl.constexpr,
    WIDTH: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """`A x` of a tile's pairs; grid `[row groups, tiles]`."""
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    tile = tl.program_id(1)
    kind = tl.load(tile_kinds + tile)
    if (kind < 0) | (kind >= NUM_KINDS):
        return
    pair = tl.load(pairs + tile * PAIRS + tl.arange(0, PAIRS))
    pair_inside = (pair >= 0)[:, None]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_inside = (row < NUM_ROWS)[:, None]
    depth = tl.arange(0, DEPTH)[None]
    xs = x + (pair // PAIRS_PER_X)[:, None].to(tl.int64) * WIDTH + depth
    weights = weight + (kind.to(tl.int64) * NUM_ROWS + row[:, None]) * WIDTH + depth
    sums = tl.zeros([PAIRS, ROWS], tl.float32)
    for start in range(0, WIDTH, DEPTH):
        inside = start + depth < WIDTH
        value = tl.load(xs + start, pair_inside & inside, other=0.0)
        rows = tl.load(weights + start, row_inside & inside, other=0.0)
        sums = tl.dot(value, rows.T, sums, input_precision="ieee")
    target = out + pair[:, None].to(tl.int64) * NUM_ROWS + row[None]
    tl.store(target, sums.to(out.dtype.element_ty), pair_inside & (row < NUM_ROWS)[None])


@triton.jit
def _pair_up(
    low: tl.tensor,
    pairs: tl.tensor,
    tile_kinds: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    NUM_KINDS: tl.constexpr,
    NUM_OUTPUTS: tl.constexpr,
    PARTS: tl.constexpr,
    PART_WIDTH: tl.constexpr,
    RANK: tl.constexpr,
    RANK_TILE: tl.constexpr,
    PAIRS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ADD: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """`B low` of a tile's pairs, added or (zeros for pairs without an adapter) set; grid `[column groups, tiles]`."""
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    tile = tl.program_id(1)
    kind = tl.load(tile_kinds + tile)
    if kind < 0:
        return
    has_adapter = kind < NUM_KINDS
    if ADD and not has_adapter:
        return
    pair = tl.load(pairs + tile * PAIRS + tl.arange(0, PAIRS))
    pair_inside = (pair >= 0)[:, None]
    groups: tl.constexpr = (PART_WIDTH + COLUMNS - 1) // COLUMNS
    part = tl.program_id(0) // groups
    within = tl.program_id(0) % groups * COLUMNS + tl.arange(0, COLUMNS)
    column = part * PART_WIDTH + within
    rank = tl.arange(0, RANK_TILE)[None]
    rank_inside = (rank < RANK) & has_adapter
    lows = low + pair[:, None].to(tl.int64) * (PARTS * RANK) + part * RANK + rank
    value = tl.load(lows, pair_inside & rank_inside, other=0.0)
    weights = weight + (kind.to(tl.int64) * NUM_OUTPUTS + column[:, None]) * RANK + rank
    rows = tl.load(weights, (within < PART_WIDTH)[:, None] & rank_inside, other=0.0)
    sums = tl.dot(value, rows.T, input_precision="ieee")
    target = out + pair[:, None].to(tl.int64) * NUM_OUTPUTS + column[None]
    inside = pair_inside & (within < PART_WIDTH)[None]
    if ADD:
        sums += tl.load(target, inside, other=0.0).to(tl.float32)
    tl.store(target, sums.to(out.dtype.element_ty), inside)


def mixture_lora(
    x_TH: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_EJH: Weight,
    down_EHI: Weight,
    low: ExpertLowRank,
    slots_T: Tensor,
) -> Tensor:
    """See `reference.mixture_lora`."""
    out_TH = torch.empty_like(x_TH)
    _mix(x_TH, weights_TK, experts_TK, gate_up_EJH, down_EHI, low, slots_T, None, out_TH)
    return out_TH


def mixture_lora_add(
    x_TH: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_EJH: Weight,
    down_EHI: Weight,
    low: ExpertLowRank,
    slots_T: Tensor,
    residual_TH: Tensor,
) -> None:
    """See `reference.mixture_lora_add`."""
    _mix(x_TH, weights_TK, experts_TK, gate_up_EJH, down_EHI, low, slots_T, residual_TH, residual_TH)


def _mix(
    x_TH: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_EJH: Weight,
    down_EHI: Weight,
    low: ExpertLowRank,
    slots_T: Tensor,
    residual_TH: Tensor | None,
    out_TH: Tensor,
) -> None:
    (tokens, chosen), inner, (num_slots, num_routed) = experts_TK.shape, down_EHI.shape[2], low.up_A_SEQH.shape[:2]
    base = *levels_of(gate_up_EJH), *levels_of(down_EHI)
    for tensor in (x_TH, weights_TK, experts_TK, *base, slots_T, out_TH, *low.tensors):
        assert tensor is None or tensor.is_contiguous(), "mixture_lora needs contiguous tensors"
    if not tokens:
        return
    num_pairs = tokens * chosen
    num_kinds = num_slots * num_routed
    kinds_TK = torch.empty_like(experts_TK)
    is_early = early(x_TH.device, tokens)
    launch(
        _name_kinds, (triton.cdiv(num_pairs, KIND_PAIRS),),
        experts_TK, slots_T, kinds_TK, num_pairs,
        NUM_CHOSEN=chosen, NUM_ROUTED=num_routed, NUM_KINDS=num_kinds, PAIRS=KIND_PAIRS, EARLY=is_early,
        **launch_options(_NUM_WARPS, 1, is_early),
    )  # fmt: skip
    kinds = sort_pairs(kinds_TK, num_kinds + 1, FEW_TILE if num_pairs <= FEW_PAIRS else MANY_TILE)
    extra = torch.empty(num_pairs, 2 * inner, dtype=x_TH.dtype, device=x_TH.device)
    _add_low(x_TH, kinds, low.up_A_SEQH, low.up_B_SEJR, extra, chosen, is_set=True)
    config = tile_config(x_TH, gate_up_EJH)
    order = sort_pairs(experts_TK, len(gate_up_EJH), config.pairs)
    activated, results = multiply_tiles(x_TH, order, chosen, gate_up_EJH, down_EHI, config, extra)
    _add_low(activated, kinds, low.down_A_SERI, low.down_B_SEHR, results, 1, is_set=False)
    sum_pairs(results, weights_TK, residual_TH, out_TH)


def _add_low(
    x: Tensor, kinds: SortedPairs, A_SEQI: Tensor, B_SEOR: Tensor, out: Tensor, pairs_per_x: int, *, is_set: bool
) -> None:
    """`out = B (A x)`, or added to it, pair by pair."""
    (slots, num_experts, num_rows, width), (outputs, rank) = A_SEQI.shape, B_SEOR.shape[2:]
    parts, tile = num_rows // rank, len(kinds.pairs) // kinds.num_tiles
    is_early = early(x.device, len(x))
    options = launch_options(_NUM_WARPS, _NUM_STAGES, is_early)
    low = torch.empty(len(out), num_rows, dtype=x.dtype, device=x.device)
    launch(
        _pair_down, (triton.cdiv(num_rows, DOWN_ROWS), kinds.num_tiles),
        x, kinds.pairs, kinds.tile_experts, A_SEQI, low,
        NUM_KINDS=slots * num_experts, PAIRS_PER_X=pairs_per_x, WIDTH=width, NUM_ROWS=num_rows, PAIRS=tile,
        ROWS=DOWN_ROWS, DEPTH=DOWN_DEPTH, EARLY=is_early, **options,
    )  # fmt: skip
    launch(
        _pair_up, (parts * triton.cdiv(outputs // parts, UP_COLUMNS), kinds.num_tiles),
        low, kinds.pairs, kinds.tile_experts, B_SEOR, out,
        NUM_KINDS=slots * num_experts, NUM_OUTPUTS=outputs, PARTS=parts, PART_WIDTH=outputs // parts, RANK=rank,
        RANK_TILE=max(16, triton.next_power_of_2(rank)), PAIRS=tile, COLUMNS=UP_COLUMNS, ADD=not is_set,
        EARLY=is_early, **options,
    )  # fmt: skip
