"""Candidates for the tiles of products, mixtures and attention; see `kernel_sweep.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks import kernel_speed as bench
from benchmarks.sweep import Sweep
from service.engine.gpu.paged_cache import BLOCK_TOKENS
from service.engine.kernels.int8_rows import Int8Rows, in_full, to_int8
from service.engine.kernels.triton import attention, expert_pairs, expert_tiles, linear, linear_sizes, norm, prefill
from service.engine.kernels.triton import decoder as fused
from shared.deepseek_ocr.nano_config import nano_config

LIBRARY = "cuBLAS"
"""The configuration that stands for a product by the library."""
ROWS = [linear_sizes.RowConfig(*values) for values in product((2, 4, 8, 16, 32), (2, 4, 8))]
TILES = [
    linear_sizes.TileConfig(*values)
    for values in product((16, 32, 64), (64, 128, 256), (2, 4), (3, 4, 5))
    if values[0] * values[1] * values[3] <= 50_000
]
WIDE_TILES = [
    linear_sizes.TileConfig(*values)
    for values in product((32, 64, 128), (64, 128), (4, 8), (3, 4))
    if values[0] * values[1] * values[3] <= 33_000
]
OUTPUTS = (("qkv", 3 * bench.HIDDEN), ("o", bench.HIDDEN), ("head", bench.VOCABULARY))


def _weights(outputs: int, *, is_int8: bool) -> list[Any]:
    count = bench.copies_for(outputs * bench.HIDDEN * (1 if is_int8 else 2))
    weights = (bench.noise(outputs, bench.HIDDEN) for _ in range(count))
    return [to_int8(weight, weight.device) if is_int8 else weight for weight in weights]


def _linear_sweep(name: str, weights: list[Any], tokens: int, configs: list[Any], chosen: Any) -> Sweep:
    outputs, is_int8 = len(weights[0]), isinstance(weights[0], Int8Rows)
    x = bench.noise(tokens, bench.HIDDEN)
    residual = bench.noise(tokens, outputs) if name == "o" else None
    scale = None if name == "o" else bench.noise(bench.HIDDEN)

    def call(config: Any, i: int) -> object:
        if config == LIBRARY:
            weight = in_full(weights[i], x.dtype)
            if residual is not None:
                return residual.addmm_(x, weight.t())
            assert scale is not None
            return F.linear(norm.rms_norm(x, scale, bench.EPS), weight)
        function: Any = linear.multiply_one if isinstance(config, linear_sizes.RowConfig) else linear.multiply_few
        return function(x, scale, bench.EPS, weights[i], residual, config)

    kind = " int8" if is_int8 else ""
    return Sweep(f"linear{kind} {name} {tokens}", configs, len(weights), call, chosen)


def linear_sweeps() -> list[Sweep]:
    """Products of one token and of few, and those that the library may take over."""
    sweeps = []
    for name, outputs in OUTPUTS:
        weights = _weights(outputs, is_int8=False)
        sweep = partial(_linear_sweep, name, weights)
        sweeps.append(sweep(1, [*ROWS, LIBRARY], linear_sizes.row_config(weights[0])))
        sweeps += [sweep(tokens, [*TILES, LIBRARY], linear_sizes.tile_config(tokens, weights[0])) for tokens in (4, 16)]
        sweeps += [sweep(tokens, WIDE_TILES, LIBRARY) for tokens in (24, 64)]
    return sweeps


def int8_sweeps() -> list[Sweep]:
    """The same for 8-bit rows."""
    sweeps = []
    for name, outputs in OUTPUTS:
        weights = _weights(outputs, is_int8=True)
        sweep = partial(_linear_sweep, name, weights)
        sweeps.append(sweep(1, ROWS, linear_sizes.row_config(weights[0])))
        sweeps.append(sweep(16, TILES, linear_sizes.tile_config(16, weights[0])))
        wide = [*WIDE_TILES, LIBRARY]
        sweeps += [sweep(tokens, wide, linear_sizes.tile_config(tokens, weights[0])) for tokens in (64, 256)]
    for tokens in (4, 16, 64, 256, 1024, 4096):
        sweeps.append(_mixture_sweep(tokens, _mixture_tiles(tokens), _layers(4, is_int8=True), " int8"))
    return sweeps


def _layers(count: int, *, is_int8: bool = False) -> list[tuple[Any, Any]]:
    num, inner, hidden = bench.EXPERTS + bench.SHARED, bench.INNER, bench.HIDDEN
    layers: list[tuple[Any, Any]] = [
        (bench.noise(num, 2 * inner, hidden), bench.noise(num, hidden, inner))
        for _ in range(count if bench.L2_BYTES else 1)
    ]
    if is_int8:
        layers = [(to_int8(up, up.device), to_int8(down, down.device)) for up, down in layers]
    return layers


def _mixture_tiles(tokens: int) -> list[Any]:
    if tokens <= 64:
        return [
            expert_tiles.TileConfig(16, up, down, depth, warps, stages)
            for (up, down), depth, warps, stages in product(
                ((16, 32), (32, 64), (64, 64)), (64, 128), (2, 4), (3, 4, 5)
            )
        ]
    if tokens <= 768:
        return [
            expert_tiles.TileConfig(pairs, up, down, depth, 4, stages)
            for pairs, (up, down), depth, stages in product(
                (16, 32, 64), ((32, 64), (64, 64), (64, 128)), (64, 128), (3, 4)
            )
            if (2 * up + pairs) * depth * stages * 2 <= 230_000
        ]
    return [
        expert_tiles.TileConfig(pairs, up, down, 64, warps, stages)
        for pairs, (up, down), warps, stages in product((64, 128), ((64, 128), (128, 128), (128, 256)), (4, 8), (3, 4))
        if (2 * up + pairs) * 64 * stages * 2 <= 230_000
    ]


def _mixture_sweep(tokens: int, configs: list[Any], layers: list[Any], kind: str = "") -> Sweep:
    dtype = torch.float32 if getattr(layers[0][0], "dtype", None) == torch.float32 else torch.bfloat16
    hidden = layers[0][1].shape[1]
    x, residual = (bench.noise(tokens, hidden, dtype=dtype) for _ in range(2))
    experts = len(layers[0][0]) - bench.SHARED
    num_chosen = bench.CHOSEN if experts == bench.EXPERTS else nano_config().text_config.num_experts_per_tok
    gate = bench.noise(experts, hidden, dtype=torch.float32)
    routed = fused.route(x, gate, num_chosen, False, 1.0, bench.SHARED)

    def call(config: Any, i: int) -> None:
        mix: Any = expert_pairs.mix_pairs if isinstance(config, expert_pairs.PairConfig) else expert_tiles.mix_tiles
        gate_up, down = layers[i]
        mix(x, *routed, gate_up, down, residual, residual, config)

    is_pairs = isinstance(configs[0], expert_pairs.PairConfig)
    chosen = expert_pairs.PAIR_CONFIG if is_pairs else expert_tiles.tile_config(x, layers[0][0])
    return Sweep(f"mixture{kind} {'pairs' if is_pairs else 'tiles'} {tokens}", configs, len(layers), call, chosen)


def mixture_sweeps() -> list[Sweep]:
    """Experts of one to 32 tokens."""
    layers = _layers(4)
    ups = [expert_pairs.PairConfig(*values, 2, 4) for values in product((2, 4, 8, 16), (2, 4, 8))]
    downs = [expert_pairs.PairConfig(8, 4, *values) for values in product((1, 2, 4, 8), (2, 4, 8))]
    both = [expert_pairs.PairConfig(*up, *down) for up, down in product(((4, 4), (8, 4), (8, 8), (16, 2)), ((1, 4),))]
    pairs = [_mixture_sweep(tokens, ups + downs + both, layers) for tokens in (1, 2)]
    return pairs + [_mixture_sweep(tokens, _mixture_tiles(tokens), layers) for tokens in (2, 4, 16, 32)]


def wide_sweeps() -> list[Sweep]:
    """Experts of many tokens."""
    layers = _layers(2)
    return [_mixture_sweep(tokens, _mixture_tiles(tokens), layers) for tokens in (64, 128, 256, 512, 768, 1024, 4096)]


def float32_sweeps() -> list[Sweep]:
    """What nano takes in float32, at its dimensions."""
    text = nano_config().text_config
    num, inner, hidden = text.n_routed_experts + text.n_shared_experts, text.moe_intermediate_size, text.hidden_size
    layers = [
        (
            bench.noise(num, 2 * inner, hidden, dtype=torch.float32),
            bench.noise(num, hidden, inner, dtype=torch.float32),
        )
        for _ in range(6)
    ]
    tiles = [
        expert_tiles.TileConfig(pairs, up, down, depth, warps, 2)
        for pairs, (up, down), depth, warps in product((16, 32), ((16, 32), (32, 32), (64, 64)), (32, 64), (2, 4, 8))
    ]
    prompts = [prefill.PrefillConfig(*values) for values in product((16, 32), (16, 32, 64), (2, 4, 8), (1, 2))]
    mixtures = [_mixture_sweep(tokens, tiles, layers, " float32") for tokens in (4, 16, 64, 128, 240, 480, 1800)]
    heads, width = text.num_attention_heads, text.head_dim
    return mixtures + [_prompt_sweep(4, length, heads, width, torch.float32, prompts) for length in (120, 450)]


def _prompt_sweep(
    prompts: int, length: int, heads: int, width: int, dtype: torch.dtype, configs: list[prefill.PrefillConfig]
) -> Sweep:
    tokens = prompts * length
    q, k, v = bench.noise(tokens, 3, heads, width, dtype=dtype).unbind(1)
    starts = torch.arange(prompts + 1, dtype=torch.int32, device="cuda") * length

    def call(config: Any, _: int) -> object:
        return prefill.attend_prompts(q, k, v, starts, length, width**-0.5, config)

    is_wide = dtype == torch.float32
    chosen = prefill.FLOAT32_CONFIG if is_wide else prefill.CONFIG
    kind = " float32" if is_wide else ""
    return Sweep(f"prefill_attention{kind} {prompts} x {length}", list(configs), 2, call, chosen)


def prefill_sweeps() -> list[Sweep]:
    """Attention within whole prompts."""
    tiles = [
        prefill.PrefillConfig(*values)
        for values in product((32, 64, 128), (32, 64, 128), (4, 8), (2, 3, 4))
        if (values[0] + 2 * values[1] * values[3]) * bench.WIDTH * 2 <= 220_000
    ]
    sizes = ((1, 276), (15, 276), (1, 906), (4, 906), (1, 4096))
    return [_prompt_sweep(*size, bench.HEADS, bench.WIDTH, torch.bfloat16, tiles) for size in sizes]


def attention_sweeps() -> list[Sweep]:
    """One new token a row, by tile and shares; and by the cache's blocks."""
    sweeps = []
    # Others were slower at every size.
    tiles = [
        attention.AttentionConfig(*values)
        for values in (
            (8, 1, 1), (8, 1, 2), (16, 1, 2), (16, 2, 1), (16, 2, 2), (32, 2, 2), (32, 4, 1), (32, 4, 2), (64, 4, 1),
            (64, 4, 2),
        )
    ]  # fmt: skip
    for rows, context, shares in (
        (1, 530, (8, 16, 32)),
        (1, 1200, (8, 16, 32)),
        (1, 4000, (16, 32)),
        (2, 530, (8, 16, 32)),
        (4, 530, (8, 16, 32)),
        (8, 530, (4, 8, 16)),
        (16, 530, (2, 4, 8)),
        (16, 2000, (2, 4, 8)),
        (32, 530, (1, 2, 4)),
        (64, 530, (1, 2)),
        (96, 530, (1, 2)),
        (128, 530, (1, 2)),
        (256, 530, (1,)),
        (256, 1200, (1,)),
    ):
        inputs = bench.attention_inputs(rows, _context(context))

        def call(config: Any, i: int, inputs: Any = inputs) -> object:
            attend: Any = attention.attend
            return attend(*inputs.arguments(i), config=config[0], shares=config[1])

        configs = list(product(tiles, shares))
        chosen = attention.config_for(rows * bench.HEADS), attention.shares_for(rows * bench.HEADS)
        sweeps.append(Sweep(f"decode_attention {rows} x {context}", configs, len(inputs.caches), call, chosen))
    return [*sweeps, *_block_sweeps()]


