"""Sorting (token, expert) pairs by expert into tiles of one expert each, Triton.

Owns `sort_pairs`. One program an expert: it counts all experts' pairs, finds where its tiles begin and lists its pairs
in order. The order is the pairs' own, so the result is the same in every run. Stateless; used by the engine's single
thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.engine.kernels.triton.launch import early, launch, launch_options, let_next_start, wait_for_inputs

_BLOCK = 8192
_WARPS: tuple[tuple[int, int], ...] = ((1024, 4), (1 << 62, 8))
"""By pairs at most. 4, 64, 256 and 4096 tokens of 8 pairs take 1.8, 2.3, 3.9 and 27.6 us (blocks of 1024 and 4 warps
1.8, 2.4, 4.7 and 52.4). H200, 558e320."""


@dataclass(frozen=True, slots=True)
class SortedPairs:
    """Pairs in tiles."""

    pairs: Tensor
    """int32, tile after tile; -1 where a tile is not full."""
    tile_experts: Tensor
    """int32, each tile's expert; -1: the tile is empty."""

    @property
    def num_tiles(self) -> int:
        """Tiles, empty ones included."""
        return len(self.tile_experts)


@triton.jit(do_not_specialize=["num_pairs", "num_tiles"])
def _sort(
    experts: tl.tensor,
    pairs: tl.tensor,
    tile_experts: tl.tensor,
    num_pairs: tl.tensor,
    num_tiles: tl.tensor,
    NUM_EXPERTS: tl.constexpr,
    BINS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Grid `[experts]`."""
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    mine = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    # Lanes past the end get an expert number that does not exist.
    counts = tl.zeros([BINS], tl.int32)
    for start in range(0, num_pairs, BLOCK):
        expert = tl.load(experts + start + lane, start + lane < num_pairs, other=NUM_EXPERTS)
        counts += tl.histogram(expert, BINS)
    bins = tl.arange(0, BINS)
    tiles = tl.where(bins < NUM_EXPERTS, (counts + TILE - 1) // TILE, 0)
    first_tile = tl.sum(tl.where(bins < mine, tiles, 0))
    my_tiles = tl.sum(tl.where(bins == mine, tiles, 0))
    my_count = tl.sum(tl.where(bins == mine, counts, 0))

    target = pairs + first_tile * TILE
    listed = 0
    for start in range(0, num_pairs, BLOCK):
        expert = tl.load(experts + start + lane, start + lane < num_pairs, other=NUM_EXPERTS)
        is_mine = (expert == mine).to(tl.int32)
        rank = listed + tl.cumsum(is_mine, 0) - 1
        tl.store(target + rank, start + lane, is_mine != 0)
        listed += tl.sum(is_mine)
    free = my_count + tl.arange(0, TILE)
    tl.store(target + free, tl.full([TILE], -1, tl.int32), free < my_tiles * TILE)

    for start in range(0, my_tiles, BLOCK):
        tl.store(tile_experts + first_tile + start + lane, tl.zeros([BLOCK], tl.int32) + mine, start + lane < my_tiles)
    if mine == NUM_EXPERTS - 1:
        for start in range(first_tile + my_tiles, num_tiles, BLOCK):
            tl.store(tile_experts + start + lane, tl.full([BLOCK], -1, tl.int32), start + lane < num_tiles)


def sort_pairs(experts_TK: Tensor, num_experts: int, tile: int) -> SortedPairs:
    """Sort pairs by expert.

    Args:
        experts_TK: int32, contiguous.
        num_experts: How many there are.
        tile: Pairs of a tile, a power of two.

    Returns:
        As many tiles as any choice of experts could need.
    """
    num_pairs = experts_TK.numel()
    num_tiles = min(num_experts, num_pairs) + num_pairs // tile
    device = experts_TK.device
    pairs = torch.empty(num_tiles * tile, dtype=torch.int32, device=device)
    tile_experts = torch.empty(num_tiles, dtype=torch.int32, device=device)
    is_early = early(device, len(experts_TK))
    num_warps = next(warps for most, warps in _WARPS if num_pairs <= most)
    launch(
        _sort, (num_experts,),
        experts_TK, pairs, tile_experts, num_pairs, num_tiles,
        NUM_EXPERTS=num_experts, BINS=triton.next_power_of_2(num_experts + 1), TILE=tile,
        BLOCK=min(_BLOCK, triton.next_power_of_2(num_pairs)), EARLY=is_early,
        **launch_options(num_warps, 1, is_early),
    )  # fmt: skip
    return SortedPairs(pairs, tile_experts)
