"""What the packed decoder gives a step on a CPU, by number of experts: random weights, nano's other dimensions.

    python benchmarks/packed_steps.py [--experts 6,16,64] [--rows 1,4,8] [--steps 40]

Steps with the packed decoder and with the model itself take turns, so that what else the machine does falls on both.
Prints medians in milliseconds and a JSON object last.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.origin import command, origin
from benchmarks.random_model import random_model
from service.engine import packed_decoder
from service.engine.model_runner import ModelRunner, Prompt
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.nano_config import nano_config

PROMPT_TOKENS = 200


def runner_of(model: DeepseekOcrForConditionalGeneration, rows: int, *, packs: bool) -> ModelRunner:
    """A runner with so many open rows."""
    usual = packed_decoder.MAX_EXPERTS
    packed_decoder.MAX_EXPERTS = 1 << 30 if packs else 0
    try:
        runner = ModelRunner(model, max_rows=rows, max_tokens=1024)
    finally:
        packed_decoder.MAX_EXPERTS = usual
    noise = random.Random(0)
    no_image = torch.zeros(0, model.config.text_config.hidden_size)
    runner.prefill([Prompt([noise.randrange(10, 2000) for _ in range(PROMPT_TOKENS)], no_image) for _ in range(rows)])
    return runner


def measure(experts: int, rows: int, steps: int) -> dict[str, float]:
    """Median milliseconds of a step each way."""
    config = nano_config()
    config.text_config.n_routed_experts = experts
    model = random_model("cpu", torch.float32, config)
    runners = {"packed": runner_of(model, rows, packs=True), "plain": runner_of(model, rows, packs=False)}
    seconds: dict[str, list[float]] = {way: [] for way in runners}
    noise = random.Random(1)
    for _ in range(steps):
        tokens = [noise.randrange(10, 2000) for _ in range(rows)]
        for way, runner in runners.items():
            began_s = time.perf_counter()
            runner.decode(tokens, {})
            seconds[way].append(time.perf_counter() - began_s)
    return {way: round(statistics.median(times) * 1000, 3) for way, times in seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", default="6,16,64", help="numbers of routed experts")
    parser.add_argument("--rows", default="1,4,8", help="numbers of rows")
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    table = {}
    for experts in map(int, arguments.experts.split(",")):
        for rows in map(int, arguments.rows.split(",")):
            row = measure(experts, rows, arguments.steps)
            row["times"] = round(row["plain"] / row["packed"], 2)
            table[f"{experts} experts, {rows} rows"] = row
            print(f"{experts:>3} experts, {rows} rows: {row}", flush=True)
    print(json.dumps({"benchmark": "packed_steps", "ms": table} | origin("cpu") | {"command": command()}))


if __name__ == "__main__":
    main()