def _context(tokens: int) -> int:
    """Tokens of a row; compiling does not depend on them."""
    return tokens if bench.L2_BYTES else 200


def _block_sweeps() -> list[Sweep]:
    """Tiles stay as they are, but for blocks that are smaller."""
    sweeps = []
    for rows, context in ((1, 530), (16, 530), (256, 530)):
        blocks = {block: bench.attention_inputs(rows, _context(context), block) for block in (16, 32, 64, 128)}

        def call(block: int, i: int, blocks: Any = blocks) -> object:
            attend: Any = attention.attend
            tile = attention.config_for(len(blocks[block].qkv) * bench.HEADS)
            return attend(*blocks[block].arguments(i), config=replace(tile, tokens=min(block, tile.tokens)))

        copies = min(len(inputs.caches) for inputs in blocks.values())
        sweeps.append(Sweep(f"cache block {rows} x {context}", list(blocks), copies, call, BLOCK_TOKENS))
    return sweeps


GROUPS: dict[str, Callable[[], list[Sweep]]] = {
    "attention": attention_sweeps,
    "prefill": prefill_sweeps,
    "linear": linear_sweeps,
    "wide": wide_sweeps,
    "int8": int8_sweeps,
    "mixture": mixture_sweeps,
    "float32": float32_sweeps,
}
