"""A service as a queue: where it saturates, and how long requests then wait. Measured and simulated side by side.

    python benchmarks/queueing.py check --rates 8,16,24,40 --duration 20 --out auto
    python benchmarks/queueing.py stages --out auto
    python benchmarks/queueing.py bulk --on ray --out auto      on the cluster that runs here
    python benchmarks/queueing.py plan --pages-per-s 92.3 --tokens 512 --replicas 1,2,4,8,16,32,64

`check` starts the service with the fake engine, whose step takes as long as it is told, asks each page alone, and
takes from these answers what the simulation needs: tokens of each page, times of the stages, CPU time of a request in
the service's process. Then it sends requests at random moments at each rate, and simulates the same moments. `stages`
measures CPU time of a page in an image process, and of a request in the service's process; `bulk` that of a document in
the command `deepsynth bulk`, which is before all workers. `plan` simulates replicas of
an engine that was measured elsewhere, and says what each stage would be at its limit.

The model: a request takes a place among `capacity`, or is refused; what is before all replicas works on it for
`shared_s`; it goes to that one of two replicas, drawn at random, that has fewer, whose process, one event loop, works
on it for `front_s`; it waits for one of `2 * batch` page slots, then for one of `intake_workers`, which takes
`intake_s`; it waits for a place among `batch` and gets a token each step. What it leaves out: garbage collection, other
work on the machine, a step that is longer when more run, pages of different sizes, what each token costs the process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import heapq
import io
import itertools
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx
from PIL import Image

from benchmarks.demo_loop import Running, service
from benchmarks.online import SAMPLES, Load, measure, pages_of, percentile, send
from benchmarks.origin import command, keep, origin
from service.intake.document import Document
from service.intake.limits import DecodeTask, IntakeLimits
from service.intake.pool import ImagePool
from shared.deepseek_ocr.geometry import GeometryConfig, Mode

MIB = 1024 * 1024
SIZES = {"SMALL": (640, 640), "PAGE": (1240, 1754)}
"""As in `docs/performance.md`, in pixels."""

PAGES_AHEAD = 2
"""As in `service/app.py`: page slots for each place of a batch."""
QUANTILES = (0.5, 0.9, 0.99)
ENOUGH = 20
"""Simulated requests for each place in a batch, beyond which a rate changes little."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One service, or several replicas behind one process that shares requests out."""

    batch: int
    step_s: float
    intake_workers: int
    intake_s: float
    front_s: float = 0.0
    shared_s: float = 0.0
    overhead_s: float = 0.0
    """Of a request that waits for nothing: what no stage accounts for."""
    capacity: int = 1 << 30
    replicas: int = 1

    def limits(self, tokens: float) -> dict[str, float]:
        """Pages per second at which each stage is always busy.

        Args:
            tokens: Mean of a page.

        Returns:
            Of all replicas together.
        """
        return {
            "shared": math.inf if self.shared_s == 0 else 1 / self.shared_s,
            "front": math.inf if self.front_s == 0 else self.replicas / self.front_s,
            "intake": math.inf if self.intake_s == 0 else self.replicas * self.intake_workers / self.intake_s,
            "engine": self.replicas * self.batch / (tokens * self.step_s),
        }


@dataclass(eq=False, slots=True)
class _Replica:
    free_slots: int
    free_workers: int
    num_inside: int = 0
    front_free_s: float = 0.0
    for_slot: deque[int] = field(default_factory=deque)
    for_worker: deque[int] = field(default_factory=deque)
    for_batch: deque[int] = field(default_factory=deque)
    num_running: int = 0
    stepped_s: float = -math.inf
    num_steps: int = 0
    last_step: dict[int, list[int]] = field(default_factory=dict)
    """Running requests by the step that makes their last token."""
    is_stepping: bool = False


