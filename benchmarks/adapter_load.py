"""How long an adapter takes from a folder to its first answer, by stage, in an idle engine and in a busy one.

    python benchmarks/adapter_load.py                                   DeepSeek-OCR's dimensions, random weights, a GPU
    python benchmarks/adapter_load.py --model nano --device cpu --streams 4
    python benchmarks/adapter_load.py --model nano-random --device cpu   nano's dimensions, random weights: gaps, too

The engine runs in its own process, as in the service. Stages: `copy`, into a folder of its own while it is hashed, as
verification does it; `read`, the files into the engine's memory, during its steps; `place`, into the slot, between two
steps; `load`, both as the service sees them, messages included; `canary`, the page that every new version reads;
`answer`, a page of 640 px up to its first text. `total` is copy, load, canary and answer: what follows the rename that
publishes a version once the service has seen it. The checks of verification (manifest, header, values) are not part of
it: they run in the service's process, see `verify` in `benchmarks/adapters.py`.

Busy means that the base model is decoding `--streams` pages. `gap` is the longest time that one of them got no new text
between the copy and the end of the canary page; compare it with the longest while nothing was loaded and while an
ordinary page started (`answer`). Gaps need random weights: nano writes nothing more after a page's end. Prints a table
and, last, a JSON line; `--out FILE` appends that line to a file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.origin import command, keep, origin
from benchmarks.random_model import SMALL, noise_page, random_checkpoint, write_random_adapter
from service.adapters.canary import read_canary
from service.engine.config import EngineLimits
from service.engine.engine import TorchEngine
from service.engine.factory import make_engine
from service.engine.process.engines import ProcessEngine
from service.engine.protocol import SamplingParams, SequenceDelta, SequenceEvent, SequenceFailure, SequenceRequest
from shared.contract.prompts import Task, prompt_for
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.configuration import DeepseekOcrConfig
from shared.deepseek_ocr.loading import load_checkpoint
from shared.deepseek_ocr.nano_config import nano_config

NANO = Path(__file__).resolve().parents[1] / "shared" / "nano"
STAGES = ("copy", "read", "place", "load", "canary", "answer", "total")
CHUNK_BYTES = 1024 * 1024
ENDLESS_TOKENS = 4000
NEVER = 1_000_000


def make(model: str, device: str, limits: EngineLimits) -> TorchEngine:
    """The engine, in its process."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    if model == "nano":
        checkpoint = load_checkpoint(NANO, device, dtype)
    else:
        checkpoint = random_checkpoint(device, dtype, config_of(model))
    checkpoint.tokenizer.eos_id = -1  # no answer ends by itself
    return make_engine(checkpoint, limits)


def config_of(model: str) -> DeepseekOcrConfig:
    """The model's dimensions."""
    return DeepseekOcrConfig() if model == "random" else nano_config()


