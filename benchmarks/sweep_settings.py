"""Candidates for the other constants of the kernels' modules; see `kernel_sweep.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks import kernel_speed as bench
from benchmarks.random_model import PAGE, SMALL
from benchmarks.sweep import Sweep, combined, one_by_one, settings_sweep
from service.engine.gpu.paged_cache import BLOCK_TOKENS
from service.engine.gpu.state import AnswerState
from service.engine.kernels.triton import decoder as fused
from service.engine.kernels.triton import (
    expert_tiles,
    lora,
    lora_experts,
    norm,
    rotary,
    routing,
    sorting,
    step,
    vision_elementwise,
    vision_resize,
)
from service.engine.kernels.triton import sampler as choose
from service.engine.lora.bank import ExpertLowRank
from service.engine.vision.resize import prepare_views_on_device
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.geometry import GeometryConfig, plan_views

ALWAYS = 1 << 30
ADAPTERS, RANK = 8, 16
WARPS = (1, 2, 4, 8, 16)
VISION_PATCHES, VISION_CHANNELS = 65_536, 768


def norm_sweeps() -> list[Sweep]:
    """Norms, the beginning of a step, rotation, and each token's sum over its experts."""
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
    """Routing each way, which way by number of tokens, and sorting."""
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


GROUPS: dict[str, Callable[[], list[Sweep]]] = {
    "norm": norm_sweeps,
    "routing": routing_sweeps,
    "choose": choose_sweeps,
    "lora": lora_sweeps,
    "lora-experts": lora_experts_sweeps,
    "vision": vision_sweeps,
}