class _Simulation:
    """The events of one run, in order of time."""

    def __init__(self, arrivals_s: Sequence[float], tokens: Sequence[int], plan: Plan, seed: int) -> None:
        self.ended_s = [math.nan] * len(arrivals_s)
        self._arrivals_s, self._tokens, self._plan = arrivals_s, tokens, plan
        self._chance = random.Random(seed)
        self._replicas = [_Replica(PAGES_AHEAD * plan.batch, plan.intake_workers) for _ in range(plan.replicas)]
        self._at: dict[int, _Replica] = {}
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[float, int], None], int]] = []
        self._num_inside, self._shared_free_s = 0, 0.0
        for number, moment_s in enumerate(arrivals_s):
            self._later(moment_s, self._arrive, number)

    def run(self) -> None:
        """Let everything happen."""
        while self._events:
            now_s, _, happen, number = heapq.heappop(self._events)
            happen(now_s, number)

    def _later(self, moment_s: float, happen: Callable[[float, int], None], number: int) -> None:
        heapq.heappush(self._events, (moment_s, next(self._order), happen, number))

    def _arrive(self, now_s: float, number: int) -> None:
        if self._num_inside < self._plan.capacity:
            self._num_inside += 1
            self._shared_free_s = max(self._shared_free_s, now_s) + self._plan.shared_s
            self._later(self._shared_free_s, self._share_out, number)

    def _share_out(self, now_s: float, number: int) -> None:
        drawn = self._chance.sample(self._replicas, min(2, len(self._replicas)))
        self._at[number] = replica = min(drawn, key=lambda each: each.num_inside)
        replica.num_inside += 1
        replica.front_free_s = max(replica.front_free_s, now_s) + self._plan.front_s
        self._later(replica.front_free_s, self._take, number)

    def _take(self, now_s: float, number: int) -> None:
        replica = self._at[number]
        replica.for_slot.append(number)
        self._advance(replica, now_s)

    def _decoded(self, now_s: float, number: int) -> None:
        replica = self._at[number]
        replica.free_workers += 1
        replica.for_batch.append(number)
        self._advance(replica, now_s)

    def _step(self, now_s: float, number: int) -> None:
        replica = self._replicas[number]
        self._fill(replica)
        replica.stepped_s = now_s
        replica.num_steps += 1
        done = replica.last_step.pop(replica.num_steps, [])
        replica.num_running -= len(done)
        replica.free_slots += len(done)
        replica.num_inside -= len(done)
        self._num_inside -= len(done)
        for each in done:
            self.ended_s[each] = now_s + self._plan.overhead_s - self._arrivals_s[each]
        replica.is_stepping = False
        self._advance(replica, now_s)

    def _advance(self, replica: _Replica, now_s: float) -> None:
        while replica.free_slots and replica.for_slot:
            replica.free_slots -= 1
            replica.for_worker.append(replica.for_slot.popleft())
        while replica.free_workers and replica.for_worker:
            replica.free_workers -= 1
            self._later(now_s + self._plan.intake_s, self._decoded, replica.for_worker.popleft())
        if not replica.is_stepping:
            self._fill(replica)
            if replica.num_running:
                replica.is_stepping = True
                due_s = max(now_s, replica.stepped_s + self._plan.step_s)
                self._later(due_s, self._step, self._replicas.index(replica))

    def _fill(self, replica: _Replica) -> None:
        while replica.for_batch and replica.num_running < self._plan.batch:
            number = replica.for_batch.popleft()
            replica.num_running += 1
            replica.last_step.setdefault(replica.num_steps + self._tokens[number], []).append(number)


def simulate(arrivals_s: Sequence[float], tokens: Sequence[int], plan: Plan, seed: int = 0) -> list[float]:
    """Let requests through the model.

    Args:
        arrivals_s: When they come, in order.
        tokens: Of each.
        plan: The service.
        seed: Of the replicas that are drawn.

    Returns:
        Seconds from arrival to answer; NaN for those that are refused.
    """
    simulation = _Simulation(arrivals_s, tokens, plan, seed)
    simulation.run()
    return simulation.ended_s


