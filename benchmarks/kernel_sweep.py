"""Which constants suit each kernel on this GPU: candidates are timed as in `kernel_speed.py`; needs CUDA.

The kernels choose nothing at run time. Their constants are set by hand from what this prints, so that a service starts
fast and always runs what was measured. Several processes first compile the candidates into Triton's cache, then one
times them.

    python benchmarks/kernel_sweep.py                    all groups, some five minutes with 16 cores
    python benchmarks/kernel_sweep.py linear routing     these; see GROUPS below
    python benchmarks/kernel_sweep.py --limit 90 wide    seconds for compiling, and as many for timing

A candidate is anything with a `str`: tiles that a kernel takes as an argument, or `Settings`, values for constants of a
kernel's module. Prints the chosen, the best and the worst for each kernel and size, and a JSON line; `--out FILE`
appends that to a file, `--out auto` to the committed results. Functions import Triton's kernels themselves, so that
`--help` works without Triton.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import kernel_speed as bench
from benchmarks.origin import command, keep, origin
from benchmarks.random_model import PAGE, SMALL
from service.engine.gpu.paged_cache import BLOCK_TOKENS
from service.engine.gpu.state import AnswerState
from service.engine.kernels.int8_rows import Int8Rows, in_full, to_int8
from service.engine.kernels.triton import linear_sizes
from service.engine.lora.bank import ExpertLowRank
from service.engine.vision.resize import prepare_views_on_device
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.geometry import GeometryConfig, plan_views
from shared.deepseek_ocr.nano_config import nano_config

SHOWN, KEPT = 2, 10
ALWAYS = 1 << 30
ADAPTERS, RANK = 8, 16
WARPS = (1, 2, 4, 8, 16)
VISION_PATCHES, VISION_CHANNELS = 65_536, 768
LIBRARY = "cuBLAS"
"""The configuration that means a product by the library."""
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


@dataclass(frozen=True, slots=True)
class Sweep:
    """One kernel at one size."""

    name: str
    configs: list[Any]
    copies: int
    call: Callable[[Any, int], object]
    """Does the work with a configuration and the copy of the given number."""
    chosen: Any
    """The configuration that the engine uses at this size; it is timed too."""
    prepare: Callable[[], object] = lambda: None
    """Called before each configuration."""

    @property
    def candidates(self) -> list[Any]:
        """All configurations, the chosen one first and each once."""
        return list({str(config): config for config in (self.chosen, *self.configs)}.values())


@dataclass(frozen=True, slots=True)
class Settings:
    """Values for constants of a module."""

    module: ModuleType
    values: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        return " ".join(f"{name.strip('_')}={value}" for name, value in self.values)


def combined(module: ModuleType, **values: Sequence[Any]) -> list[Settings]:
    """Every combination of the named constants' values."""
    return [Settings(module, tuple(zip(values, each, strict=True))) for each in product(*values.values())]


def one_by_one(module: ModuleType, **values: Sequence[Any]) -> list[Settings]:
    """Vary one of the named constants at a time; the others keep their values."""
    chosen = {name: getattr(module, name) for name in values}
    return [
        Settings(module, tuple((chosen | {name: value}).items())) for name, each in values.items() for value in each
    ]


def settings_sweep(
    name: str,
    settings: list[Settings],
    copies: int,
    call: Callable[[int], object],
    prepare: Callable[[], object] = lambda: None,
    **fixed: Any,
) -> Sweep:
    """A sweep over constants of one module.

    `fixed` names constants whose chosen value is another than the module's: what decides between two kernels, when only
    one of them is timed.
    """
    module = settings[0].module
    chosen = tuple((key, fixed.get(key, getattr(module, key))) for key, _ in settings[0].values)

    def with_settings(config: Settings, copy: int) -> object:
        with patch.multiple(module, **dict(config.values)):
            return call(copy)

    return Sweep(name, list(settings), copies, with_settings, Settings(module, chosen), prepare)


