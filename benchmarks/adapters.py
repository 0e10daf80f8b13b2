"""Publishing while serving: what a stream of new versions does to the requests of a service under load.

    python benchmarks/adapters.py --out auto                  100 publications, 500 loads; 10 minutes on 2 quiet cores
    python benchmarks/adapters.py --publications 4 --block-publications 2 --loads 20        to try it
    python benchmarks/adapters.py --publications 0            loads and unloads alone

Starts the service with nano on a CPU over an adapter volume and finds its capacity with as many clients as a batch has
rows. Then requests arrive at random moments, at `--utilisation` of that on average, in alternating blocks: without
publications, and with one every `--interval` seconds, so that other work on the machine affects both alike. Both blocks
of a pair get the same pages at the same moments, and every second pair starts without publications. A block starts when
the previous one has been answered.

Every answer is compared with what the version that it names reads on that page when nothing else is running. The ratio
of the 99th percentiles of latency comes with an interval: pairs of blocks are resampled, so that requests of a block
stay together, as they wait for one another. Pages are short, so that there are enough of them. Afterwards adapters are
loaded into an engine's process and unloaded again, `--loads` times, while memory is watched. Times: from the rename
that publishes a version to the first answer that names it, on an idle service and on the loaded one, and stages as the
service reports them. Prints what it does and, last, a JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx
import torch
from PIL import Image, ImageDraw

from benchmarks.demo_loop import service
from benchmarks.origin import command, keep, origin
from benchmarks.random_model import write_random_adapter
from shared.contract.identity import weights_revision
from shared.contract.manifest import BaseIdentity, CodeVersion
from shared.contract.publication import Announcement, publish
from shared.contract.volume import AdapterVolume
from shared.deepseek_ocr.nano_config import nano_config

NANO = Path(__file__).resolve().parents[1] / "shared" / "nano"
NAME, QUIET_NAME = "live", "quiet"
CONTENTS = 5
"""Different adapters; versions take turns with them."""
PAGES = 4
BATCH = 8
TARGETS = {"failed": 0, "wrong": 0, "p99_ratio": 1.2, "first_answer_s": 5.0, "growth_mib": 50.0}


def page(number: int) -> bytes:
    """A page of a few lines."""
    image = Image.new("RGB", (640, 320), "white")
    for line in range(4):
        ImageDraw.Draw(image).text((24, 24 + 60 * line), f"Page {number}, line {line}: {number * 7919 + line}", "black")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * 4096 / 1024**2


@dataclass(slots=True)
class Sent:
    """A request and how it ended."""

    pair: int
    """Which pair of blocks it belongs to; -1: none."""
    with_publications: bool
    latency_s: float
    failure: str | None
    model_id: str
    page: int
    text: str


@dataclass(slots=True)
class Bench:
    """A running service and what is known about it."""

    client: httpx.AsyncClient
    volume: AdapterVolume
    sources: list[Path]
    tokens: int
    content_of: dict[str, int] = field(default_factory=dict)
    """The content of each version."""
    pages: list[bytes] = field(default_factory=lambda: [page(number) for number in range(PAGES)])
    sent: list[Sent] = field(default_factory=list)
    published_s: dict[str, float] = field(default_factory=dict)
    """When `publish` was called; the rename follows some milliseconds later."""
    answered_s: dict[str, float] = field(default_factory=dict)
    """When the first answer named a version."""

    def publish(self, name: str, content: int) -> str:
        """Publish a content as the next version; `name@version`."""
        base = BaseIdentity(model_id="nano", revision=weights_revision(NANO) or "")
        code = CodeVersion(program="benchmarks/adapters.py", version="0", commit="unknown")
        announcement = Announcement(name, base, code, forced="a benchmark")
        began_s = time.perf_counter()
        model_id = str(publish(self.volume, self.sources[content], announcement).reference)
        self.content_of[model_id] = content
        self.published_s[model_id] = began_s
        return model_id

    async def serves(self, model_id: str) -> None:
        """Wait until a name serves a version."""
        name = model_id.partition("@")[0]
        while True:
            listed = (await self.client.get("/adapters")).json()["adapters"]
            found = next((each for each in listed if each["name"] == name), None)
            if found and found["serving"] == model_id:
                return
            await asyncio.sleep(0.05)

    async def read(self, model_id: str, number: int, *, pair: int = -1, with_publications: bool = False) -> Sent:
        """One request."""
        fields = {"model_id": model_id, "max_new_tokens": str(self.tokens)}
        began_s = time.perf_counter()
        failure, answer = None, {}
        try:
            response = await self.client.post("/ocr", files={"file": ("page.png", self.pages[number])}, data=fields)
            answer = response.json()
            failure = None if response.status_code == 200 else f"{response.status_code} {answer.get('code')}"
        except httpx.HTTPError as error:
            failure = type(error).__name__
        ended_s = time.perf_counter()
        named = answer.get("model_id", "")
        if failure is None:
            self.answered_s.setdefault(named, ended_s)
        return Sent(pair, with_publications, ended_s - began_s, failure, named, number, answer.get("text", ""))

    async def capacity(self, seconds: float) -> float:
        """Pages a second with as many clients as a batch has rows."""
        ends_s, done = time.perf_counter() + seconds, 0

        async def client(number: int) -> None:
            nonlocal done
            while time.perf_counter() < ends_s:
                await self.read(NAME, number % PAGES)
                done += 1

        began_s = time.perf_counter()
        await asyncio.gather(*(client(number) for number in range(BATCH)))
        return done / (time.perf_counter() - began_s)

    async def arrivals(
        self, moments: list[tuple[float, int]], seconds: float, *, pair: int, with_publications: bool
    ) -> None:
        """Send pages at given moments, whether or not earlier ones were answered; return with the last answer."""
        began_s = time.perf_counter()
        tasks = []
        for at_s, number in moments:
            await asyncio.sleep(max(0.0, began_s + at_s - time.perf_counter()))
            read = self.read(NAME, number, pair=pair, with_publications=with_publications)
            tasks.append(asyncio.create_task(read))
        await asyncio.sleep(max(0.0, began_s + seconds - time.perf_counter()))
        self.sent += await asyncio.gather(*tasks)

    async def publications(self, numbers: list[int], interval_s: float) -> str:
        """Publish, one every interval; the last version."""
        model_id = ""
        for number in numbers:
            began_s = time.perf_counter()
            model_id = await asyncio.to_thread(self.publish, NAME, number % CONTENTS)
            await asyncio.sleep(max(0.0, began_s + interval_s - time.perf_counter()))
        return model_id

    async def first_answer_s(self, content: int) -> float:
        """From the rename to the first answer of the new version, on an idle service."""
        began_s = time.perf_counter()
        model_id = self.publish(QUIET_NAME, content)
        while (sent := await self.read(model_id, 0)).failure:
            if time.perf_counter() - began_s > 60:
                raise SystemExit(f"{model_id} does not answer: {sent.failure}")
            await asyncio.sleep(0.02)
        return time.perf_counter() - began_s

    def busy_answers_s(self) -> list[float]:
        """From publishing to the first answer, of the versions published under load that were answered with."""
        versions = [name for name in self.published_s if name.startswith(f"{NAME}@")][1:]
        return [self.answered_s[name] - self.published_s[name] for name in versions if name in self.answered_s]

    def latency_pairs(self) -> list[tuple[list[float], list[float]]]:
        """Latencies of each pair of blocks, without and with publications; pairs that lack one are left out."""
        pairs: dict[int, tuple[list[float], list[float]]] = {}
        for sent in self.sent:
            pairs.setdefault(sent.pair, ([], []))[sent.with_publications].append(sent.latency_s)
        return [pair for pair in pairs.values() if all(pair)]

    def num_wrong(self, expected: dict[tuple[int, int], str]) -> int:
        """Answers that are not those of the version that they name."""
        return sum(
            sent.failure is None and sent.text != expected.get((self.content_of.get(sent.model_id, -1), sent.page))
            for sent in self.sent
        )


def percentile(values: list[float], share: float) -> float:
    """The smallest value that this share of them does not exceed."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def moments_of(rate: float, seconds: float, chance: random.Random) -> list[tuple[float, int]]:
    """Random arrivals: when, and which page."""
    moments, at_s = [], 0.0
    while (at_s := at_s + chance.expovariate(rate)) < seconds:
        moments.append((at_s, chance.randrange(PAGES)))
    return moments


