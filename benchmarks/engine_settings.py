"""The engine's constants beside other values: batches, bounds, buffers, memory; needs CUDA.

    python benchmarks/engine_settings.py steps      rows of captured decode steps: what padding costs, what graphs cost
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.engine_steps import close_rows, engine_of, open_rows, sync
from benchmarks.origin import command, keep, origin
from benchmarks.random_model import PAGE, SMALL, noise_pages, random_checkpoint
from service.engine.engine import TorchEngine
from service.engine.gpu import graphs, making, memory, reports, runner, vision
from service.engine.gpu.adapted import Need
from service.engine.gpu.preparation import STAGING_BYTES, Staging
from service.engine.gpu.vision import GpuVision
from service.engine.protocol import SequenceFailure, SequenceRequest, SequenceResult
from service.engine.runner import NewRow
from shared.deepseek_ocr.forms import PageImage, PageViews
from shared.deepseek_ocr.geometry import GeometryConfig, plan_views

FINE_ROWS = (*range(1, 9), *range(10, 17, 2), *range(20, 33, 4), *range(40, 65, 8), *range(80, 257, 16))
ROW_LISTS = {
    "powers of two": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "as chosen": graphs.BUCKETS,
    "fine": FINE_ROWS,
}
REPEATS = 5


@contextmanager
def replaced(module: Any, **values: Any) -> Iterator[None]:
    """Constants of a module, for a while."""
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def steps(arguments: argparse.Namespace) -> dict[str, Any]:
    """A step's time by number of rows, each with a graph of its own, and what a list of sizes would cost.

    The cost of a list: how much longer than with graphs for every number a step takes, in the mean over 1 to 256
    rows and over 1 to 32.
    """
    engine = engine_of(arguments)
    gpu: Any = engine._runner
    with replaced(graphs, BUCKETS=FINE_ROWS):
        gpu._steps = [gpu._step_graphs(Need.NOTHING, True)]
        with torch.inference_mode():
            gpu._compile()
    reserved = torch.cuda.memory_reserved()
    began_s = time.perf_counter()
    gpu._steps[0].warm_up(torch.cuda.graph_pool_handle())
    capture_s = time.perf_counter() - began_s
    grown = torch.cuda.memory_reserved() - reserved
    step_ms = {}
    for rows in FINE_ROWS:
        open_rows(gpu, rows, 530)
        step_ms[rows] = _step_ms(gpu, list(range(rows)))
        close_rows(gpu, rows)
        print(f"{rows:>4} rows {step_ms[rows]:>8.3f} ms", flush=True)
    every = np.interp(range(257), [0, *step_ms], [0, *step_ms.values()])
    costs = {}
    for name, sizes in ROW_LISTS.items():
        padded = [every[next(size for size in sizes if size >= rows)] for rows in range(1, 257)]
        excess = np.array(padded) / every[1:] - 1
        costs[name] = {"sizes": len(sizes), "all": round(excess.mean(), 4), "to_32": round(excess[:32].mean(), 4)}
        print(f"{name:<14} {len(sizes):>3} sizes, {excess.mean():.1%} longer, {excess[:32].mean():.1%} to 32 rows")
    print(f"capturing {len(FINE_ROWS)} took {capture_s:.2f} s and {grown / 2**20:.0f} MiB, compiled before")
    return {"step_ms": step_ms, "lists": costs, "capture_s": round(capture_s, 2), "capture_bytes": grown}


def _step_ms(gpu: Any, slots: list[int], count: int = 30) -> float:
    for _ in range(3):
        gpu.launch(slots)
        gpu.collect()
    sync()
    began_s = time.perf_counter()
    gpu.launch(slots)
    for _ in range(count - 1):
        gpu.launch(slots)
        gpu.collect()
    gpu.collect()
    sync()
    return round((time.perf_counter() - began_s) / count * 1000, 4)


def prompts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a prefill, its first tokens included, captured and launched kernel by kernel."""
    sizes = (*range(64, 1025, 64), *range(1152, 2049, 128), *range(2304, 4097, 256))
    result: dict[str, Any] = {}
    for most in (4, 16):
        table: dict[str, dict[str, float]] = {}
        with replaced(graphs, PROMPT_BUCKETS=sizes, MAX_PROMPTS=most):
            engine = engine_of(arguments)
            gpu: Any = engine._runner
            gpu.warm_up()
            reserved_mib = torch.cuda.memory_reserved() / 2**20
            cases = [(1, size) for size in sizes if size <= 1024]
            cases += [(2, 276), (4, 276), (7, 276), (14, 276), (2, 906), (4, 906)]
            for count, tokens in cases:
                times: dict[str, float] = {}
                for way, takes in (("captured", count <= most), ("launched", False)):
                    with replaced(graphs.PromptGraphs, takes=lambda self, prompts, takes=takes: takes):
                        times[way], times[f"{way}_host"] = _prefill_ms(gpu, count, tokens)
                table[f"{count}x{tokens}"] = times
                print(f"{count:>3} x {tokens:<5}" + "".join(f"{name:>16} {ms:>7.3f}" for name, ms in times.items()))
        print(f"prompts of a graph: {most}; {reserved_mib:.0f} MiB", flush=True)
        result[f"{most} prompts"] = table
        del engine, gpu
        gc.collect()
    return {"prefill_ms": result}