def copy_hashed(source: Path, target: Path) -> None:
    """What verification does with each file."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        digest = hashlib.sha256()
        with path.open("rb") as read, (target / path.name).open("wb") as write:
            while chunk := read.read(CHUNK_BYTES):
                digest.update(chunk)
                write.write(chunk)


def request_of(engine: ProcessEngine, model_id: str, tokens: int) -> SequenceRequest:
    """A page of noise of 640 px."""
    page = noise_page(SMALL, engine.info.geometry)
    return SequenceRequest(uuid.uuid4().hex, page, prompt_for(Task.FREE), SamplingParams(tokens), model_id)


async def first_text_s(engine: ProcessEngine, model_id: str) -> float:
    """From submitting a page to its first text."""
    request = request_of(engine, model_id, 4)
    began_s, first_s = time.perf_counter(), 0.0
    async for event in engine.submit(request):
        if isinstance(event, SequenceFailure):
            raise RuntimeError(f"{event.code}: {event.detail}")  # noqa: TRY004 -- an event, not an argument
        first_s = first_s or time.perf_counter() - began_s
    return first_s


async def bring_in(
    engine: ProcessEngine, model_id: str, source: Path, target: Path, on_served: Callable[[], None]
) -> dict[str, float]:
    """One adapter from its folder to its first text, in seconds by stage; calls `on_served` before the answer."""
    began_s = time.perf_counter()
    await asyncio.to_thread(copy_hashed, source, target)
    copied_s = time.perf_counter()
    cost = await engine.load_adapter(model_id, target)
    loaded_s = time.perf_counter()
    await read_canary(engine, model_id, timeout_s=60.0)
    read_s = time.perf_counter()
    on_served()
    answer_s = await first_text_s(engine, model_id)
    return {
        "copy": copied_s - began_s,
        "read": cost.read_s,
        "place": cost.place_s,
        "load": loaded_s - copied_s,
        "canary": read_s - loaded_s,
        "answer": answer_s,
        "total": time.perf_counter() - began_s,
    }


class Streams:
    """Pages that are decoded throughout, and the longest time one of them got no new text, by what was going on."""

    def __init__(self, engine: ProcessEngine) -> None:
        self._engine = engine
        self.longest_s: dict[str, float] = {}
        self._now = "start"
        self.num_started = 0
        self._wanted = 0
        self._has_started = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self, count: int) -> AsyncIterator[None]:
        """Decode this many pages with the base."""
        tasks = [asyncio.create_task(self._read()) for _ in range(count)]
        self._wanted = count
        await self._has_started.wait()
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def note(self, what: str) -> None:
        """Say what is going on from now on."""
        self._now = what

    async def _read(self) -> None:
        is_first = True
        while True:
            request = request_of(self._engine, self._engine.info.model_id, ENDLESS_TOKENS)
            events = cast("AsyncGenerator[SequenceEvent, None]", self._engine.submit(request))
            last_s: float | None = None
            async with contextlib.aclosing(events):
                async for event in events:
                    if isinstance(event, SequenceDelta):
                        now_s = time.perf_counter()
                        self.num_started += is_first
                        is_first = False
                        if self.num_started == self._wanted:
                            self._has_started.set()
                        gap_s = now_s - (last_s or now_s)
                        self.longest_s[self._now] = max(self.longest_s.get(self._now, 0.0), gap_s)
                        last_s = now_s


def show(case: str, rows: list[dict[str, float]]) -> dict[str, float]:
    """Print medians and worst; medians in milliseconds by stage."""
    for name, pick in (("median", statistics.median), ("worst", max)):
        cells = "".join(f"{pick([row[stage] for row in rows]) * 1000:>10.1f}" for stage in STAGES)
        print(f"{case:<8}{name:<8}{cells}", flush=True)
    medians = {f"{stage}_ms": round(statistics.median(row[stage] for row in rows) * 1000, 2) for stage in STAGES}
    return medians | {"worst_total_ms": round(max(row["total"] for row in rows) * 1000, 2)}


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run both cases."""
    text = config_of(arguments.model).text_config
    limits = EngineLimits(
        batch_size=arguments.streams + 2,
        max_sequence_tokens=8192,
        adapter_slots=arguments.slots,
        adapter_max_rank=arguments.max_rank,
        loop_rule=LoopRule(min_tokens=NEVER, suspicion=NEVER),
    )
    factory = partial(make, arguments.model, arguments.device, limits)
    engine = ProcessEngine(factory, num_threads=arguments.threads)
    began_s = time.perf_counter()
    await engine.start()
    print(f"engine ready after {time.perf_counter() - began_s:.1f} s: {engine.info.device}, {engine.info.dtype}")
    print(f"{'ms':<16}" + "".join(f"{stage:>10}" for stage in STAGES), flush=True)
    result: dict[str, Any] = {"rank": arguments.rank, "slots": arguments.slots, "streams": arguments.streams}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sources = [folder / f"source-{seed}" for seed in range(arguments.rounds)]
        sizes = [
            write_random_adapter(source, text, arguments.rank, seed, dtype=torch.bfloat16)
            for seed, source in enumerate(sources)
        ]
        result["weights_mb"] = round(max(sizes) / 1e6, 2)

        streams = Streams(engine)

        async def rounds(case: str) -> list[dict[str, float]]:
            rows = []
            for number, source in enumerate(sources):
                model_id, place = f"{case}@{number + 1}", folder / f"{case}-{number}"
                streams.note("loads")
                rows.append(await bring_in(engine, model_id, source, place, lambda: streams.note("answer")))
                await engine.unload_adapter(model_id)
            return rows

        try:
            await rounds("warm-up")
            result["idle"] = show("idle", await rounds("idle"))
            async with streams.running(arguments.streams):
                streams.note("nothing")
                await asyncio.sleep(3.0)
                result["busy"] = show("busy", await rounds("busy"))
            gaps_ms = {name: round(seconds * 1000, 1) for name, seconds in streams.longest_s.items()}
            result["gap_ms"], result["gap_without_loads_ms"] = gaps_ms.get("loads"), gaps_ms.get("nothing")
            result["gap_answer_ms"] = gaps_ms.get("answer")
            print(f"longest gap of a page, ms: {gaps_ms}")
        finally:
            await engine.stop()
    return result


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("random", "nano", "nano-random"), default="random")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--max-rank", type=int, default=64, help="what the slots are made for")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--streams", type=int, default=32, help="pages decoded in the busy case")
    parser.add_argument("--rounds", type=int, default=5, help="adapters brought in, for each case")
    parser.add_argument("--threads", type=int, help="of the engine's tensor operations")
    parser.add_argument("--out", help="file that the line is appended to, or `auto`")
    arguments = parser.parse_args()
    result = asyncio.run(measure(arguments))
    facts = {"benchmark": "adapter_load", "command": command(), "model": arguments.model}
    keep({**facts, **origin(arguments.device), **result}, arguments.out)


if __name__ == "__main__":
    main()
