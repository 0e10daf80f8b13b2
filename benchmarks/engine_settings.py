"""The engine's constants compared with other values: batches, bounds, buffers, memory, the CPU's cache.

    python benchmarks/engine_settings.py steps      rows of captured decode steps: what padding costs
    python benchmarks/engine_settings.py prompts    prefills captured and launched, by tokens
    python benchmarks/engine_settings.py views      views encoded by captured graph and without, by number
    python benchmarks/engine_settings.py bounds     what a step may start next to running pages: pages/s, longest gap
    python benchmarks/engine_settings.py staging    pinned memory that images go through
    python benchmarks/engine_settings.py poll       pauses between two looks at whether a step has ended
    python benchmarks/engine_settings.py memory     cards of 12 to 24 GiB, simulated on a larger one: the reserve
    python benchmarks/engine_settings.py start --threads 8      compiling; give it an empty TRITON_CACHE_DIR

These need CUDA and use random weights of the public dimensions. On a CPU, with nano's dimensions:

    python benchmarks/engine_settings.py cpu-bounds     the same as bounds
    python benchmarks/engine_settings.py cache          a step by positions cleared at once and by how the cache grows
    python benchmarks/engine_settings.py packed         a step with the packed decoder and without, by number of experts
    python benchmarks/engine_settings.py drafts         a compiled step by rows and drafts: what share accepted pays

Constants are replaced in their modules, so each part says what the code would do with another value. Values take turns
on a CPU, so that other work on the machine affects all of them. Prints a table and a JSON object; `--out FILE` appends
that to a file, `--out auto` to the committed results. `kernel_sweep.py` does the same for the kernels.
"""

from __future__ import annotations

import argparse
import gc
import logging
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.driving import images_of, longest_gap_s, read_pages, sync
from benchmarks.engine_steps import (
    NANO,
    REPEATS,
    close_rows,
    engine_of,
    least_ms,
    open_rows,
    runner_of,
    time_prefill,
    time_steps,
)
from benchmarks.origin import command, keep, origin
from benchmarks.random_model import NO_LOOPS, PAGE, SMALL, noise_pages, random_checkpoint, random_model
from service.engine.config import EngineLimits
from service.engine.cpu import kv_cache, packed_decoder
from service.engine.cpu.compiled_decoder import CompiledDecoder
from service.engine.cpu.compiled_step import MAX_TOKENS
from service.engine.cpu.kv_cache import SlotCache
from service.engine.cpu.runner import CpuRunner, Prompt
from service.engine.engine import TorchEngine
from service.engine.factory import make_engine
from service.engine.gpu import factory as making
from service.engine.gpu import graphs, memory, reports, runner
from service.engine.vision import runner as vision
from service.engine.vision.preparation import Staging
from service.engine.vision.runner import GpuVision
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.draft_head import DraftHead
from shared.deepseek_ocr.forms import CHANNELS, MAX_IMAGE_PIXELS
from shared.deepseek_ocr.loading import load_checkpoint
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.nano_config import nano_config

ROW_LISTS = {
    "powers of two": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "half as many": (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256),
    "as chosen": graphs.BUCKETS,
}
ROW_TOKENS, STEPS = 530, 30
CPU_ROUNDS, CPU_ROWS, CPU_STEPS = 3, 8, 300
PACKED_STEPS = 40
DRAFT_ROWS, DRAFT_LENGTH, DRAFT_STEPS = (1, 2, 3, 4, 5, 6, 8, 12, 16), 330, 80


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


