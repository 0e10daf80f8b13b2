"""The engine's constants on a CPU beside other values: what a step may start, the cache, packing.

    python benchmarks/cpu_settings.py bounds     pages a second, and the longest time between steps of running pages
    python benchmarks/cpu_settings.py cache      a step by positions cleared at once and by how the cache grows
    python benchmarks/cpu_settings.py packed     a step with the packed decoder and without, by number of experts

Random weights, nano's dimensions, pages of noise. Values take turns, so that what else the machine does falls on all.
Prints a table and a JSON object last.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.origin import command, origin
from benchmarks.random_model import NO_LOOPS, PAGE, SMALL, noise_pages, random_checkpoint, random_model
from benchmarks.whole_pages import longest_gap_s, read
from service.engine.config import EngineLimits
from service.engine.cpu import kv_cache, packed_decoder
from service.engine.cpu.runner import CpuRunner, Prompt
from service.engine.engine import TorchEngine
from service.engine.factory import make_engine
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.nano_config import nano_config

ROUNDS, ROWS, STEPS = 3, 8, 300
PACKED_STEPS = 40


def engine_with(views: int, tokens: int) -> TorchEngine:
    """A warm engine with such bounds."""
    limits = EngineLimits(
        batch_size=8, max_sequence_tokens=4096, loop_rule=NO_LOOPS, views_per_step=views, prefill_tokens_per_step=tokens
    )
    engine = make_engine(random_checkpoint("cpu", torch.float32, nano_config()), limits)
    engine.warm_up()
    return engine


def bounds() -> dict[str, Any]:
    """Eight pages of one view and 24 tokens, and two of many views, with each pair of bounds."""
    engines = {(views, tokens): engine_with(views, tokens) for views, tokens in (
        (1, 4096), (2, 4096), (4, 1024), (4, 4096), (8, 4096)
    )}  # fmt: skip
    times: dict[str, dict[str, list[float]]] = {}
    for _ in range(ROUNDS):
        for (views, tokens), engine in engines.items():
            geometry = engine.info.geometry
            row = times.setdefault(f"{views} views, {tokens} tokens", {"SMALL": [], "PAGE": [], "gap": []})
            row["SMALL"].append(read(engine, noise_pages(SMALL, geometry, 8), 24, "small")[0])
            row["PAGE"].append(read(engine, noise_pages(PAGE, geometry, 2), 24, "page")[0])
            running = noise_pages(SMALL, geometry, 2)
            coming = [*noise_pages(SMALL, geometry, 3), *noise_pages(PAGE, geometry, 1)]
            row["gap"].append(longest_gap_s(engine, running, coming, tokens=60, head_start=8))
    table = {}
    for key, row in times.items():
        small_s, page_s, gap_s = (min(row[name]) for name in ("SMALL", "PAGE", "gap"))
        table[key] = {
            "small_per_s": round(8 / small_s, 2),
            "page_per_s": round(2 / page_s, 3),
            "gap_s": round(gap_s, 2),
        }
        print(f"{key:<22} {table[key]}", flush=True)
    return {"bounds": table}


def cache() -> dict[str, Any]:
    """Milliseconds of a step of eight rows, in the mean over steps in which the cache grows once and more."""
    model = random_model("cpu", torch.float32, nano_config())
    ways: list[tuple[int, int]] = [(32, 256), (8, 256), (128, 256), (32, 64), (32, 1024)]
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for cleared, growth in ways:
            with patch.multiple(kv_cache, CLEARED_AHEAD=cleared):
                key = f"{cleared} cleared, growing by {growth}"
                times.setdefault(key, []).append(_mean_step_s(model, growth))
    table = {key: round(statistics.median(seconds) * 1000, 3) for key, seconds in times.items()}
    for key, ms in table.items():
        print(f"{key:<30} {ms:>7.3f} ms", flush=True)
    return {"step_ms": table}


def _mean_step_s(model: DeepseekOcrForConditionalGeneration, growth: int) -> float:
    runner, noise = _open_runner(model, ROWS, growth), random.Random(1)
    began_s = time.perf_counter()
    for _ in range(STEPS):
        runner.decode([noise.randrange(10, 2000) for _ in range(ROWS)], {})
    return (time.perf_counter() - began_s) / STEPS


def packed() -> dict[str, Any]:
    """Median milliseconds of a step with the packed decoder and with the model itself, by experts and rows."""
    table = {}
    for experts, rows in product((6, 16, 64), (1, 4, 8)):
        config = nano_config()
        config.text_config.n_routed_experts = experts
        model = random_model("cpu", torch.float32, config)
        seconds: dict[str, list[float]] = {}
        runners = {}
        for way, most in (("packed", experts), ("plain", 0)):
            with patch.multiple(packed_decoder, MAX_EXPERTS=most):
                runners[way] = _open_runner(model, rows)
        noise = random.Random(1)
        for _ in range(PACKED_STEPS):
            tokens = [noise.randrange(10, 2000) for _ in range(rows)]
            for way, runner in runners.items():
                began_s = time.perf_counter()
                runner.decode(tokens, {})
                seconds.setdefault(way, []).append(time.perf_counter() - began_s)
        row = {way: round(statistics.median(times) * 1000, 3) for way, times in seconds.items()}
        table[f"{experts} experts, {rows} rows"] = row | {"times": round(row["plain"] / row["packed"], 2)}
        print(f"{experts:>3} experts, {rows} rows: {table[f'{experts} experts, {rows} rows']}", flush=True)
    return {"step_ms": table}


def _open_runner(model: DeepseekOcrForConditionalGeneration, rows: int, growth: int = 256) -> CpuRunner:
    """With so many rows of 400 tokens."""
    runner = CpuRunner(model, max_rows=rows, max_tokens=2048, eos_id=1, rule=LoopRule(), growth_tokens=growth)
    noise = random.Random(0)
    no_image = torch.zeros(0, model.config.text_config.hidden_size)
    runner.prefill([Prompt([noise.randrange(10, 2000) for _ in range(400)], no_image) for _ in range(rows)])
    return runner


PARTS: dict[str, Callable[[], dict[str, Any]]] = {"bounds": bounds, "cache": cache, "packed": packed}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    arguments = parser.parse_args()
    result = {"benchmark": "settings", "part": arguments.part} | PARTS[arguments.part]()
    print(json.dumps(result | origin("cpu") | {"command": command()}))


if __name__ == "__main__":
    main()
