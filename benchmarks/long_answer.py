"""Time of a token and memory of a sequence along one long answer, with an answer window and without.

Random weights; tokens are drawn at temperature 1, so that answers neither loop nor end. Prints a table and, as its last
line, one JSON object.

    python benchmarks/long_answer.py                                                 # a small model on a CPU
    python benchmarks/long_answer.py --device cuda --dimensions public --out auto    # Unlimited-OCR's on a GPU
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.origin import command, keep, origin
from benchmarks.random_model import noise_page, random_checkpoint
from service.engine.config import EngineLimits
from service.engine.engine import TorchEngine
from service.engine.factory import make_engine
from service.engine.protocol import SamplingParams, SequenceRequest
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.configuration import DeepseekOcrConfig
from shared.deepseek_ocr.nano_config import nano_config
from shared.deepseek_ocr.unlimited import PUBLIC_WINDOW, UnlimitedOcrConfig

POSITIONS = 32_768
SMALL_LAYERS = 2


@dataclass(frozen=True, slots=True)
class Reading:
    """State after some tokens of every row's answer."""

    answer_tokens: int
    kept_tokens: int
    """Tokens whose keys and values a row keeps, prompt included; on a CPU those that it has room for."""
    ms_per_step: float
    """Since the reading before."""
    device_mib: float


def config_of(dimensions: str, window: int | None) -> DeepseekOcrConfig:
    """A model's dimensions."""
    config = nano_config() if dimensions == "small" else UnlimitedOcrConfig()
    config.text_config.max_position_embeddings = POSITIONS
    config.text_config.answer_window = window
    if dimensions == "small":
        config.text_config.num_hidden_layers = SMALL_LAYERS
    return config


def kept_tokens(engine: TorchEngine) -> int:
    """Of the row that keeps most."""
    runner: Any = engine._runner
    if hasattr(runner, "_cache"):
        cache = runner._cache
        return cache.block_tokens * max(len(blocks) for blocks in cache.allocator._held.values())
    return int(runner._exact.cache.capacity)


def measure(engine: TorchEngine, rows: int, tokens: int, every: int) -> list[Reading]:
    """Read `rows` pages with answers of `tokens` tokens."""
    geometry = engine.info.geometry
    for row in range(rows):
        page = noise_page((geometry.tile_px, geometry.tile_px), geometry, seed=row)
        params = SamplingParams(tokens, temperature=1.0, seed=row)
        engine.submit(SequenceRequest(f"row-{row}", page, prompt_for(Task.FREE), params, engine.info.model_id))
    while not all(sequence.answer.tokens for sequence in engine._pages.active.values()) or engine._pages.waiting:
        engine.step()
    readings: list[Reading] = []
    began_s, counted = time.perf_counter(), 1
    while engine.has_work:
        engine.step()
        counts = [len(sequence.answer.tokens) for sequence in engine._pages.active.values()]
        if counts and min(counts) >= (len(readings) + 1) * every:
            now_s = time.perf_counter()
            step_ms = (now_s - began_s) / (min(counts) - counted) * 1000
            memory_mib = engine.stats().device_memory_bytes / 2**20
            readings.append(Reading(min(counts), kept_tokens(engine), round(step_ms, 3), round(memory_mib, 1)))
            began_s, counted = now_s, min(counts)
    return readings


def main() -> None:
    """Measure, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dimensions", choices=("small", "public"), default="small")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=16_385)
    parser.add_argument("--every", type=int, default=2048)
    parser.add_argument("--out", help="file that the line is appended to, or `auto`")
    parser.add_argument("--window", type=int, default=PUBLIC_WINDOW, help="0: the whole answer is seen")
    arguments = parser.parse_args()
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32
    config = config_of(arguments.dimensions, arguments.window or None)
    limits = EngineLimits(batch_size=arguments.rows, max_new_tokens=arguments.tokens)
    engine = make_engine(random_checkpoint(arguments.device, dtype, config), limits)
    engine.warm_up()
    readings = measure(engine, arguments.rows, arguments.tokens, arguments.every)
    print(f"{'answer tokens':>14} {'kept tokens':>12} {'ms per step':>12} {'device MiB':>11}")
    for each in readings:
        print(f"{each.answer_tokens:>14} {each.kept_tokens:>12} {each.ms_per_step:>12} {each.device_mib:>11}")
    asked = {name: value for name, value in vars(arguments).items() if name != "out"}
    facts = {"benchmark": "long_answer", "command": command(), **origin(arguments.device), **asked}
    keep({**facts, "readings": [asdict(each) for each in readings]}, arguments.out)


if __name__ == "__main__":
    main()