def norm_sweeps() -> list[Sweep]:
    """Norms, the beginning of a step, rotation, and each token's sum over its experts."""
    from service.engine.kernels.triton import expert_tiles, norm, rotary

    sweeps = []
    weight = bench.noise(bench.HIDDEN)
    for tokens in (1, 64, 256, 4096):
        x, residual = (bench.noise(tokens, bench.HIDDEN) for _ in range(2))

        def add(_: int, x: Any = x, residual: Any = residual) -> object:
            return norm.add_rms_norm(x, residual, weight, bench.EPS)

        sweeps.append(settings_sweep(f"add_rms_norm {tokens}", combined(norm, _NUM_WARPS=WARPS), 2, add))
    for tokens in (16, 256, 4096):
        columns = bench.CHOSEN + bench.SHARED
        results = [bench.noise(tokens * columns, bench.HIDDEN) for _ in range(2)]
        weights = torch.rand(tokens, columns, device="cuda")
        out = bench.noise(tokens, bench.HIDDEN)

        def sum_up(i: int, results: Any = results, weights: Any = weights, out: Any = out) -> None:
            expert_tiles.sum_pairs(results[i], weights, out, out)

        settings = combined(expert_tiles, _SUM_COLUMNS=(128, 256, 512, 1024, 2048), _SUM_WARPS=(1, 2, 4))
        sweeps.append(settings_sweep(f"sum_pairs {tokens}", settings, 2, sum_up))
    for tokens in (276, 4096):
        inputs = bench.attention_inputs(tokens, 1)

        def rotate(i: int, inputs: Any = inputs) -> None:
            rotary.rotate_and_store(*inputs.arguments(i)[:7])

        settings = combined(rotary, _NUM_WARPS=WARPS)
        sweeps.append(settings_sweep(f"rotate_and_store {tokens}", settings, len(inputs.caches), rotate))
    return [*sweeps, *_begin_sweeps()]


def _begin_sweeps() -> list[Sweep]:
    from service.engine.kernels.triton import step

    sweeps = []
    embeddings = bench.noise(bench.VOCABULARY, bench.HIDDEN)
    for rows in (1, 256):
        state = AnswerState.create(rows, 8192, LoopRule(), -1, "cuda")
        tables = torch.zeros(rows + 1, 64, dtype=torch.int32, device="cuda")
        slots = torch.arange(rows, device="cuda")

        def begin(_: int, slots: Any = slots, state: Any = state, tables: Any = tables) -> object:
            return step.begin_step(slots, state, embeddings, tables, BLOCK_TOKENS)

        sweeps.append(settings_sweep(f"begin_step {rows}", combined(step, _NUM_WARPS=WARPS), 2, begin))
    return sweeps


def routing_sweeps() -> list[Sweep]:
    """Both kernels of routing, which of them by number of tokens, and sorting."""
    from service.engine.kernels.triton import expert_tiles, routing, sorting

    sweeps: list[Sweep] = []
    gates = [bench.noise(bench.EXPERTS, bench.HIDDEN, scale=0.05, dtype=torch.float32) for _ in range(64)]
    weight = bench.noise(bench.HIDDEN)

    def router(tokens: int) -> Callable[[int], object]:
        x = bench.noise(tokens, bench.HIDDEN)
        return lambda i: routing.norm_route(
            x, weight, bench.EPS, gates[i], bench.CHOSEN, False, 1.0, num_shared=bench.SHARED
        )

    few = combined(routing, MAX_SHARED_TOKENS=(ALWAYS,), _EXPERTS_OF_PROGRAM=(2, 4, 8, 16), _FEW_WARPS=(1, 2, 4))
    many = combined(
        routing,
        MAX_SHARED_TOKENS=(0,),
        _TOKENS_OF_PROGRAM=(16, 32),
        _DEPTH=(64, 128),
        _MANY_WARPS=(2, 4),
        _MANY_STAGES=(3,),
        _PROGRAMS_WANTED=(256, 512),
        _MAX_SHARES=(1, 4, 8),
    )
    either = combined(routing, MAX_SHARED_TOKENS=(0, ALWAYS))
    sweeps += [
        settings_sweep(f"route {name} {tokens}", settings, 64, router(tokens), MAX_SHARED_TOKENS=limit)
        for name, settings, limit, sizes in (
            ("few", few, ALWAYS, (1, 16, 64, 128)),
            ("many", many, 0, (128, 256, 512, 1024, 4096)),
        )
        for tokens in sizes
    ]
    for tokens in (16, 64, 128, 192, 256, 512):
        now = ALWAYS if tokens <= routing.MAX_SHARED_TOKENS else 0
        sweeps.append(settings_sweep(f"route which {tokens}", either, 64, router(tokens), MAX_SHARED_TOKENS=now))
    for tokens in (4, 64, 256, 4096):
        _, experts = bench.routed(tokens)
        tile = next(config.pairs for most, config in expert_tiles.TILE_CONFIGS if tokens <= most)

        def sort(_: int, experts: Any = experts, tile: int = tile) -> object:
            return sorting.sort_pairs(experts, bench.EXPERTS + bench.SHARED, tile)

        warps = [((1 << 62, each),) for each in (2, 4, 8, 16)]
        settings = combined(sorting, _BLOCK=(512, 1024, 2048, 4096, 8192), _WARPS=warps)
        sweeps.append(settings_sweep(f"sort_pairs {tokens}", settings, 2, sort))
    return sweeps