def p99_ratio_of(pairs: Sequence[tuple[list[float], list[float]]]) -> float:
    """What 99 % do not exceed with publications, over the same without; all pairs of blocks together."""
    without, live = ([latency for pair in pairs for latency in pair[side]] for side in (0, 1))
    return percentile(live, 0.99) / percentile(without, 0.99)


def p99_ratio_interval(
    pairs: Sequence[tuple[list[float], list[float]]], chance: random.Random, draws: int = 2000
) -> tuple[float, float]:
    """The middle 95 % of the ratios of pairs that were drawn again with replacement."""
    ratios = [p99_ratio_of(chance.choices(pairs, k=len(pairs))) for _ in range(draws)]
    return percentile(ratios, 0.025), percentile(ratios, 0.975)


def child_pids(url_pid: int) -> list[int]:
    """A process and its children."""
    path = Path(f"/proc/{url_pid}/task/{url_pid}/children")
    return [url_pid, *map(int, path.read_text().split())]


async def serve_and_publish(bench: Bench, arguments: argparse.Namespace, pids: list[int]) -> dict[str, Any]:
    """The service's part."""
    chance = random.Random(arguments.seed)
    expected: dict[tuple[int, int], str] = {}
    for content in range(CONTENTS):
        model_id = bench.publish(f"alone-{content}", content)
        await bench.serves(model_id)
        for number in range(PAGES):
            expected[content, number] = (await bench.read(model_id, number)).text
    print(f"{len(set(expected.values()))} different texts of {len(expected)}", flush=True)
    quiet = [await bench.first_answer_s(number % CONTENTS) for number in range(5)]
    print(f"rename to first answer: median {statistics.median(quiet):.2f} s, worst {max(quiet):.2f} s", flush=True)
    await bench.serves(bench.publish(NAME, 0))
    capacity = await bench.capacity(arguments.capacity_s)
    rate = capacity * arguments.utilisation
    print(f"capacity {capacity:.2f} pages/s, arrivals {rate:.2f} pages/s", flush=True)
    before_mib = sum(map(rss_mib, pids))
    numbers = list(range(1, arguments.publications + 1))
    size = arguments.block_publications
    began_s = time.perf_counter()
    for pair, first in enumerate(range(0, len(numbers), size)):
        block = numbers[first : first + size]
        seconds = len(block) * arguments.interval
        moments = moments_of(rate, seconds, chance)
        for with_publications in (not pair % 2, bool(pair % 2)):
            arriving = bench.arrivals(moments, seconds, pair=pair, with_publications=with_publications)
            if with_publications:
                _, model_id = await asyncio.gather(arriving, bench.publications(block, arguments.interval))
                await bench.serves(model_id)
            else:
                await arriving
        took_s = time.perf_counter() - began_s
        print(f"{took_s:6.0f} s: {first + len(block)} publications, {len(bench.sent)} requests", flush=True)
    after_mib = sum(map(rss_mib, pids))
    if not bench.latency_pairs():
        raise SystemExit("too few requests arrived; a longer --interval gives each block more")
    rows = {}
    for name, chosen in (("without", False), ("with", True)):
        latencies = [sent.latency_s for sent in bench.sent if sent.with_publications is chosen]
        rows[name] = {
            "requests": len(latencies),
            "p50_s": round(percentile(latencies, 0.5), 3),
            "p95_s": round(percentile(latencies, 0.95), 3),
            "p99_s": round(percentile(latencies, 0.99), 3),
            "max_s": round(max(latencies), 3),
        }
        print(f"{name:<8} publications: {rows[name]}", flush=True)
    pairs = bench.latency_pairs()
    interval = [round(bound, 3) for bound in p99_ratio_interval(pairs, chance)]
    busy = bench.busy_answers_s()
    if not busy:
        raise SystemExit("no request met a version that was published under load; a longer --interval gives it time")
    print(f"p99 ratio {p99_ratio_of(pairs):.3f}, 95 % between {interval}", flush=True)
    print(f"rename to first answer under load: median {statistics.median(busy):.2f} s, worst {max(busy):.2f} s")
    listed = (await bench.client.get("/adapters")).json()["adapters"]
    stages = [each["load_s"] for one in listed if one["name"] == NAME for each in one["versions"] if each["load_s"]]
    return {
        "publications": arguments.publications,
        "interval_s": arguments.interval,
        "capacity_pages_per_s": round(capacity, 3),
        "utilisation": arguments.utilisation,
        "failed": sum(sent.failure is not None for sent in bench.sent),
        "failures": sorted({sent.failure for sent in bench.sent if sent.failure}),
        "wrong": bench.num_wrong(expected),
        "versions_answered": len({sent.model_id for sent in bench.sent if sent.failure is None}),
        **{f"{name}_publications": row for name, row in rows.items()},
        "p99_ratio": round(p99_ratio_of(pairs), 3),
        "p99_ratio_interval": interval,
        "busy_answer_median_s": round(statistics.median(busy), 2),
        "busy_answer_worst_s": round(max(busy), 2),
        "first_answer_s": round(max(quiet), 2),
        "first_answer_median_s": round(statistics.median(quiet), 2),
        "stages_busy_median_s": {
            stage: round(statistics.median(row[stage] for row in stages if stage in row), 4)
            for stage in ("verify", "place", "canary", "total")
        },
        "service_growth_mib": round(after_mib - before_mib, 1),
    }


