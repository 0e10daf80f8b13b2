"""What captured graphs cost and give, by their sizes: steps, prompts and views; parts of `engine_settings.py`."""

from __future__ import annotations

import argparse
import gc
import time
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.engine_steps import (
    REPEATS,
    close_rows,
    least_ms,
    open_rows,
    runner_of,
    time_prefill,
    time_steps,
)
from benchmarks.random_model import random_checkpoint
from benchmarks.whole_pages import sync
from service.engine.gpu import graphs
from service.engine.vision import runner as vision
from service.engine.vision.runner import GpuVision

ROW_LISTS = {
    "powers of two": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "half as many": (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256),
    "as chosen": graphs.BUCKETS,
}
ROW_TOKENS, STEPS = 530, 30


def steps(arguments: argparse.Namespace) -> dict[str, Any]:
    """A step's time by number of rows, and what a list of sizes would cost.

    The cost of a list: how much longer a step takes than with graphs for every number, whose times lie between those
    measured, in the mean over 1 to 256 rows and over 1 to 32.
    """
    runner = runner_of(arguments)
    step_ms = {}
    for rows in graphs.BUCKETS:
        open_rows(runner, rows, ROW_TOKENS)
        step_ms[rows] = round(time_steps(runner, range(rows), STEPS)[0], 4)
        close_rows(runner, rows)
        print(f"{rows:>4} rows {step_ms[rows]:>8.3f} ms", flush=True)
    every = np.interp(range(257), [0, *step_ms], [0, *step_ms.values()])
    costs = {}
    for name, sizes in ROW_LISTS.items():
        padded = [every[next(size for size in sizes if size >= rows)] for rows in range(1, 257)]
        excess = np.array(padded) / every[1:] - 1
        costs[name] = {"sizes": len(sizes), "all": round(excess.mean(), 4), "to_32": round(excess[:32].mean(), 4)}
        print(f"{name:<14} {len(sizes):>3} sizes, {excess.mean():.1%} longer, {excess[:32].mean():.1%} to 32 rows")
    return {"step_ms": step_ms, "lists": costs}


def prompts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a prefill, its first tokens included, captured and launched kernel by kernel."""
    result: dict[str, Any] = {}
    for most in (4, 16):
        table: dict[str, dict[str, float]] = {}
        with patch.multiple(graphs, MAX_PROMPTS=most):
            runner = runner_of(arguments)
            reserved_mib = torch.cuda.memory_reserved() / 2**20
            cases = [(1, size) for size in graphs.PROMPT_BUCKETS if size <= 1024]
            cases += [(2, 276), (4, 276), (7, 276), (14, 276), (2, 906), (4, 906)]
            for count, tokens in cases:
                times: dict[str, float] = {}
                for way, takes in (("captured", count <= most), ("launched", False)):
                    with patch.multiple(graphs.PromptGraphs, takes=lambda self, prompts, takes=takes: takes):
                        times[way], times[f"{way}_host"] = time_prefill(runner, count, tokens)
                table[f"{count}x{tokens}"] = times
                print(f"{count:>3} x {tokens:<5}" + "".join(f"{name:>16} {ms:>7.3f}" for name, ms in times.items()))
        print(f"prompts of a graph: {most}; {reserved_mib:.0f} MiB", flush=True)
        result[f"{most} prompts"] = table
        del runner
        gc.collect()
    return {"prefill_ms": result}


def views(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of so many views, with a graph for every number and without any; and what lists of sizes would cost.

    The cost of a step: how much longer than with a graph for every number, in the mean over all numbers of a chunk.
    """
    del arguments
    checkpoint = random_checkpoint()
    result = {}
    for side_px, most in ((640, 40), (1024, 16)):
        with patch.multiple(vision, captured_counts=lambda patches, chunk: list(range(1, chunk + 1))):
            encoder = GpuVision(checkpoint.model)
            reserved, began_s = torch.cuda.memory_reserved(), time.perf_counter()
            encoder.warm_up([side_px])
            capture_s, grown = time.perf_counter() - began_s, torch.cuda.memory_reserved() - reserved
        plain = GpuVision(checkpoint.model, graphs=False)
        pixels = torch.randint(0, 256, (most, side_px, side_px, 3), device="cuda", dtype=torch.uint8)
        table: dict[str, dict[int, float]] = {"captured": {}, "launched": {}, "launched_host": {}}
        for count in range(1, most + 1):
            images = list(pixels[:count])
            table["captured"][count], _ = _encode_ms(encoder, images)
            table["launched"][count], table["launched_host"][count] = _encode_ms(plain, images)
        for name, times in table.items():
            print(f"{side_px} px, {name}: {times}", flush=True)
        costs = {}
        patches = (side_px // 16) ** 2
        for step_views in (1, 2, 4, 8, most):
            with patch.multiple(vision, STEP_PATCHES=step_views * patches):
                counts = vision.captured_counts(patches, most)
            excess = []
            for count in range(1, most + 1):
                batches = vision.split_batch(count, counts, most)
                excess.append(sum(table["captured"][each] for each in batches) / table["captured"][count] - 1)
            costs[step_views] = {"sizes": len(counts), "mean": round(float(np.mean(excess)), 4)}
            print(f"{side_px} px, steps of {step_views}: {len(counts)} graphs, {np.mean(excess):.1%} longer")
        print(f"{side_px} px: all {most} graphs took {capture_s:.1f} s and {grown / 2**20:.0f} MiB")
        result[side_px] = {"ms": table, "steps": costs, "capture_s": round(capture_s, 2), "capture_bytes": grown}
        del encoder, plain
        torch.cuda.empty_cache()
    return {"views": result}


def _encode_ms(encoder: GpuVision, images: list[Any]) -> tuple[float, float]:
    times = []
    for _ in range(REPEATS):
        sync()
        began_s = time.perf_counter()
        encoder.encode(images)
        enqueued_s = time.perf_counter()
        sync()
        times.append((time.perf_counter() - began_s, enqueued_s - began_s))
    return least_ms(times)