def choose_sweeps() -> list[Sweep]:
    """The next token of every row."""
    from service.engine.kernels.triton import sampler as choose

    sweeps = []
    rule = LoopRule(min_tokens=1 << 20)
    for rows in (1, 16, 64, 256):
        state = AnswerState.create(rows, 8192, rule, -1, "cuda")
        slots = torch.arange(rows, device="cuda")
        copies = max(2, min(32, 600 // rows)) if bench.L2_BYTES else 1
        logits = [bench.noise(rows, bench.VOCABULARY) for _ in range(copies)]

        def reset(state: Any = state, rows: int = rows) -> None:
            # So that no row comes to its limit, after which it would do nothing.
            state.open(list(range(rows)), [276] * rows, [8192] * rows)

        def pick(i: int, logits: Any = logits, slots: Any = slots, state: Any = state) -> object:
            return choose.choose(logits[i], slots, state, rule)

        settings = combined(
            choose,
            _PROGRAMS_WANTED=(264, 528, 1056),
            _MAX_SHARES=(64, 128) if rows == 1 else (128,),
            _BLOCK=(512, 1024, 2048),
            **{"_FEW_WARPS" if rows <= choose._FEW_ROWS else "_MANY_WARPS": (4, 8)},
        )
        sweeps.append(settings_sweep(f"choose {rows}", settings, len(logits), pick, reset))
    return sweeps


def lora_sweeps() -> list[Sweep]:
    """Low-rank sums of eight adapters, query, key and value at once and out alone."""
    from service.engine.kernels.triton import lora

    sweeps = []
    hidden = bench.HIDDEN
    for name, parts in (("qkv", 3), ("out", 1)):
        copies = bench.copies_for(ADAPTERS * RANK * 2 * hidden * parts * 2)
        pairs = [
            (bench.noise(ADAPTERS, parts * RANK, hidden), bench.noise(ADAPTERS, parts * hidden, RANK))
            for _ in range(copies)
        ]
        for tokens in (1, 16, 64, 256, 1024, 4096):
            x, out = bench.noise(tokens, hidden), bench.noise(tokens, parts * hidden)
            slots = torch.arange(tokens, dtype=torch.int32, device="cuda") * ADAPTERS // tokens

            def add(i: int, x: Any = x, out: Any = out, pairs: Any = pairs, slots: Any = slots) -> None:
                down, up = pairs[i]
                lora.lora_add(x, out, down, up, slots, hidden)

            is_few = tokens <= lora.FEW_TOKENS
            kind = "FEW" if is_few else "MANY"
            settings = one_by_one(lora, **{
                f"{kind}_TILE": (16, 32, 64),
                f"{kind}_DEPTH": (64, 128, 256),
                f"{kind}_STAGES": (2, 3, 4),
                "SHARED_TOKENS": (0, 64, 128, 256, ALWAYS),
                "DOWN_ROWS": (16, 32),
                "UP_COLUMNS": (32, 64, 128, 256),
                "_NUM_WARPS": (2, 4, 8),
            })  # fmt: skip
            sweeps.append(settings_sweep(f"lora_add {name} {tokens}", settings, copies, add))
    for tokens in (1, 256, 4096):
        joined = bench.noise(tokens, 4 * bench.INNER)

        def gate(_: int, joined: Any = joined) -> object:
            return lora.gated(joined, bench.SHARED)

        settings = combined(lora, GATED_COLUMNS=(128, 256, 512, 1024, 2048), _NUM_WARPS=(1, 2, 4, 8))
        sweeps.append(settings_sweep(f"gated {tokens}", settings, 2, gate))
    return sweeps


def lora_experts_sweeps() -> list[Sweep]:
    """Mixtures whose routed experts have adapters."""
    from service.engine.kernels.triton import decoder as fused
    from service.engine.kernels.triton import lora_experts

    experts, inner, hidden = bench.EXPERTS, bench.INNER, bench.HIDDEN
    copies = bench.copies_for(6 * experts * inner * hidden)
    layers = [(bench.noise(experts, 2 * inner, hidden), bench.noise(experts, hidden, inner)) for _ in range(copies)]
    lows = [
        ExpertLowRank(
            bench.noise(ADAPTERS, experts, 2 * RANK, hidden),
            bench.noise(ADAPTERS, experts, 2 * inner, RANK),
            bench.noise(ADAPTERS, experts, RANK, inner),
            bench.noise(ADAPTERS, experts, hidden, RANK),
        )
        for _ in range(copies)
    ]
    gate = bench.noise(experts, hidden, dtype=torch.float32)
    sweeps = []
    for tokens in (1, 16, 64, 256, 1024, 4096):
        x, residual = bench.noise(tokens, hidden), bench.noise(tokens, hidden)
        slots = torch.arange(tokens, dtype=torch.int32, device="cuda") * ADAPTERS // tokens
        routed = fused.route(x, gate, bench.CHOSEN, False, 1.0, 0)

        def mix(i: int, x: Any = x, slots: Any = slots, routed: Any = routed, residual: Any = residual) -> None:
            (weights, chosen), (gate_up, down) = routed, layers[i]
            lora_experts.mixture_lora_add(x, weights, chosen, gate_up, down, lows[i], slots, residual)

        is_few = tokens * bench.CHOSEN <= lora_experts.FEW_PAIRS
        settings = one_by_one(lora_experts, **{
            "FEW_TILE" if is_few else "MANY_TILE": (16, 32, 64),
            "DOWN_ROWS": (16, 32),
            "DOWN_DEPTH": (128, 256),
            "UP_COLUMNS": (64, 128, 256),
            "KIND_PAIRS": (128, 256, 1024),
            "_NUM_WARPS": (1, 2, 4, 8),
            "_NUM_STAGES": (2, 3, 4),
        })  # fmt: skip
        settings += combined(
            lora_experts, **({"FEW_TILE" if is_few else "MANY_TILE": (16, 32)} | {
                "DOWN_ROWS": (16,),
                "DOWN_DEPTH": (128, 256),
                "UP_COLUMNS": (64, 128, 256),
                "KIND_PAIRS": (256,),
                "_NUM_WARPS": (1, 2),
                "_NUM_STAGES": (3,),
            })
        )  # fmt: skip
        sweeps.append(settings_sweep(f"mixture_lora {tokens}", settings, copies, mix))
    return sweeps


def vision_sweeps() -> list[Sweep]:
    """Views from pixels, and what the encoder does element by element."""
    from service.engine.kernels.triton import vision_elementwise, vision_resize

    sweeps = []
    config = GeometryConfig()
    settings = combined(vision_resize, ROWS=(1, 2, 4, 8, 16), BLOCK=(128, 256, 512, 1024))
    for width, height in (SMALL, PAGE, (2480, 3508)):
        page = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).cuda()
        plan = plan_views(width, height, config.default_mode, config)

        def resize(_: int, page: Any = page, plan: Any = plan) -> object:
            return prepare_views_on_device(page, plan, config)

        sweeps.append(settings_sweep(f"resize {width} x {height}", settings, 1, resize))
    for patches in (1600, VISION_PATCHES):
        x, weight, bias = (bench.noise(*shape) for shape in ((patches, VISION_CHANNELS), *[(VISION_CHANNELS,)] * 2))

        def layer_norm(_: int, x: Any = x, weight: Any = weight, bias: Any = bias) -> object:
            return vision_elementwise.layer_norm(x, weight.float(), weight, bias, 1e-6)

        rows = combined(vision_elementwise, NORM_ROWS=(1, 2, 4, 8, 16))
        sweeps.append(settings_sweep(f"layer_norm {patches}", rows, 2, layer_norm))
        hidden = bench.noise(patches, 4 * VISION_CHANNELS)

        def activate(_: int, hidden: Any = hidden) -> object:
            return vision_elementwise.activate(hidden)

        blocks = combined(vision_elementwise, FLAT_BLOCK=(512, 1024, 2048, 4096, 8192))
        sweeps.append(settings_sweep(f"activate {patches}", blocks, 2, activate))
    for views, side in ((1, 640), (16, 1024)):
        pixels = torch.randint(0, 256, (views, side, side, 3), device="cuda", dtype=torch.uint8)

        def patch(_: int, pixels: Any = pixels) -> object:
            return vision_elementwise.patches(pixels, 16, torch.bfloat16)

        rows = combined(vision_elementwise, PATCH_ROWS=(1, 2, 4, 8, 16, 32))
        sweeps.append(settings_sweep(f"patches {views} x {side}", rows, 2, patch))
    return sweeps


def _weights(outputs: int, *, is_int8: bool) -> list[Any]:
    count = bench.copies_for(outputs * bench.HIDDEN * (1 if is_int8 else 2))
    weights = (bench.noise(outputs, bench.HIDDEN) for _ in range(count))
    return [to_int8(weight, weight.device) if is_int8 else weight for weight in weights]


def _linear_sweep(name: str, weights: list[Any], tokens: int, configs: list[Any], chosen: Any) -> Sweep:
    from service.engine.kernels.triton import linear, norm

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
    from service.engine.kernels.triton import expert_tiles

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
    from service.engine.kernels.triton import decoder as fused
    from service.engine.kernels.triton import expert_pairs, expert_tiles

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
    from service.engine.kernels.triton import expert_pairs

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
    from service.engine.kernels.triton import expert_tiles, prefill

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


def _prompt_sweep(prompts: int, length: int, heads: int, width: int, dtype: torch.dtype, configs: list[Any]) -> Sweep:
    from service.engine.kernels.triton import prefill

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
    from service.engine.kernels.triton import prefill

    tiles = [
        prefill.PrefillConfig(*values)
        for values in product((32, 64, 128), (32, 64, 128), (4, 8), (2, 3, 4))
        if (values[0] + 2 * values[1] * values[3]) * bench.WIDTH * 2 <= 220_000
    ]
    sizes = ((1, 276), (15, 276), (1, 906), (4, 906), (1, 4096))
    return [_prompt_sweep(*size, bench.HEADS, bench.WIDTH, torch.bfloat16, tiles) for size in sizes]


def attention_sweeps() -> list[Sweep]:
    """One new token a row, by tile and shares; and by the cache's blocks."""
    from service.engine.kernels.triton import attention

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
    """Tiles stay the same, except in smaller blocks."""
    from service.engine.kernels.triton import attention

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
    "norm": norm_sweeps,
    "routing": routing_sweeps,
    "choose": choose_sweeps,
    "lora": lora_sweeps,
    "lora-experts": lora_experts_sweeps,
    "vision": vision_sweeps,
    "attention": attention_sweeps,
    "prefill": prefill_sweeps,
    "linear": linear_sweeps,
    "wide": wide_sweeps,
    "int8": int8_sweeps,
    "mixture": mixture_sweeps,
    "float32": float32_sweeps,
}


