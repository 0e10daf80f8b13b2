"""The engine's constants beside other values: batches, bounds, buffers, memory; needs CUDA.

    python benchmarks/engine_settings.py steps      rows of captured decode steps: what padding costs
    python benchmarks/engine_settings.py prompts    prefills captured and launched, by tokens
    python benchmarks/engine_settings.py views      views encoded by captured graph and without, by number
    python benchmarks/engine_settings.py bounds     what a step may start beside running pages: pages/s, longest gap
    python benchmarks/engine_settings.py staging    pinned memory that images go through
    python benchmarks/engine_settings.py poll       pauses between two looks at whether a step has ended
    python benchmarks/engine_settings.py memory     cards of 12 to 24 GiB, acted by a larger one: is the reserve enough
    python benchmarks/engine_settings.py start --threads 8      compiling; give it an empty TRITON_CACHE_DIR

Weights are random, of the public dimensions. Constants are replaced where they stand, so each part says what the code
would do with another number in it. Prints a table and a JSON object; `--out FILE` appends that to a file, `--out auto`
to the committed results. `kernel_sweep.py` does the same for the kernels.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import settings_graphs
from benchmarks.engine_steps import engine_of
from benchmarks.origin import command, keep, origin
from benchmarks.random_model import PAGE, SMALL, noise_pages
from benchmarks.whole_pages import images_of, longest_gap_s, read, sync
from service.engine.gpu import factory as making
from service.engine.gpu import memory, reports, runner
from service.engine.vision.preparation import Staging
from shared.deepseek_ocr.forms import CHANNELS, MAX_IMAGE_PIXELS


def bounds(arguments: argparse.Namespace) -> dict[str, Any]:
    """Pages a second of full engines, and the longest time between two steps of running pages while others come."""
    engine = engine_of(arguments)
    engine.warm_up()
    pages: Any = engine._pages
    usual = pages._schedule
    geometry = engine.info.geometry
    small, page = images_of(SMALL, geometry, 256), images_of(PAGE, geometry, 128)
    running = images_of(SMALL, geometry, 8)
    read(engine, page[:32], 4, "warm")
    table = {}
    print(f"{'views':>6} {'tokens':>7} {'idle':>5} {'SMALL':>7} {'PAGE':>7} {'PAGE x 1':>9} {'gap ms':>7}")
    for views_per_step, prefill_tokens, idle in (
        (16, 4096, 4), (16, 4096, 1), (16, 4096, 2), (16, 4096, 8), (4, 4096, 4), (8, 2048, 4), (8, 4096, 4),
        (16, 2048, 4), (16, 8192, 4), (32, 8192, 2), (32, 8192, 4), (64, 16384, 1), (16, 4096, 4),
    ):  # fmt: skip
        pages._schedule = replace(
            usual, views_per_step=views_per_step, prefill_tokens_per_step=prefill_tokens, idle_multiplier=idle
        )
        rates = [
            round(len(batch) / read(engine, batch, tokens, "run")[0], 2)
            for batch, tokens in ((small, 256), (page, 256), (page, 1))
        ]
        gap_ms = round(longest_gap_s(engine, running, page[:32], tokens=400, head_start=30) * 1000, 1)
        key = f"{views_per_step} views, {prefill_tokens} tokens, idle {idle}"
        while key in table:
            key += ", again"
        table[key] = {"small_256": rates[0], "page_256": rates[1], "page_1": rates[2], "gap_ms": gap_ms}
        print(
            f"{views_per_step:>6} {prefill_tokens:>7} {idle:>5} {rates[0]:>7} {rates[1]:>7} {rates[2]:>9} {gap_ms:>7}",
            flush=True,
        )
    return {"bounds": table}


def staging(arguments: argparse.Namespace) -> dict[str, Any]:
    """Pages a second with one token, by pinned memory."""
    engine = engine_of(arguments)
    engine.warm_up()
    gpu: Any = engine._runner
    geometry = engine.info.geometry
    # The last: a page of the most pixels that the service takes in.
    sizes = {"SMALL": (SMALL, 256), "PAGE": (PAGE, 128), "9 megapixels": ((3000, 3000), 64)}
    pages = {name: images_of(size, geometry, count) for name, (size, count) in sizes.items()}
    table: dict[str, dict[str, float]] = {}
    image_bytes = CHANNELS * MAX_IMAGE_PIXELS
    for times in (1, 2, 4, 8, 16, 4):
        gpu._preparation._staging = Staging(torch.device("cuda"), image_bytes * times)
        # The first page takes the memory.
        began_s = time.perf_counter()
        gpu._preparation.prepare(pages["SMALL"][0], geometry)
        sync()
        taken_s = time.perf_counter() - began_s
        rates = {}
        for name, batch in pages.items():
            best_s = min(read(engine, batch, 1, "run")[0] for _ in range(2))
            rates[name] = round(len(batch) / best_s, 1)
        table[f"{times} images" + (", again" if f"{times} images" in table else "")] = rates | {
            "taken_ms": round(taken_s * 1000, 1)
        }
        print(f"{times:>3} images, {image_bytes * times / 2**20:.0f} MiB, taken in {taken_s * 1000:.0f} ms: {rates}")
    return {"staging": table}


def poll(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds a token and the share of a core that the engine's thread takes, by pause."""
    engine = engine_of(arguments)
    engine.warm_up()
    table = {}
    for pause_us in (0, 5, 20, 50, 100, 200, 20):
        with patch.multiple(reports, POLL_S=pause_us * 1e-6):
            row = {}
            for rows in (1, 64):
                batch = noise_pages(SMALL, engine.info.geometry, rows)
                read(engine, batch, 8, "warm")
                short_s, *_ = read(engine, batch, 16, "short")
                cpu_s = time.thread_time()
                wall_s, *_ = read(engine, batch, 272, "run")
                row[f"{rows} rows, ms"] = round((wall_s - short_s) / 256 * 1000, 4)
                row[f"{rows} rows, core"] = round((time.thread_time() - cpu_s) / wall_s, 2)
        key = f"{pause_us} us"
        table[key + (", again" if key in table else "")] = row
        print(f"{pause_us:>4} us {row}", flush=True)
    return {"poll": table}


