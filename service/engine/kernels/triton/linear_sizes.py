"""Tile sizes of `linear` by number of tokens, number of outputs and weight type. No kernel, no device."""

from __future__ import annotations

from dataclasses import dataclass

from service.engine.kernels.int8_rows import Int8Rows, Weight

MAX_SMALL_TOKENS = 16
"""More tokens go to cuBLAS. 16 tokens to 1280, 3840 and 129,280 outputs 4.1, 7.2 and 120 us, 24 tokens 5.2, 9.0 and 126
at best; cuBLAS, its norm by itself, takes 7.5 and 123 for the last two of 16, and 4.5, 7.5 and 125 for 24. H100,
3aebed2."""
MAX_INT8_TOKENS = 256
"""The same for 8-bit rows: as many as a decode step has rows, so that the head, the widest of all products, is never
there in full. 256 tokens to 1280, 3840 and 129,280 outputs 9.4, 21 and 357 us (rows widened for cuBLAS more than 11, 27
and 763). H200, 558e320."""


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