async def load_and_unload(sources: list[Path], arguments: argparse.Namespace) -> dict[str, Any]:
    """The engine's part: its process and this one, over many loads and unloads."""
    import os

    from service.engine.config import EngineLimits, EngineSource
    from service.engine.factory import load_engine
    from service.engine.process.engines import ProcessEngine

    limits = EngineLimits(batch_size=2, max_sequence_tokens=1024, adapter_slots=2, adapter_max_rank=16)
    engine = ProcessEngine(partial(load_engine, EngineSource(str(NANO), limits=limits)), num_threads=1)
    await engine.start()
    connection = engine._connection
    assert connection is not None
    pid = connection._worker.pid  # type: ignore[attr-defined]
    grown: list[float] = []
    try:
        base_mib, took_s = 0.0, []
        for number in range(arguments.loads + 20):
            if number == 20:  # the first ones fill pools of the allocator
                base_mib = rss_mib(pid) + rss_mib(os.getpid())
            began_s = time.perf_counter()
            await engine.load_adapter(f"x@{number + 1}", sources[number % CONTENTS])
            took_s.append(time.perf_counter() - began_s)
            await engine.unload_adapter(f"x@{number + 1}")
            if number >= 20:
                grown.append(rss_mib(pid) + rss_mib(os.getpid()) - base_mib)
    finally:
        await engine.stop()
    print(f"{arguments.loads} loads and unloads: {grown[-1]:+.1f} MiB, load {statistics.median(took_s) * 1000:.1f} ms")
    return {
        "loads": arguments.loads,
        "growth_mib": round(grown[-1], 1),
        "growth_worst_mib": round(max(grown), 1),
        "load_ms": round(statistics.median(took_s) * 1000, 2),
    }


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All of it."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch)
        (folder / "volume").mkdir()
        sources = [folder / f"source-{seed}" for seed in range(CONTENTS)]
        for seed, place in enumerate(sources):
            write_random_adapter(
                place, nano_config().text_config, arguments.rank, seed, strength=arguments.strength, dtype=torch.float32
            )
        if not arguments.publications:
            return await load_and_unload(sources, arguments)
        settings = {
            "OCR_BATCH_SIZE": str(BATCH),
            "ADAPTER_SLOTS": "8",
            "MAX_CONCURRENT_REQUESTS": "256",
            "ADAPTER_MAX_RANK": "16",
        }
        running = stack.enter_context(service(folder / "volume", folder / "service.log", **settings))
        async with httpx.AsyncClient(base_url=running.url, timeout=300.0, trust_env=False) as client:
            bench = Bench(client, AdapterVolume(folder / "volume"), sources, arguments.tokens)
            result = await serve_and_publish(bench, arguments, child_pids(running.pid))
        stack.close()
        return result | await load_and_unload(sources, arguments)


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publications", type=int, default=100)
    parser.add_argument("--block-publications", type=int, default=10, help="publications in a row")
    parser.add_argument("--interval", type=float, default=2.5, help="seconds between two publications")
    parser.add_argument("--utilisation", type=float, default=0.8)
    parser.add_argument("--capacity-s", type=float, default=20.0, help="how long capacity is measured")
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of an answer")
    parser.add_argument("--loads", type=int, default=500)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--strength", type=float, default=0.02, help="of the adapters, so that their answers differ")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="file that the line is appended to, or `auto`")
    result = asyncio.run(measure(arguments := parser.parse_args()))
    missed = [name for name, target in TARGETS.items() if result.get(name, target) > target]
    print(f"targets missed: {', '.join(missed) or 'none'}")
    facts = {"model": "nano", "rank": arguments.rank, "tokens": arguments.tokens, "targets": TARGETS, "missed": missed}
    keep({"benchmark": "adapters", "command": command(), **origin("cpu"), **facts, **result}, arguments.out)


if __name__ == "__main__":
    main()