def bounds(arguments: argparse.Namespace) -> dict[str, Any]:
    """Pages a second of full engines, and the longest time between two steps of running pages while others come."""
    engine = engine_of(arguments)
    engine.warm_up()
    pages: Any = engine._pages
    usual = pages._schedule
    geometry = engine.info.geometry
    small, page = images_of(SMALL, geometry, 256), images_of(PAGE, geometry, 128)
    running = images_of(SMALL, geometry, 8)
    read_pages(engine, page[:32], 4, "warm")
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
            round(len(batch) / read_pages(engine, batch, tokens, "run").wall_s, 2)
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
            best_s = min(read_pages(engine, batch, 1, "run").wall_s for _ in range(2))
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
                read_pages(engine, batch, 8, "warm")
                short_s = read_pages(engine, batch, 16, "short").wall_s
                cpu_s = time.thread_time()
                wall_s = read_pages(engine, batch, 272, "run").wall_s
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
            round(len(batch) / read_pages(engine, batch, tokens, "run").wall_s, 2)
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


def _cpu_engine(views: int, tokens: int) -> TorchEngine:
    """A warm engine with such bounds."""
    limits = EngineLimits(
        batch_size=8, max_sequence_tokens=4096, loop_rule=NO_LOOPS, views_per_step=views, prefill_tokens_per_step=tokens
    )
    engine = make_engine(random_checkpoint("cpu", torch.float32, nano_config()), limits)
    engine.warm_up()
    return engine


def cpu_bounds(arguments: argparse.Namespace) -> dict[str, Any]:
    """Eight pages of one view and 24 tokens, and two of many views, with each pair of bounds."""
    del arguments
    engines = {(views, tokens): _cpu_engine(views, tokens) for views, tokens in (
        (1, 4096), (2, 4096), (4, 1024), (4, 4096), (8, 4096)
    )}  # fmt: skip
    times: dict[str, dict[str, list[float]]] = {}
    for _ in range(CPU_ROUNDS):
        for (views, tokens), engine in engines.items():
            geometry = engine.info.geometry
            row = times.setdefault(f"{views} views, {tokens} tokens", {"SMALL": [], "PAGE": [], "gap": []})
            row["SMALL"].append(read_pages(engine, noise_pages(SMALL, geometry, 8), 24, "small").wall_s)
            row["PAGE"].append(read_pages(engine, noise_pages(PAGE, geometry, 2), 24, "page").wall_s)
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