def _prefill_ms(gpu: Any, count: int, tokens: int) -> tuple[float, float]:
    """In all, and of the host."""
    ids = np.random.default_rng(0).integers(10, 2000, (count, tokens)).tolist()
    rows = [NewRow(slot, ids[slot], torch.zeros(0, 1), 64, -1) for slot in range(count)]
    times = []
    for _ in range(REPEATS):
        sync()
        began_s = time.perf_counter()
        gpu.open(rows)
        enqueued_s = time.perf_counter()
        gpu.collect()
        times.append((time.perf_counter() - began_s, enqueued_s - began_s))
        close_rows(gpu, count)
    return _least_ms(times)


def _least_ms(times: list[tuple[float, float]]) -> tuple[float, float]:
    return round(min(whole_s for whole_s, _ in times) * 1000, 3), round(min(part_s for _, part_s in times) * 1000, 3)


def views(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of so many views, with a graph for every number and without any; and what lists of sizes would cost.

    The cost of a step: how much longer than with a graph for every number, in the mean over all numbers of a chunk.
    """
    del arguments
    checkpoint = random_checkpoint()
    result = {}
    for side_px, most in ((640, 40), (1024, 16)):
        with replaced(vision, captured_counts=lambda patches, chunk: list(range(1, chunk + 1))):
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
            with replaced(vision, STEP_PATCHES=step_views * patches):
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
    return _least_ms(times)


def read(engine: TorchEngine, pages: Sequence[PageViews | PageImage], tokens: int, name: str) -> float:
    """Read pages that arrive together; seconds."""
    sync()
    began_s = time.perf_counter()
    for index, page in enumerate(pages):
        engine.submit(SequenceRequest(f"{name}-{index}", page, "", tokens, engine.info.model_id))
    done = 0
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, SequenceFailure):
                raise SystemExit(f"{event.sequence_id}: {event.detail}")
            done += isinstance(event, SequenceResult)
    assert done == len(pages)
    return time.perf_counter() - began_s


def images_of(size: tuple[int, int], geometry: GeometryConfig, count: int) -> list[PageImage]:
    """Pages of noise as the service sends them."""
    noise = np.random.default_rng(0)
    plan = plan_views(*size, geometry.default_mode, geometry)
    different = [
        PageImage(plan, noise.integers(0, 256, (size[1], size[0], 3), np.uint8)) for _ in range(min(count, 16))
    ]
    return [different[index % len(different)] for index in range(count)]


def bounds(arguments: argparse.Namespace) -> dict[str, Any]:
    """Pages a second of full engines, and the longest time between two steps of running pages while others come."""
    engine = engine_of(arguments)
    engine.warm_up()
    pages: Any = engine._pages
    usual = pages._schedule
    geometry = engine.info.geometry
    small, page = images_of(SMALL, geometry, 256), images_of(PAGE, geometry, 128)
    read(engine, page[:32], 4, "warm")
    table = {}
    print(f"{'views':>6} {'tokens':>7} {'idle':>5} {'SMALL':>7} {'PAGE':>7} {'PAGE x 1':>9} {'gap ms':>7}")
    for views_per_step, prefill_tokens, idle in (
        (16, 4096, 4), (16, 4096, 1), (16, 4096, 2), (16, 4096, 8), (4, 4096, 4), (8, 2048, 4), (8, 4096, 4),
        (16, 2048, 4), (16, 8192, 4), (32, 8192, 2), (32, 8192, 4), (64, 16384, 1), (16, 4096, 4),
    ):  # fmt: skip
        pages._schedule = replace(
            usual, views_per_step=views_per_step, prefill_tokens_per_step=prefill_tokens, idle_factor=idle
        )
        rates = [
            round(len(batch) / read(engine, batch, tokens, "run"), 2)
            for batch, tokens in ((small, 256), (page, 256), (page, 1))
        ]
        gap_ms = round(_longest_gap_s(engine, page[:32]) * 1000, 1)
        key = f"{views_per_step} views, {prefill_tokens} tokens, idle {idle}"
        while key in table:
            key += ", again"
        table[key] = {"small_256": rates[0], "page_256": rates[1], "page_1": rates[2], "gap_ms": gap_ms}
        print(
            f"{views_per_step:>6} {prefill_tokens:>7} {idle:>5} {rates[0]:>7} {rates[1]:>7} {rates[2]:>9} {gap_ms:>7}",
            flush=True,
        )
    return {"bounds": table}


def _longest_gap_s(engine: TorchEngine, pages: Sequence[PageImage]) -> float:
    """Between two returns of a step while eight pages run and others are begun."""
    for index, page in enumerate(images_of(SMALL, engine.info.geometry, 8)):
        engine.submit(SequenceRequest(f"running-{index}", page, "", 400, engine.info.model_id))
    for _ in range(30):
        engine.step()
    for index, page in enumerate(pages):
        engine.submit(SequenceRequest(f"coming-{index}", page, "", 1, engine.info.model_id))
    longest_s, last_s, coming = 0.0, time.perf_counter(), len(pages)
    while engine.has_work:
        events = engine.step()
        now_s = time.perf_counter()
        if coming:
            longest_s = max(longest_s, now_s - last_s)
        coming -= sum(isinstance(e, SequenceResult) and e.sequence_id.startswith("coming") for e in events)
        last_s = now_s
    return longest_s


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
    quarter = STAGING_BYTES // 2
    for times in (1, 2, 4, 8, 16, 4):
        gpu._preparation._staging = Staging(torch.device("cuda"), quarter * times)
        # The first page takes the memory.
        began_s = time.perf_counter()
        gpu._preparation.prepare(pages["SMALL"][0], geometry)
        sync()
        taken_s = time.perf_counter() - began_s
        rates = {}
        for name, batch in pages.items():
            best_s = min(read(engine, batch, 1, "run") for _ in range(2))
            rates[name] = round(len(batch) / best_s, 1)
        table[f"{times} images" + (", again" if f"{times} images" in table else "")] = rates | {
            "taken_ms": round(taken_s * 1000, 1)
        }
        print(f"{times:>3} images, {quarter * times / 2**20:.0f} MiB, taken in {taken_s * 1000:.0f} ms: {rates}")
    return {"staging": table}


def poll(arguments: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds a token and the share of a core that the engine's thread takes, by pause."""
    engine = engine_of(arguments)
    engine.warm_up()
    table = {}
    for pause_us in (0, 5, 20, 50, 100, 200, 20):
        with replaced(reports, POLL_S=pause_us * 1e-6):
            row = {}
            for rows in (1, 64):
                batch = noise_pages(SMALL, engine.info.geometry, rows)
                read(engine, batch, 8, "warm")
                cpu_s, short_s = time.thread_time(), read(engine, batch, 16, "short")
                cpu_s = time.thread_time()
                wall_s = read(engine, batch, 272, "run")
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

        with replaced(torch.cuda, mem_get_info=acted), replaced(memory, RESERVE_BYTES=reserve_mib << 20):
            engine = engine_of(arguments)
            engine.warm_up()
        geometry = engine.info.geometry
        rates = [
            round(len(batch) / read(engine, batch, tokens, "run"), 2)
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
    with replaced(runner, MAX_COMPILING_THREADS=arguments.threads):
        engine = engine_of(arguments)
        began_s = time.perf_counter()
        engine.warm_up()
        seconds = time.perf_counter() - began_s
    print(f"{arguments.threads} threads: {seconds:.1f} s")
    return {"threads": arguments.threads, "warm_up_s": round(seconds, 2)}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "steps": steps,
    "prompts": prompts,
    "views": views,
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
