"""The engine's constants on a CPU beside other values: what a step may start, how the cache grows and is cleared.

    python benchmarks/cpu_settings.py bounds     pages a second, and the longest time between steps of running pages
    python benchmarks/cpu_settings.py cache      a step by positions cleared at once and by how the cache grows

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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.engine_settings import read, replaced
from benchmarks.origin import command, origin
from benchmarks.random_model import NO_LOOPS, PAGE, SMALL, noise_pages, random_checkpoint, random_model
from service.engine import kv_cache
from service.engine.engine import TorchEngine
from service.engine.loader import EngineLimits, make_engine
from service.engine.model_runner import ModelRunner, Prompt
from service.engine.protocol import SequenceRequest, SequenceResult
from shared.deepseek_ocr.nano_config import nano_config

ROUNDS, ROWS, STEPS = 3, 8, 300


def engine_with(views: int, tokens: int) -> TorchEngine:
    """A warm engine with such bounds."""
    limits = EngineLimits(
        batch_size=8, max_sequence_tokens=4096, loop_rule=NO_LOOPS, views_per_step=views, prefill_tokens_per_step=tokens
    )
    engine = make_engine(random_checkpoint("cpu", torch.float32, nano_config()), limits)
    engine.warm_up()
    return engine


def longest_gap_s(engine: TorchEngine) -> float:
    """Between two steps of two running pages while four others are begun, a large one among them."""
    geometry = engine.info.geometry
    coming = [*noise_pages(SMALL, geometry, 3), *noise_pages(PAGE, geometry, 1)]
    for index, page in enumerate(noise_pages(SMALL, geometry, 2)):
        engine.submit(SequenceRequest(f"running-{index}", page, "", 60, engine.info.model_id))
    for _ in range(8):
        engine.step()
    for index, page in enumerate(coming):
        engine.submit(SequenceRequest(f"coming-{index}", page, "", 1, engine.info.model_id))
    left, longest_s, last_s = len(coming), 0.0, time.perf_counter()
    while engine.has_work:
        events = engine.step()
        now_s = time.perf_counter()
        longest_s = max(longest_s, now_s - last_s) if left else longest_s
        left -= sum(isinstance(e, SequenceResult) and e.sequence_id.startswith("coming") for e in events)
        last_s = now_s
    return longest_s


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
            row["SMALL"].append(read(engine, noise_pages(SMALL, geometry, 8), 24, "small"))
            row["PAGE"].append(read(engine, noise_pages(PAGE, geometry, 2), 24, "page"))
            row["gap"].append(longest_gap_s(engine))
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
            with replaced(kv_cache, CLEARED_AHEAD=cleared):
                key = f"{cleared} cleared, growing by {growth}"
                times.setdefault(key, []).append(_mean_step_s(model, growth))
    table = {key: round(statistics.median(seconds) * 1000, 3) for key, seconds in times.items()}
    for key, ms in table.items():
        print(f"{key:<30} {ms:>7.3f} ms", flush=True)
    return {"step_ms": table}


def _mean_step_s(model: Any, growth: int) -> float:
    runner = ModelRunner(model, max_rows=ROWS, max_tokens=2048, growth_tokens=growth)
    noise = random.Random(0)
    no_image = torch.zeros(0, model.config.text_config.hidden_size)
    runner.prefill([Prompt([noise.randrange(10, 2000) for _ in range(400)], no_image) for _ in range(ROWS)])
    began_s = time.perf_counter()
    for _ in range(STEPS):
        runner.decode([noise.randrange(10, 2000) for _ in range(ROWS)], {})
    return (time.perf_counter() - began_s) / STEPS


PARTS: dict[str, Callable[[], dict[str, Any]]] = {"bounds": bounds, "cache": cache}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    arguments = parser.parse_args()
    result = {"benchmark": "settings", "part": arguments.part} | PARTS[arguments.part]()
    print(json.dumps(result | origin("cpu") | {"command": command()}))


if __name__ == "__main__":
    main()