def moments(rate: float, duration_s: float, seed: int) -> list[float]:
    """The moments at which `online.py` sends requests of an open loop."""
    chance, found, due_s = random.Random(seed), [], 0.0
    while (due_s := due_s + chance.expovariate(rate)) < duration_s:
        found.append(due_s)
    return found


def measures(arrivals_s: Sequence[float], latencies_s: Sequence[float]) -> dict[str, float]:
    """Answers per second, quantiles in milliseconds and the share that was refused."""
    done = [each for each in latencies_s if not math.isnan(each)]
    last_s = max(moment + each for moment, each in zip(arrivals_s, latencies_s, strict=True) if not math.isnan(each))
    found = {f"p{round(100 * share)}_ms": round(1000 * percentile(done, share), 1) for share in QUANTILES}
    refused = 1 - len(done) / len(latencies_s)
    return {"pages_per_s": round(len(done) / last_s, 2), **found, "refused_share": round(refused, 4)}


def cpu_s(pid: int) -> float:
    """CPU time that a process, without its children, has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def fake_service(batch: int, step_ms: float, workers: int, capacity: int) -> Iterator[Running]:
    """The service with the fake engine."""
    with tempfile.TemporaryDirectory() as scratch:
        (volume := Path(scratch) / "volume").mkdir()
        settings = {
            "ENGINE": "fake", "OCR_BATCH_SIZE": str(batch), "FAKE_STEP_MS": str(step_ms), "LOG_LEVEL": "warning",
            "IMAGE_WORKERS": str(workers), "MAX_CONCURRENT_REQUESTS": str(capacity),
        }  # fmt: skip
        with service(volume, Path(scratch) / "service.log", **settings) as running:
            yield running


async def idle(url: str, load: Load, pid: int, pause_s: float) -> tuple[list[int], dict[str, float]]:
    """Ask each page alone, twice.

    Args:
        url: Of the service.
        load: Its pages.
        pid: Of the service's process.
        pause_s: Before each.

    Returns:
        Tokens of each page, and medians: `intake_s`, `total_s`, `front_s` (CPU time of the process for a request).
    """
    async with httpx.AsyncClient(base_url=url, timeout=60.0, trust_env=False) as client:
        rounds = []
        before_s = 0.0
        for number in range(3):
            if number == 1:
                before_s = cpu_s(pid)
            answers = []
            for page in range(len(load.pages)):
                # A page would wait for the step after the last one of the page before.
                await asyncio.sleep(pause_s)
                answers.append(await send(client, load, page, time.perf_counter()))
            rounds.append(answers)
        num = 2 * len(load.pages)
        front_s = (cpu_s(pid) - before_s) / num
    asked = [each for answers in rounds[1:] for each in answers]
    assert all(each.error is None for each in asked), asked
    return [each.tokens for each in rounds[-1]], {
        "intake_s": statistics.median(each.timings_ms["decode"] / 1000 for each in asked),
        "total_s": statistics.median(each.total_s for each in asked),
        "steps": statistics.median(each.tokens for each in asked),
        "front_s": front_s,
    }


async def decode(data: bytes, times: int) -> None:
    """Let an image process open and decode a page so often, as for an engine that makes views itself."""
    pool = ImagePool(workers=1, memory_bytes=1536 * MIB, timeout_s=60.0, max_file_bytes=20 * MIB)
    await pool.start()
    for _ in range(times):
        document = Document(data, IntakeLimits())
        await pool.open(document)
        await pool.decode(document, DecodeTask(1, Mode.BASE, GeometryConfig(), wants_image=True, turn_degrees=None))
        pool.close(document)
    await pool.stop()


def children_cpu_s() -> float:
    """CPU time of children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def stages(given: argparse.Namespace) -> dict[str, Any]:
    """CPU milliseconds of a page: in an image process, and in the service's process."""
    rows = {}
    with fake_service(8, 0, 1, 64) as running:
        for name, size in SIZES.items():
            picture = Image.open(SAMPLES / "sample-block.png").convert("L").resize(size)
            picture.save(buffer := io.BytesIO(), "PNG")
            before_s = children_cpu_s()
            asyncio.run(decode(buffer.getvalue(), 1))
            start_s = children_cpu_s() - before_s
            asyncio.run(decode(buffer.getvalue(), 1 + given.times))
            image_s = (children_cpu_s() - before_s - 2 * start_s) / given.times
            load = Load([buffer.getvalue()] * given.times, fields={"mode": "tiny"})
            _, alone = asyncio.run(idle(running.url, load, running.pid, 0.0))
            rows[name] = {
                "png_kib": round(buffer.tell() / 1024),
                "image_process_cpu_ms": round(1000 * image_s, 2),
                "front_cpu_ms": round(1000 * alone["front_s"], 2),
            }
            print(name, rows[name], flush=True)
    return {"times": given.times, "stages": rows}


