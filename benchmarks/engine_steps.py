"""The engine from inside: are its numbers right, what does a step take, where does the time go.

    python benchmarks/engine_steps.py check      logits in bf16 through the kernels against float32 in plain torch
    python benchmarks/engine_steps.py start      from weights to ready, stage by stage
    python benchmarks/engine_steps.py decode     a step by number of rows
    python benchmarks/engine_steps.py prefill    a prefill by its prompts
    python benchmarks/engine_steps.py profile    kernels of a decode step (--rows, --tokens) and of a prefill
    python benchmarks/engine_steps.py pages      whole pages through the engine: first token, ms a token, pages a second
    python benchmarks/engine_steps.py host --steps 400     the engine's thread without a device
    python benchmarks/engine_steps.py batching --checkpoint shared/nano --slots 8 --tokens 250     on a CPU

Weights are random, with the public dimensions or, with `--nano`, nano's, unless `--checkpoint` names a folder. `check`,
`pages`, `batching` and `host` also run on a CPU. `--adapters N` gives every row one of N random adapters. `--weights
int8` keeps matrices as 8-bit rows, and `check` then compares them with full weights. Each part prints a table and,
last, a JSON object, and takes about a minute on an H100 once kernels are compiled. `benchmarks/engine.py` has the cases
that are compared with other engines.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from benchmarks.driving import STAGES, read_pages, sync
from benchmarks.random_model import (
    NO_LOOPS,
    PAGE,
    SMALL,
    load_random_adapters,
    noise_pages,
    random_adapter,
    random_checkpoint,
)
from service.engine.config import EngineLimits, WeightForm
from service.engine.engine import TorchEngine
from service.engine.factory import make_engine
from service.engine.gpu.decoder import GpuDecoder
from service.engine.gpu.lora_layers import LoraLevel
from service.engine.gpu.paged_cache import PagedCache
from service.engine.gpu.runner import GpuRunner
from service.engine.gpu.state import AnswerState
from service.engine.lora.bank import AdapterBank
from service.engine.process.codec import EngineOutputs, encode_message
from service.engine.protocol import EngineInfo, SamplingParams, SequenceRequest, SequenceResult
from service.engine.runner import NewRow, StepOutput
from shared.deepseek_ocr.forms import PageViews, PreparedPage
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, ViewPlan
from shared.deepseek_ocr.loading import LoadedCheckpoint, load_checkpoint
from shared.deepseek_ocr.nano_config import nano_config
from shared.deepseek_ocr.tokenizer import OcrTokenizer

NANO = Path(__file__).resolve().parents[1] / "shared" / "nano"
PROMPT_TOKENS = 276
REPEATS = 5


def checkpoint_of(arguments: argparse.Namespace) -> LoadedCheckpoint:
    """Random weights or a checkpoint's, on the GPU in bf16 if there is one; no answer ends by itself."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if arguments.checkpoint:
        loaded = load_checkpoint(arguments.checkpoint, device, dtype)
        loaded.tokenizer.eos_id = -1
        return loaded
    return random_checkpoint(device, dtype, nano_config() if arguments.nano else None)


def engine_of(arguments: argparse.Namespace, checkpoint: LoadedCheckpoint | None = None) -> TorchEngine:
    """An engine that has not been warmed up."""
    limits = EngineLimits(
        batch_size=arguments.slots,
        max_new_tokens=1024,
        max_sequence_tokens=2048,
        loop_rule=NO_LOOPS,
        weights=arguments.weights,
        adapter_slots=arguments.adapters,
        adapter_max_rank=arguments.adapter_rank,
    )
    checkpoint = checkpoint or checkpoint_of(arguments)
    engine = make_engine(checkpoint, limits)
    text = checkpoint.model.config.text_config
    load_random_adapters(engine, text, arguments.adapters, arguments.adapter_rank)
    return engine


def runner_of(arguments: argparse.Namespace) -> GpuRunner:
    """A warm runner, without an engine about it."""
    runner: Any = engine_of(arguments)._runner  # the engine has no use for it here
    runner.warm_up()
    return runner


def adapter_of(index: int, count: int, adapters: int) -> int:
    """Whose adapter a row uses; neighbours have the same, as in the engine's steps."""
    return index * adapters // count if adapters else -1