def compile_share(index: int, groups: list[str], num_processes: int, deadline_s: float) -> None:
    """Compile one process's share of the candidates of the groups, until the deadline on the wall clock."""
    # A compiling process needs small inputs only; large ones of all would not fit into the card.
    bench.L2_BYTES = 0
    with torch.inference_mode():
        for group in groups:
            candidates = [(sweep, config) for sweep in GROUPS[group]() for config in sweep.candidates]
            for sweep, config in candidates[index::num_processes]:
                if time.time() > deadline_s:
                    return
                sweep.prepare()
                attempt(partial(sweep.call, config, 0), is_silent=True)
            del candidates
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def attempt(call: Callable[[], Any], *, is_silent: bool = False) -> Any:
    """What the call gives; None where a candidate does not fit the card."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 -- a candidate's failure is a result: it is left out, and said
        if not is_silent:
            print(f"  left out: {(str(error) or repr(error)).splitlines()[0][:100]}", flush=True)
        return None


def time_sweep(sweep: Sweep, deadline_s: float) -> dict[str, Any]:
    """Time all candidates, the chosen one twice: first and last.

    Of the two runs the faster counts, and their difference says how much is noise.
    """
    times: dict[str, float] = {}
    candidates = sweep.candidates
    repeated_us = None
    for config in [*candidates, candidates[0]]:
        if time.time() > deadline_s:
            break
        sweep.prepare()
        us = attempt(partial(bench.time_us, partial(sweep.call, config), sweep.copies, budget_ms=3.0))
        if us is None:
            continue
        name = str(config)
        if name in times:
            repeated_us = round(abs(us - times[name]), 2)
        times[name] = round(min(us, times.get(name, us)), 2)
    ranked = sorted(times.items(), key=lambda item: item[1])
    chosen = str(sweep.chosen)
    return {
        "sweep": sweep.name,
        "chosen": [chosen, times.get(chosen)],
        "apart_us": repeated_us,
        "best": ranked[:KEPT],
        "worst": ranked[-1] if ranked else None,
        "library": times.get(LIBRARY),
        "timed": len(times),
        "candidates": len(candidates),
    }


def show(result: dict[str, Any]) -> None:
    """Print one kernel's lines."""
    name, us = result["chosen"]
    apart = f", again {result['apart_us']} apart" if result["apart_us"] is not None else ""
    print(f"{result['sweep']}: {result['timed']} of {result['candidates']}, worst {result['worst']}")
    print(f"  chosen {us}  {name}{apart}")
    for name, us in result["best"][:SHOWN]:
        print(f"  {us:8.2f}  {name}", flush=True)


def main() -> None:
    """Compile, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", choices=[[], *GROUPS], default=[], metavar="group")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for compiling, and again for timing")
    parser.add_argument("--processes", type=int, default=14, help="that compile")
    parser.add_argument("--out", help="file, or auto")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs CUDA")
    groups = arguments.groups or list(GROUPS)
    began_s = time.time()
    processes = arguments.processes
    spawn(compile_share, (groups, processes, began_s + arguments.limit), nprocs=processes)
    print(f"compiled after {time.time() - began_s:.0f} s", flush=True)
    deadline_s = time.time() + arguments.limit
    with torch.inference_mode():
        for group in groups:
            rows = []
            for sweep in GROUPS[group]():
                rows.append(time_sweep(sweep, deadline_s))
                show(rows[-1])
            # At once: a run that is cut short keeps what it has found out.
            source = origin("cuda") | {"command": command()}
            for row in rows:
                keep({"benchmark": "kernel-sweep"} | row | source, arguments.out)
            torch.cuda.empty_cache()
    print(f"timed after {time.time() - began_s:.0f} s")


if __name__ == "__main__":
    main()