class _Complaints(logging.Handler):
    """Counts what the runner says of memory that ran out."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "out of device memory" in record.getMessage()


def memory_of_cards(arguments: argparse.Namespace) -> dict[str, Any]:
    """Full batches on a card whose size is made up: torch may take no more than such a card would give it."""
    complaints = _Complaints()
    runner._log.addHandler(complaints)
    making._log.addHandler(logging.StreamHandler(sys.stdout))
    making._log.setLevel(logging.INFO)
    info = torch.cuda.mem_get_info
    table = {}
    torch.zeros(1, device="cuda") @ torch.zeros(1, device="cuda")
    for size_gib, reserve_mib in ((12, 256), (12, 0), (12, 512), (16, 256), (16, 0), (24, 256)):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        complaints.count = 0
        free, real = info()
        others = real - free - torch.cuda.memory_reserved()
        size = size_gib << 30
        granted = int(size * arguments.memory_fraction)
        torch.cuda.set_per_process_memory_fraction((granted - others) / real)

        def acted(device: Any = None, size: int = size) -> tuple[int, int]:
            free, real = info(device)
            return size - (real - free), size

        with patch.multiple(torch.cuda, mem_get_info=acted), patch.multiple(memory, RESERVE_BYTES=reserve_mib << 20):
            engine = engine_of(arguments)
            engine.warm_up()
        geometry = engine.info.geometry
        rates = [
            round(len(batch) / read(engine, batch, tokens, "run")[0], 2)
            for batch, tokens in (
                (images_of(SMALL, geometry, 256), 64),
                (images_of(PAGE, geometry, 64), 64),
                (images_of((3000, 3000), geometry, 16), 8),
            )
        ]
        free, _ = info()
        outside = real - free - torch.cuda.memory_reserved() - others
        row = {
            "ran_out": complaints.count,
            "pages_per_s": rates,
            "outside_torch_mib": round(outside / 2**20),
            "peak_allocated_mib": round(torch.cuda.max_memory_allocated() / 2**20),
            "peak_reserved_mib": round(torch.cuda.max_memory_reserved() / 2**20),
            "granted_mib": round((granted - others) / 2**20),
        }
        table[f"{size_gib} GiB, reserve {reserve_mib} MiB"] = row
        print(f"{size_gib} GiB, reserve {reserve_mib} MiB: {row}", flush=True)
        del engine
        gc.collect()
    return {"memory": table}


def start(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds from weights to ready with so many threads that compile."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with patch.multiple(runner, MAX_COMPILING_THREADS=arguments.threads):
        engine = engine_of(arguments)
        began_s = time.perf_counter()
        engine.warm_up()
        seconds = time.perf_counter() - began_s
    print(f"{arguments.threads} threads: {seconds:.1f} s")
    return {"threads": arguments.threads, "warm_up_s": round(seconds, 2)}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "steps": settings_graphs.steps,
    "prompts": settings_graphs.prompts,
    "views": settings_graphs.views,
    "bounds": bounds,
    "staging": staging,
    "poll": poll,
    "memory": memory_of_cards,
    "start": start,
}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--slots", type=int, default=256, help="pages at once")
    parser.add_argument("--threads", type=int, default=runner.MAX_COMPILING_THREADS, help="that compile, for start")
    parser.add_argument("--memory-fraction", type=float, default=0.9, help="of the acted card, for memory")
    parser.add_argument("--out", help="file, or auto")
    arguments = parser.parse_args()
    # What `engine_of` asks for beside the slots.
    arguments.nano, arguments.weights, arguments.adapters, arguments.adapter_rank = False, "full", 0, 16
    result = {"benchmark": "settings", "part": arguments.part} | PARTS[arguments.part](arguments)
    result |= origin("cuda") | {"command": command()}
    if arguments.out:
        keep(result, arguments.out)
    else:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