def open_rows(
    runner: GpuRunner, count: int, prompt_tokens: int, max_new_tokens: int = 1024, *, adapters: int = 0
) -> None:
    """Fill slots with prompts of text, at most 32 at once."""
    noise = np.random.default_rng(0)
    for first in range(0, count, 32):
        slots = range(first, min(first + 32, count))
        ids = noise.integers(10, 2000, (len(slots), prompt_tokens)).tolist()
        rows = [
            NewRow(s, ids[i], torch.zeros(0, 1), SamplingParams(max_new_tokens), adapter_of(s, count, adapters))
            for i, s in enumerate(slots)
        ]
        runner.open(rows)
        runner.collect()


def close_rows(runner: GpuRunner, count: int) -> None:
    """Empty them."""
    for slot in range(count):
        runner.close(slot)


def check(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare logits with those of float32 in plain torch, for prompts together and for rows that follow them."""
    from service.engine.kernels.reference import decoder as reference

    checkpoint = checkpoint_of(arguments)
    model: Any = checkpoint.model
    on_gpu = torch.cuda.is_available()
    kernels: Any = reference
    if on_gpu:
        from service.engine.kernels.triton import decoder as fused

        kernels = fused
    sets = {"kernels": (kernels, model, False)}
    if arguments.weights is WeightForm.INT8:
        sets["kernels, 8-bit rows"] = (kernels, model, True)
    if on_gpu:
        # What bf16 costs by itself, whatever the kernels.
        sets["plain torch, same type"] = (reference, model, False)
    wide: Any = random_checkpoint(model.lm_head.weight.device, torch.float32, model.config).model
    wide.load_state_dict({name: value.float() for name, value in model.state_dict().items()}, assign=True)
    truth = trace(wide, reference, arguments.adapters, arguments.adapter_rank)
    table = {}
    for name, (kernel_set, of, is_int8) in sets.items():
        found = trace(of, kernel_set, arguments.adapters, arguments.adapter_rank, is_int8=is_int8)
        table[name] = {step: compare(found[step], truth[step]) for step in truth}
        for step, (error, worst, equal) in table[name].items():
            print(f"{name:<24} {step:<26} error {error:.4f}, worst row {worst:.4f}, same choice {equal:.1%}")
    return {"check": table}


def compare(found: Tensor, truth: Tensor) -> tuple[float, float, float]:
    """Relative error of all logits, of the worst row, and the share of rows with the same best token."""
    found, truth = found.float(), truth.float()
    rows = (found - truth).norm(dim=1) / truth.norm(dim=1)
    equal = (found.argmax(1) == truth.argmax(1)).float().mean()
    return round(((found - truth).norm() / truth.norm()).item(), 5), round(rows.max().item(), 5), round(equal.item(), 4)


@torch.inference_mode()
def trace(model: Any, kernels: Any, adapters: int, rank: int, *, is_int8: bool = False) -> dict[str, Tensor]:
    """Logits of prompts read together, then of decode steps with forced tokens, so that paths never part."""
    text, device, dtype = model.config.text_config, model.lm_head.weight.device, model.lm_head.weight.dtype
    lengths, slots = [276, 17, 906, 64, 130, 1, 65, 512], list(range(8))
    decoder = GpuDecoder(model, kernels, max_positions=2048, takes_adapters=adapters > 0, is_int8=is_int8)
    bank = None
    if adapters:
        bank = AdapterBank(text, num_slots=adapters, max_rank=rank, device=device, dtype=dtype, splits_shared=True)
        for slot in range(adapters):
            bank.load(slot, bank.pack(random_adapter(text, rank, slot, strength=0.02)))
    chosen = [slot % (adapters + 1) - 1 for slot in slots] if adapters else None
    cache = PagedCache(
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        head_dim=text.head_dim,
        num_slots=8,
        num_blocks=8 * 20,
        max_tokens=1280,
        device=device,
        dtype=dtype,
    )
    for keys, values in cache.layers:
        keys.fill_(float("nan"))
        values.fill_(float("nan"))
    state = AnswerState.create(8, 64, NO_LOOPS, -1, device)
    no_vision: Any = None
    runner = GpuRunner(
        model, decoder=decoder, vision=no_vision, cache=cache, state=state, kernels=kernels, rule=NO_LOOPS, bank=bank
    )
    noise = np.random.default_rng(1)
    prompts = [noise.integers(10, 2000, length).tolist() for length in lengths]
    cache.open(slots, [length + 40 for length in lengths])
    cells = [cache.cells(slot, length) for slot, length in enumerate(lengths)]
    named = chosen or [-1] * len(slots)
    reader = runner._prompts
    found = {"prefill, 8 prompts": reader._launch(prompts, cells, [], named, LoraLevel.of(bank, named))}
    # Padded, as captured prefills are; writes the same keys again.
    found["prefill, 3 prompts, padded"] = reader.graphs[-1].run(prompts[:3], cells[:3], [], named[:3])
    state.open(slots, [length + 1 for length in lengths], [64] * 8, adapters=chosen)
    forced = torch.from_numpy(noise.integers(10, 2000, (12, 8))).to(device)
    for step in range(12):
        state.token_S[:8] = forced[step]
        rows = slots if step % 3 == 0 else slots[:1] if step % 3 == 1 else slots[2:5]
        # Rows that sit a step out do not move on.
        logits = decoder.decode(torch.tensor(rows, device=device), state, cache, bank)
        state.position_S[rows] += 1
        found[f"step {step}, {len(rows)} rows"] = logits
    return {name: logits.clone() for name, logits in found.items()}


def start(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time the way to a ready engine; the weights are made, not read."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    began_s = time.perf_counter()
    checkpoint = checkpoint_of(arguments)
    sync()
    weights_s = time.perf_counter()
    engine = engine_of(arguments, checkpoint)
    sync()
    made_s = time.perf_counter()
    engine.warm_up()
    ready_s = time.perf_counter()
    seconds = {"weights": weights_s - began_s, "engine": made_s - weights_s, "warm_up": ready_s - made_s}
    for name, value in seconds.items():
        print(f"{name:<10} {value:6.2f} s")
    return {"start_s": {name: round(value, 2) for name, value in seconds.items()}}


def decode(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time steps back to back, enqueued ahead, by number of rows; and what the host pays for enqueuing one."""
    runner = runner_of(arguments)
    table = {}
    print(f"{'rows':>5} {'ms/step':>9} {'host ms':>8} {'tokens/s':>9}   at {arguments.tokens} tokens a row")
    for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        if rows > arguments.slots:
            continue
        open_rows(runner, rows, arguments.tokens, adapters=arguments.adapters)
        step_ms, host_ms = time_steps(runner, list(range(rows)), arguments.steps)
        close_rows(runner, rows)
        table[rows] = round(step_ms, 4)
        print(f"{rows:>5} {step_ms:>9.3f} {host_ms:>8.3f} {rows / step_ms * 1000:>9.0f}", flush=True)
    return {"decode_step_ms": table, "row_tokens": arguments.tokens}


def time_steps(runner: GpuRunner, slots: Sequence[int], steps: int) -> tuple[float, float]:
    """Milliseconds of a step, one enqueued ahead, and of the host for enqueuing it."""
    host_s = 0.0

    def step() -> None:
        nonlocal host_s
        began_s = time.perf_counter()
        runner.launch(slots)
        host_s += time.perf_counter() - began_s

    for _ in range(3):
        step()
    for _ in range(3):
        runner.collect()
    sync()
    host_s = 0.0
    began_s = time.perf_counter()
    step()
    for _ in range(steps - 1):
        step()
        runner.collect()
    runner.collect()
    sync()
    return (time.perf_counter() - began_s) / steps * 1000, host_s / steps * 1000


def prefill(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time whole prefills, from the prompts' ids to their first tokens."""
    runner = runner_of(arguments)
    table = {}
    print(f"{'prompts':>8} {'tokens':>7} {'ms':>8} {'host ms':>8} {'TFLOP/s':>8}")
    for count, tokens in ((1, 276), (1, 906), (4, 906), (14, 276), (16, 906), (59, 276)):
        if count > arguments.slots:
            continue
        whole_ms, host_ms = time_prefill(runner, count, tokens, adapters=arguments.adapters)
        table[f"{count}x{tokens}"] = whole_ms
        flops = 1.14e9 * count * tokens
        print(f"{count:>8} {tokens:>7} {whole_ms:>8.2f} {host_ms:>8.2f} {flops / whole_ms / 1e9:>8.0f}")
    return {"prefill_ms": table}


def time_prefill(runner: GpuRunner, count: int, tokens: int, *, adapters: int = 0) -> tuple[float, float]:
    """Milliseconds of a prefill, first tokens included, and of the host for enqueuing it; the fastest of five."""
    ids = np.random.default_rng(0).integers(10, 2000, (count, tokens)).tolist()
    rows = [
        NewRow(slot, ids[slot], torch.zeros(0, 1), SamplingParams(64), adapter_of(slot, count, adapters))
        for slot in range(count)
    ]
    seconds = []
    for _ in range(REPEATS):
        sync()
        began_s = time.perf_counter()
        runner.open(rows)
        enqueued_s = time.perf_counter()
        runner.collect()
        seconds.append((time.perf_counter() - began_s, enqueued_s - began_s))
        close_rows(runner, count)
    return least_ms(seconds)


def least_ms(seconds: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The least of the first and of the second, in milliseconds."""
    whole_s, host_s = (min(each) for each in zip(*seconds, strict=True))
    return round(whole_s * 1000, 3), round(host_s * 1000, 3)


def profile(arguments: argparse.Namespace) -> dict[str, Any]:
    """Print which kernels a decode step and a prefill spend their time in."""
    runner = runner_of(arguments)
    open_rows(runner, arguments.rows, arguments.tokens, adapters=arguments.adapters)
    slots = list(range(arguments.rows))

    def steps() -> None:
        for _ in range(10):
            runner.launch(slots)
            runner.collect()

    def prompts() -> None:
        for _ in range(3):
            open_rows(runner, 14, PROMPT_TOKENS)
            close_rows(runner, 14)

    steps()
    print(f"decode, {arguments.rows} rows, 10 steps")
    print(_profiled(steps))
    close_rows(runner, arguments.rows)
    prompts()
    print("prefill, 14 prompts of 276 tokens, 3 times")
    print(_profiled(prompts))
    return {}


def _profiled(work: Callable[[], None]) -> str:
    from torch.profiler import ProfilerActivity

    sync()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        work()
        sync()
    averages = profiler.key_averages()
    table: str = averages.table(
        sort_by="self_cuda_time_total", row_limit=28, max_name_column_width=60, top_level_events_only=False
    )
    # The columns of the host are of no interest here.
    keep = [event for event in averages if event.self_device_time_total > 0 and not event.cpu_time_total]
    keep.sort(key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in keep) or 1
    lines = [
        f"{event.self_device_time_total / 1000:>9.3f} ms {event.self_device_time_total / total:>6.1%} "
        f"{event.count:>6} x {event.self_device_time_total / event.count:>8.2f} us  {event.key[:90]}"
        for event in keep[:28]
    ]
    return "\n".join([*lines, f"{total / 1000:>9.3f} ms in all"]) if keep else table


def pages(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read pages whose views are ready, as the cases of `benchmarks/engine.py` without preparing images."""
    engine = engine_of(arguments)
    engine.warm_up()
    geometry, table = engine.info.geometry, {}
    cases = [
        ("warm", 8, SMALL, 16), ("warm-page", 8, PAGE, 16),
        ("ttft", 1, SMALL, 1), ("ttft", 1, SMALL, 1), ("latency", 1, SMALL, 257), ("ttft-page", 1, PAGE, 1),
        ("latency-page", 1, PAGE, 257), ("prefill", 256, SMALL, 1), ("prefill-page", 128, PAGE, 1),
        ("throughput", 256, SMALL, 512), ("throughput-page", 128, PAGE, 512),
    ]  # fmt: skip
    print(
        f"{'case':<16} {'pages':>5} {'tokens':>6} {'s':>8} {'pages/s':>8} {'ms/token':>9} {'tokens/s':>9} {'steps':>6}"
    )
    for name, asked, size, tokens in cases:
        count = min(asked, arguments.slots)
        run = read_pages(engine, noise_pages(size, geometry, count), tokens, name)
        token_ms = run.generate_s / max(tokens - 1, 1) * 1000
        table[name] = {
            "wall_s": round(run.wall_s, 4),
            "pages_per_s": round(count / run.wall_s, 2),
            "token_ms": round(token_ms, 3),
        }
        print(
            f"{name:<16} {count:>5} {tokens:>6} {run.wall_s:>8.4f} {count / run.wall_s:>8.2f} {token_ms:>9.3f} "
            f"{count * tokens / run.wall_s:>9.0f} {run.steps:>6}",
            flush=True,
        )
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(f"peak memory of tensors {peak:.2f} GiB, reserved {torch.cuda.max_memory_reserved() / 2**30:.2f} GiB")
    return {"pages": table}


def batching(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read one page, `--slots` pages one after another, and as many together, `--tokens` long; the best of three.

    A decode step of a small model is bound by reading its weights, which a batch reads once for all pages. Encoding and
    prefill are bound by arithmetic, which a batch does not save. The stages say how much of a page is decoding.
    """
    engine = engine_of(arguments)
    engine.warm_up()
    pages = noise_pages(SMALL, engine.info.geometry, arguments.slots)
    table = {}
    print(f"{'case':<9} {'pages':>5} {'wall_s':>8} {'pages/s':>8}" + "".join(f" {stage:>10}" for stage in STAGES))
    for name, groups in (("one", [pages[:1]]), ("in_turn", [[page] for page in pages]), ("together", [pages])):
        runs = [[read_pages(engine, group, arguments.tokens, name) for group in groups] for _ in range(3)]
        best = min(runs, key=lambda run: sum(each.wall_s for each in run))
        row = {stage: round(sum(getattr(each, stage) for each in best), 3) for stage in ("wall_s", *STAGES)}
        count, table[name] = sum(map(len, groups)), row
        stages = "".join(f" {row[stage]:>10.2f}" for stage in STAGES)
        print(f"{name:<9} {count:>5} {row['wall_s']:>8.2f} {count / row['wall_s']:>8.2f}{stages}", flush=True)
    ratio = round(table["in_turn"]["wall_s"] / table["together"]["wall_s"], 3)
    return {"batching": table, "tokens": arguments.tokens, "in_turn_over_together_ratio": ratio}


class ReadyRunner:
    """The part of `runner.Runner` that decoding calls: any tokens but the special ones, each step at its time."""

    depth = 1
    prepares_views = False
    skips_padding = False
    steps = ""
    kv_tokens = 1 << 30
    block_tokens = 64
    kept_answer_tokens = None

    def __init__(self, rows: int, step_s: float) -> None:
        self._step_s = step_s
        self._numbers = np.random.default_rng(0).integers(10, 1800, (64, rows, 4)).astype(np.int32)
        # Log probabilities as bits, codes and runs: everything goes on.
        self._numbers[:, :, 1] = np.full((64, rows), -0.1, np.float32).view(np.int32)
        self._numbers[:, :, 2:] = 0
        self._owed: deque[tuple[float, int]] = deque()
        self._free_s = 0.0
        self._steps = 0
        self.waited_s = 0.0

    def warm_up(self) -> None:
        """Nothing to do."""

    def prepare(self, page: PreparedPage, geometry: GeometryConfig) -> Sequence[Any]:
        """One view is enough."""
        del geometry
        return page.arrays[:1]

    def encode(self, views: Sequence[Any]) -> list[Any]:
        """Anything will do."""
        return list(views)

    def assemble(self, pages: Sequence[tuple[ViewPlan, Sequence[Any]]]) -> Any:
        """Anything will do."""
        return pages[0][1][0]

    def open(self, rows: Sequence[NewRow]) -> None:
        """Owe their first tokens."""
        self._owe(len(rows))

    def launch(self, slots: Sequence[int]) -> None:
        """Owe one more."""
        self._owe(len(slots))

    def collect(self) -> StepOutput | None:
        """Wait until the step would have ended."""
        ends_s, count = self._owed.popleft()
        wait_s = ends_s - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
            self.waited_s += wait_s
        self._steps += 1
        tokens, bits, statuses, arguments = np.ascontiguousarray(self._numbers[self._steps % 64, :count].T)
        return StepOutput(tokens.tolist(), bits.view(np.float32).tolist(), statuses.tolist(), arguments.tolist())

    def close(self, slot: int) -> None:
        """Nothing to free."""

    def device_memory_bytes(self) -> int:
        """None."""
        return 0

    def check_integrity(self) -> None:
        """Nothing to check."""

    def _owe(self, count: int) -> None:
        self._free_s = max(self._free_s, time.perf_counter()) + self._step_s
        self._owed.append((self._free_s, count))


def host(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time steps of a full engine over a runner that computes nothing.

    The runner returns ready numbers, but no step ends before `--step-ms`, as on a GPU. What the host does for a step
    overlaps with it, so a step takes the longer of the two. `host_ms` is all that the thread does except waiting:
    scheduling, tokens, texts, events, and encoding the events for the pipe.
    """
    tokenizer = OcrTokenizer.from_file(NANO / "tokenizer.json")
    geometry = GeometryConfig()
    info = EngineInfo("host", "none", "none", geometry, 4096, 8192, arguments.rows)
    limits = EngineLimits(batch_size=arguments.rows, loop_rule=NO_LOOPS, idle_multiplier=100)
    runner: Any = ReadyRunner(arguments.rows, arguments.step_ms / 1000)
    engine = TorchEngine(runner, tokenizer, info, limits)
    view = np.zeros((1, 1, 3), np.uint8)
    plan = ViewPlan(Mode.BASE, 1, 1, 0, 0, PROMPT_TOKENS - 11)
    # Twice as many pages as there are slots, so that some wait all the time.
    for index in range(2 * arguments.rows):
        page = PageViews(plan, view, np.zeros((0, 1, 1, 3), np.uint8))
        engine.submit(SequenceRequest(f"page-{index:08d}", page, "\nFree OCR.", SamplingParams(4000), "host"))
    for _ in range(20):
        engine.step()
    runner.waited_s, began_s, cpu_s, num_events, num_bytes = 0.0, time.perf_counter(), time.thread_time(), 0, 0
    worst_s = 0.0
    for _ in range(arguments.steps):
        step_s, waited_s = time.perf_counter(), runner.waited_s
        events = engine.step()
        if events:
            num_bytes += len(encode_message(EngineOutputs(tuple(events), engine.stats())))
        assert not any(isinstance(event, SequenceResult) for event in events)
        num_events += len(events)
        worst_s = max(worst_s, time.perf_counter() - step_s - (runner.waited_s - waited_s))
    wall_s, cpu_s = time.perf_counter() - began_s, time.thread_time() - cpu_s
    result = {
        "rows": arguments.rows,
        "device_step_ms": arguments.step_ms,
        "step_ms": round(wall_s / arguments.steps * 1000, 3),
        "host_ms": round((wall_s - runner.waited_s) / arguments.steps * 1000, 3),
        "host_cpu_ms": round(cpu_s / arguments.steps * 1000, 3),
        "host_worst_ms": round(worst_s * 1000, 3),
        "events_per_step": round(num_events / arguments.steps, 1),
        "pipe_bytes_per_step": round(num_bytes / arguments.steps),
    }
    for name, value in result.items():
        print(f"{name:<20} {value}")
    return result


PARTS = {"check": check, "start": start, "decode": decode, "prefill": prefill, "profile": profile, "pages": pages,
         "batching": batching, "host": host}  # fmt: skip


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--nano", action="store_true", help="nano's dimensions")
    parser.add_argument("--checkpoint", help="folder whose weights are used instead of random ones")
    parser.add_argument("--slots", type=int, default=256, help="pages at once")
    parser.add_argument("--rows", type=int, default=256, help="rows of a step, for profile and host")
    parser.add_argument("--tokens", type=int, default=530, help="of a row before the step; of an answer, for batching")
    parser.add_argument("--adapters", type=int, default=0, help="resident adapters, of which every row has one")
    parser.add_argument("--adapter-rank", type=int, default=16)
    parser.add_argument("--weights", type=WeightForm, choices=(WeightForm.FULL, WeightForm.INT8), default="full")
    parser.add_argument("--steps", type=int, default=50, help="steps that are timed")
    parser.add_argument("--step-ms", type=float, default=9.0, help="what the device would take for a step, for host")
    arguments = parser.parse_args()
    result = PARTS[arguments.part](arguments)
    result |= {"benchmark": f"engine_steps {arguments.part}", "torch": torch.__version__}
    result |= {"weights": arguments.weights} if arguments.weights is not WeightForm.FULL else {}
    if torch.cuda.is_available():
        result["card"] = torch.cuda.get_device_name()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