def bulk(given: argparse.Namespace) -> dict[str, Any]:
    """CPU milliseconds of a document in `deepsynth bulk`, beyond its start: one run of few, one of many."""
    few, many = 10, 10 + given.times
    taken_s = {}
    with tempfile.TemporaryDirectory() as scratch:
        for count in (few, many):
            (source := Path(scratch) / f"in{count}").mkdir()
            for number, data in enumerate(pages_of(Path(), (64, 64), count) * (count // 16 + 1)):
                if number < count:
                    (source / f"{number}.png").write_bytes(data)
            words = [sys.executable, "-m", "service", "bulk", str(source), f"{source}.out", "--mode", "tiny"]
            kept = {name: value for name, value in os.environ.items() if not name.startswith("DEEPSYNTH_")}  # noqa: TID251
            settings = {"DEEPSYNTH_ENGINE": "fake", "DEEPSYNTH_BLANK_PAGES": "read", "DEEPSYNTH_FAKE_STEP_MS": "0"}
            root = str(Path(__file__).resolve().parents[1])
            process = subprocess.Popen([*words, "--on", given.on], env={**kept, **settings, "PYTHONPATH": root})
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(f"the command ended with {process.returncode}")
            taken_s[count] = usage.ru_utime + usage.ru_stime
    return {"on": given.on, "command_cpu_ms": round(1000 * (taken_s[many] - taken_s[few]) / given.times, 2)}


def check(given: argparse.Namespace) -> dict[str, Any]:
    """Measure and simulate each rate."""
    load = Load(pages_of(Path(), (given.side, given.side), given.seed), fields={"blank_pages": "read", "mode": "tiny"})
    step_s = given.step_ms / 1000
    with fake_service(given.batch, given.step_ms, given.workers, given.capacity) as running:
        tokens, alone = asyncio.run(idle(running.url, load, running.pid, 2 * step_s))
        plan = Plan(given.batch, step_s, given.workers, alone["intake_s"], alone["front_s"], capacity=given.capacity)
        waits_s = alone["intake_s"] + alone["front_s"] + (alone["steps"] - 1) * step_s
        plan = replace(plan, overhead_s=max(0.0, alone["total_s"] - waits_s))
        rows = []
        for rate in map(float, given.rates.split(",")):
            sent = replace(load, rate=rate, duration_s=given.duration, seed=given.seed)
            seen = asyncio.run(measure(running.url, sent, math.inf, math.inf))
            arrivals_s = moments(rate, given.duration, given.seed)
            each = [tokens[number % len(tokens)] for number in range(len(arrivals_s))]
            row = {
                "rate": rate,
                "measured": {
                    "pages_per_s": seen["pages_per_s"],
                    **{f"p{share}_ms": seen["e2e_ms"][f"p{share}"] for share in (50, 90, 99)},
                    "refused_share": round(seen["errors"].get("queue_full", 0) / seen["requests"], 4),
                },
                "simulated": measures(arrivals_s, simulate(arrivals_s, each, plan)),
                "errors": seen["errors"],
            }
            rows.append(row)
            print(line_of(row), flush=True)
    limits = {name: round(each, 1) for name, each in plan.limits(statistics.fmean(tokens)).items()}
    return {"plan": asdict(plan), "mean_tokens": statistics.fmean(tokens), "limits_pages_per_s": limits, "rates": rows}


def line_of(row: dict[str, Any]) -> str:
    """Measured and simulated, for people."""
    pairs = (f"{name} {row['measured'][name]} | {row['simulated'][name]}" for name in row["measured"])
    return f"{row['rate']:>7.1f}/s   " + "   ".join(pairs)


def plan(given: argparse.Namespace) -> dict[str, Any]:
    """Simulate replicas of a measured engine at 95 % of the least limit, and in a queue that never empties."""
    rows = []
    step_s = given.batch / (given.pages_per_s * given.tokens)
    for count in map(int, given.replicas.split(",")):
        one = Plan(
            given.batch,
            step_s,
            given.workers,
            given.intake_ms / 1000,
            given.front_ms / 1000,
            given.shared_ms / 1000,
            replicas=count,
        )
        limits = one.limits(given.tokens)
        least = min(limits, key=lambda name: limits[name])
        arrivals_s = moments(0.95 * limits[least], ENOUGH * given.batch * count / limits[least], given.seed)
        latencies_s = simulate(arrivals_s, [given.tokens] * len(arrivals_s), one)
        full = simulate([0.0] * (ENOUGH * given.batch * count), [given.tokens] * (ENOUGH * given.batch * count), one)
        row = {
            "replicas": count,
            "limits_pages_per_s": {name: round(each, 1) for name, each in limits.items() if math.isfinite(each)},
            "bottleneck": least,
            "saturated_pages_per_s": round(len(full) / max(full), 1),
            "at_95_percent": measures(arrivals_s, latencies_s),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    return {"engine": {name: getattr(given, name) for name in ("pages_per_s", "tokens", "batch")}, "rows": rows}


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_subparsers(dest="way", required=True)
    checking, planning, staging, reading = (ways.add_parser(name) for name in ("check", "plan", "stages", "bulk"))
    staging.add_argument("--times", type=int, default=40, help="requests of each size")
    reading.add_argument("--times", type=int, default=300, help="documents")
    reading.add_argument("--on", choices=["ray"], default="ray", help="where the command reads")
    checking.add_argument("--rates", default="8,16,24,40", help="requests per second, by commas")
    checking.add_argument("--duration", type=float, default=20.0, help="seconds of each rate")
    checking.add_argument("--step-ms", type=float, default=40.0, help="of the fake engine")
    checking.add_argument("--batch", type=int, default=8)
    checking.add_argument("--workers", type=int, default=1, help="image processes")
    checking.add_argument("--capacity", type=int, default=64, help="requests at once; others are refused")
    checking.add_argument("--side", type=int, default=64, help="of the pages, in pixels")
    planning.add_argument("--pages-per-s", type=float, required=True, help="of one engine that is always busy")
    planning.add_argument("--tokens", type=int, required=True, help="of a page")
    planning.add_argument("--batch", type=int, default=256)
    planning.add_argument("--workers", type=int, default=8, help="image processes of a replica")
    planning.add_argument("--intake-ms", type=float, default=0.0, help="of a page in an image process")
    planning.add_argument("--front-ms", type=float, default=0.0, help="of a request in a replica's process")
    planning.add_argument("--shared-ms", type=float, default=0.0, help="of a request in the one process before all")
    planning.add_argument("--replicas", default="1,2,4,8,16")
    for each in (checking, planning, staging, reading):
        each.add_argument("--seed", type=int, default=0)
        each.add_argument("--out", help="file that the line is appended to, or `auto`")
    given = parser.parse_args()
    row = {"check": check, "plan": plan, "stages": stages, "bulk": bulk}[given.way](given)
    keep({"benchmark": "queueing", "way": given.way, "command": command(), **origin("cpu"), **row}, given.out)


if __name__ == "__main__":
    main()