def cache(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a step of eight rows, in the mean over steps in which the cache grows once and more."""
    del arguments
    model = random_model("cpu", torch.float32, nano_config())
    ways: list[tuple[int, int]] = [(32, 256), (8, 256), (128, 256), (32, 64), (32, 1024)]
    times: dict[str, list[float]] = {}
    for _ in range(CPU_ROUNDS):
        for cleared, growth in ways:
            with patch.multiple(kv_cache, CLEARED_AHEAD=cleared):
                key = f"{cleared} cleared, growing by {growth}"
                times.setdefault(key, []).append(_mean_step_s(model, growth))
    table = {key: round(statistics.median(seconds) * 1000, 3) for key, seconds in times.items()}
    for key, ms in table.items():
        print(f"{key:<30} {ms:>7.3f} ms", flush=True)
    return {"step_ms": table}


def _mean_step_s(model: DeepseekOcrForConditionalGeneration, growth: int) -> float:
    runner, noise = _open_runner(model, CPU_ROWS, growth), random.Random(1)
    began_s = time.perf_counter()
    for _ in range(CPU_STEPS):
        runner.decode([noise.randrange(10, 2000) for _ in range(CPU_ROWS)], {})
    return (time.perf_counter() - began_s) / CPU_STEPS


def packed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Median milliseconds of a step with the packed decoder and with the model itself, by experts and rows."""
    del arguments
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
            for way, each in runners.items():
                began_s = time.perf_counter()
                each.decode(tokens, {})
                seconds.setdefault(way, []).append(time.perf_counter() - began_s)
        row = {way: round(statistics.median(times) * 1000, 3) for way, times in seconds.items()}
        table[f"{experts} experts, {rows} rows"] = row | {"times": round(row["plain"] / row["packed"], 2)}
        print(f"{experts:>3} experts, {rows} rows: {table[f'{experts} experts, {rows} rows']}", flush=True)
    return {"step_ms": table}


@torch.inference_mode()
def drafts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Lower quartiles, in milliseconds, of a step by rows and drafts of each, drafting included.

    `pays_from` is what share of rows has to accept each further draft, so that a token takes less than without it.
    """
    del arguments
    model: Any = load_checkpoint(NANO).model
    text = model.config.text_config
    decoder = CompiledDecoder(model, 1024, DraftHead(text.hidden_size, text.rms_norm_eps))
    table = {}
    for rows in DRAFT_ROWS:
        held = SlotCache(
            num_layers=text.num_hidden_layers,
            num_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            max_rows=rows,
            max_tokens=1024,
            dtype=torch.bfloat16,
        )
        window = held.open_rows(rows, DRAFT_LENGTH)
        for layer in range(text.num_hidden_layers):
            keys_BNLD = torch.randn(rows, text.num_key_value_heads, DRAFT_LENGTH, text.head_dim).bfloat16()
            window.update(keys_BNLD, keys_BNLD, layer)
        noise, seconds = random.Random(1), [list[float]() for _ in range(MAX_TOKENS)]
        for _, count in product(range(DRAFT_STEPS), range(MAX_TOKENS)):
            newest = [noise.randrange(10, 2000) for _ in range(rows)]
            states_BH = torch.randn(rows, text.hidden_size)
            began_s = time.perf_counter()
            drafted = decoder.draft(states_BH, newest, count) if count else [[]] * rows
            tokens = [[token, *more] for token, more in zip(newest, drafted, strict=True)]
            decoder.step_several(tokens, held.open_several([count + 1] * rows))
            seconds[count].append(time.perf_counter() - began_s)
            for row in range(rows):
                held.truncate(row, DRAFT_LENGTH)
        times_ms = [statistics.quantiles(each)[0] * 1000 for each in seconds]
        pays_from = [round((after - before) / times_ms[0], 2) for before, after in pairwise(times_ms)]
        table[rows] = {"ms": [round(each, 2) for each in times_ms], "pays_from": pays_from}
        print(f"{rows:>3} rows: {table[rows]}", flush=True)
    return {"tokens": DRAFT_LENGTH, "drafts": table}


def _open_runner(model: DeepseekOcrForConditionalGeneration, rows: int, growth: int = 256) -> CpuRunner:
    """With so many rows of 400 tokens."""
    runner = CpuRunner(model, max_rows=rows, max_tokens=2048, eos_id=1, rule=LoopRule(), growth_tokens=growth)
    noise = random.Random(0)
    no_image = torch.zeros(0, model.config.text_config.hidden_size)
    runner.prefill([Prompt([noise.randrange(10, 2000) for _ in range(400)], no_image) for _ in range(rows)])
    return runner


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "steps": steps,
    "prompts": prompts,
    "views": views,
    "bounds": bounds,
    "staging": staging,
    "poll": poll,
    "memory": memory_of_cards,
    "start": start,
    "cpu-bounds": cpu_bounds,
    "cache": cache,
    "packed": packed,
    "drafts": drafts,
}
CPU_PARTS = ("cpu-bounds", "cache", "packed", "drafts")


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--slots", type=int, default=256, help="pages at once")
    parser.add_argument("--threads", type=int, default=runner.MAX_COMPILING_THREADS, help="that compile, for start")
    parser.add_argument("--memory-fraction", type=float, default=0.9, help="of the simulated card, for memory")
    parser.add_argument("--out", help="file, or auto")
    arguments = parser.parse_args()
    if arguments.part not in CPU_PARTS and not torch.cuda.is_available():
        parser.error(f"{arguments.part} needs CUDA")
    # What `engine_of` reads besides the slots.
    vars(arguments).update(checkpoint=None, nano=False, weights="full", adapters=0, adapter_rank=16)
    result = {"benchmark": "settings", "part": arguments.part} | PARTS[arguments.part](arguments)
    result |= origin("cpu" if arguments.part in CPU_PARTS else "cuda") | {"command": command()}
    keep(result, arguments.out)


if __name__ == "__main__":
    main()
