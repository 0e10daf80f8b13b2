"""Which tiles suit each kernel on this card: candidates timed as `kernel_speed.py` times, the best printed; needs CUDA.

Background: the kernels choose nothing at run time. Their constants are set by hand from what this prints, so that a
service starts fast and always runs what was measured. Candidates are compiled by several processes first, into
Triton's cache, and timed by one.

    python benchmarks/kernel_sweep.py linear          also mixture, wide, attention, prefill; all within 100 s each
    python benchmarks/kernel_sweep.py linear --limit 90

Prints the three best of each kernel and size, and one JSON object as the last line of its output.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import kernel_speed as bench
from service.engine.kernels import attention, expert_pairs, expert_tiles, linear, prefill, sorting

NUM_PROCESSES = 12
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Sweep:
    """One kernel at one size."""

    name: str
    configs: list[Any]
    copies: int
    call: Callable[[Any, int], object]
    """Does the work with a configuration and the copy of the given number."""


def linear_sweeps() -> list[Sweep]:
    """Products of one token and of few."""
    sweeps = []
    norm = bench.noise(bench.HIDDEN)
    rows = [linear.RowConfig(*values) for values in product((4, 8, 16, 32), (2, 4, 8))]
    tiles = [
        linear.TileConfig(*values)
        for values in product((16, 32, 64), (64, 128, 256), (2, 4), (3, 5))
        if values[0] * values[1] * values[3] <= 50_000
    ]
    for name, outputs in (("qkv", 3 * bench.HIDDEN), ("o", bench.HIDDEN), ("head", bench.VOCABULARY)):
        weights = [bench.noise(outputs, bench.HIDDEN) for _ in range(bench.copies_for(outputs * bench.HIDDEN * 2))]
        for tokens, configs, function in ((1, rows, linear.multiply_one), (16, tiles, linear.multiply_few)):
            x = bench.noise(tokens, bench.HIDDEN)
            residual = bench.noise(tokens, outputs) if name == "o" else None
            scale = None if name == "o" else norm

            def call(
                config: Any, i: int, w: Any = weights, f: Any = function, x: Any = x, r: Any = residual, n: Any = scale
            ) -> object:
                return f(x, n, bench.EPS, w[i], r, config)

            sweeps.append(Sweep(f"{function.__name__} {name} {tokens}", configs, len(weights), call))
    return sweeps


def _layers(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    num, inner, hidden = bench.EXPERTS + bench.SHARED, bench.INNER, bench.HIDDEN
    return [(bench.noise(num, 2 * inner, hidden), bench.noise(num, hidden, inner)) for _ in range(count)]


def _mixture_sweep(tokens: int, configs: list[Any], layers: list[Any]) -> Sweep:
    x, residual = bench.noise(tokens, bench.HIDDEN), bench.noise(tokens, bench.HIDDEN)
    routed = bench.routed(tokens)

    def call(config: Any, i: int) -> None:
        mix = expert_pairs.mix_pairs if isinstance(config, expert_pairs.PairConfig) else expert_tiles.mix_tiles
        gate_up, down = layers[i]
        mix(x, *routed, gate_up, down, residual, residual, config)

    kind = "pairs" if isinstance(configs[0], expert_pairs.PairConfig) else "tiles"
    return Sweep(f"mixture {kind} {tokens}", configs, len(layers), call)


def mixture_sweeps() -> list[Sweep]:
    """Experts of one to 16 tokens."""
    layers = _layers(4)
    ups = [expert_pairs.PairConfig(*values, 2, 4) for values in product((2, 4, 8, 16), (2, 4, 8))]
    downs = [expert_pairs.PairConfig(8, 4, *values) for values in product((1, 2, 4, 8), (2, 4, 8))]
    tiles = [
        expert_tiles.TileConfig(16, up, down, depth, warps, stages)
        for (up, down), depth, warps, stages in product(((16, 32), (32, 64), (64, 64)), (64, 128), (2, 4), (3, 5))
    ]
    pairs = [_mixture_sweep(tokens, ups + downs, layers) for tokens in (1, 2, 4)]
    return pairs + [_mixture_sweep(tokens, tiles, layers) for tokens in (2, 4, 16)]


def wide_sweeps() -> list[Sweep]:
    """Experts of many tokens, and the sorting before them."""
    layers = _layers(2)
    decode = [
        expert_tiles.TileConfig(pairs, up, down, depth, warps, stages)
        for pairs, (up, down), depth, (warps, stages) in product(
            (16, 32, 64), ((32, 64), (64, 64), (64, 128)), (64, 128), ((4, 3), (4, 4))
        )
        if (2 * up + pairs) * depth * stages * 2 <= 230_000
    ]
    prompts = [
        expert_tiles.TileConfig(pairs, up, down, 64, warps, stages)
        for pairs, (up, down), warps, stages in product((64, 128), ((64, 128), (128, 128), (128, 256)), (4, 8), (3, 4))
        if (2 * up + pairs) * 64 * stages * 2 <= 230_000
    ]
    sweeps = [_mixture_sweep(tokens, decode, layers) for tokens in (64, 256)]
    return [*sweeps, _mixture_sweep(4096, prompts, layers)]


def attention_sweeps() -> list[Sweep]:
    """One new token a row."""
    sweeps = []
    tiles = [attention.AttentionConfig(*values) for values in product((8, 16, 32, 64), (1, 2, 4), (1, 2, 3))]
    for rows, shares in ((1, (8, 16, 32)), (16, (2, 4, 8)), (64, (1, 2)), (256, (1,))):
        case = bench.attention_inputs(rows, bench.CONTEXT)

        def call(config: Any, i: int, case: Any = case) -> object:
            attend: Any = attention.attend
            return attend(*case.arguments(i), config=config[0], shares=config[1])

        configs = [(tile, share) for tile in tiles for share in shares if tile.num_warps * 32 >= tile.tokens]
        sweeps.append(Sweep(f"decode_attention {rows}", configs, len(case.caches), call))
    return sweeps


def prefill_sweeps() -> list[Sweep]:
    """Whole prompts, and the sorting of their pairs."""
    sweeps = []
    tiles = [
        prefill.PrefillConfig(*values) for values in product((64, 128), (32, 64, 128), (4, 8), (2, 3)) if values[:1]
    ]
    for prompts, length in ((15, 276), (4, 906)):
        tokens = prompts * length
        q, k, v = bench.noise(tokens, 3, bench.HEADS, bench.WIDTH).unbind(1)
        starts = torch.arange(prompts + 1, dtype=torch.int32, device="cuda") * length

        def call(
            config: Any, _: int, q: Any = q, k: Any = k, v: Any = v, starts: Any = starts, length: Any = length
        ) -> object:
            return prefill.attend_prompts(q, k, v, starts, length, bench.SCALE, config)

        sweeps.append(Sweep(f"prefill_attention {prompts} x {length}", tiles, 2, call))
    for tokens in (16, 256, 4096):
        _, chosen = bench.routed(tokens)

        def sort(tile: Any, _: int, chosen: Any = chosen) -> object:
            return sorting.sort_pairs(chosen, bench.EXPERTS + bench.SHARED, tile)

        sweeps.append(Sweep(f"sort_pairs {tokens}", [16, 32, 64, 128], 2, sort))
    return sweeps


GROUPS: dict[str, Callable[[], list[Sweep]]] = {
    "linear": linear_sweeps,
    "mixture": mixture_sweeps,
    "wide": wide_sweeps,
    "attention": attention_sweeps,
    "prefill": prefill_sweeps,
}


def compile_share(index: int, group: str, deadline_s: float) -> None:
    """Compile every `NUM_PROCESSES`-th candidate, until the deadline on the wall clock."""
    # A compiling process needs no copies beyond the cache; those of all would not fit into the card.
    bench.L2_BYTES = 0
    with torch.inference_mode():
        candidates = [(sweep, config) for sweep in GROUPS[group]() for config in sweep.configs]
        for sweep, config in candidates[index::NUM_PROCESSES]:
            if time.time() > deadline_s:
                return
            attempt(partial(sweep.call, config, 0))


def attempt(call: Callable[[], Any]) -> Any:
    """What the call gives; None where a candidate does not fit the card."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 -- a candidate's failure is a result: it is left out, and said
        return print(f"  left out: {str(error).splitlines()[0][:100]}") if "shared memory" not in str(error) else None


def main() -> None:
    """Compile, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--limit", type=float, default=95.0, help="seconds")
    arguments = parser.parse_args()
    start_s = time.time()
    spawn(compile_share, (arguments.group, start_s + 0.6 * arguments.limit), nprocs=NUM_PROCESSES)
    print(f"compiled after {time.time() - start_s:.0f} s", flush=True)
    results: dict[str, list[tuple[float, str]]] = {}
    for sweep in GROUPS[arguments.group]():
        times = []
        for config in sweep.configs:
            if time.time() > start_s + arguments.limit:
                break
            us = attempt(partial(bench.time_us, partial(sweep.call, config), sweep.copies, budget_ms=3.0))
            if us:
                times.append((round(us, 2), str(config)))
        results[sweep.name] = sorted(times)[:SHOWN]
        print(f"{sweep.name}: {len(times)} of {len(sweep.configs)}, worst {max(times, default=(0, ''))[0]}")
        for us, config in results[sweep.name]:
            print(f"  {us:8.2f}  {config}", flush=True)
    print(json.dumps({"card": torch.cuda.get_device_name(), "best": results}))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
