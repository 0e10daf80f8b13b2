r"""Load through HTTP: how soon and how fast a running service answers many clients. Any device.

    python benchmarks/online.py --model nano --clients 2 --requests 20 --out auto               nano on a CPU
    python benchmarks/online.py --model fake --clients 64 --duration 10 --side 64               no model at all
    python benchmarks/online.py --model random --device cuda --rate 20 --duration 60 --side 640   random v1 weights
    python benchmarks/online.py --model random --device cuda --clients 64 256 --processes 4 --duration 9 --side 640 \
        --text
    python benchmarks/online.py --url http://127.0.0.1:8000 --rate 5 --duration 60 --pages FOLDER

`--rate` is an open loop: requests arrive at random (Poisson) moments whether or not earlier ones were answered, and
times count from the scheduled moment. `--clients` is a closed loop: each client sends its next request once it has its
answer. Answers are streamed, unless there is `--field stream=false`. TTFT is the time to the first text and TPOT the
time per further token; both are of answered requests. Goodput is of requests within both limits. `lateness_ms` says how
late the open loop was and `client_cpu_share` how much of one core the busiest client process took: near 1 the client is
the bottleneck, not the service. `cpu_ms` is the processor time of a request, by process, where the service was started
here. `--processes` shares clients or arrivals out among several, which start together; the row is of all of them. With
`--side`, pages are noise, which takes the service longest to decode, or with `--text` rows of text. For noise add
`--field blank_pages=read`, or the service reads no page; for random weights `--field temperature=1`, or their answers
loop.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import math
import multiprocessing
import queue
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.demo_loop import service
from benchmarks.origin import command, keep, origin
from benchmarks.processor import spent_s

SAMPLES, NANO = (Path(__file__).resolve().parents[1] / part for part in ("docs/samples", "shared/nano"))
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".pdf"}
STAGES = ("queue", "encode", "prefill", "generate")


@dataclass(slots=True)
class Sent:
    """A request and how it ended; times in seconds."""

    late_s: float
    error: str | None = None
    """Code of the problem, or the exception's name."""
    ttft_s: float = math.nan
    last_s: float = math.nan
    total_s: float = math.nan
    tokens: int = 0
    pages: int = 0
    timings_ms: dict[str, float] = field(default_factory=dict)

    @property
    def tpot_s(self) -> float:
        """NaN for answers of a single token."""
        return (self.last_s - self.ttft_s) / (self.tokens - 1) if self.tokens > 1 else math.nan


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent."""

    pages: Sequence[bytes]
    model_ids: Sequence[str] = ()
    max_new_tokens: int | None = None
    rate: float | None = None
    """Requests per second of the open loop; None: a closed loop of `clients`."""
    clients: int = 1
    requests: int | None = None
    duration_s: float | None = None
    seed: int = 0
    fields: Mapping[str, str] = field(default_factory=dict)
    """Further form fields of each request."""


async def events(response: httpx.Response) -> AsyncIterator[tuple[bytes, bytes]]:
    """Names and data of server-sent events."""
    rest = b""
    async for chunk in response.aiter_raw():
        *whole, rest = (rest + chunk).split(b"\n\n")
        for each in whole:
            name, _, data = each.partition(b"\ndata: ")
            yield name.removeprefix(b"event: "), data


async def _whole(response: httpx.Response) -> AsyncIterator[tuple[bytes, bytes]]:
    yield b"answer", await response.aread()


async def send(client: httpx.AsyncClient, load: Load, number: int, due_s: float) -> Sent:
    """Send a request; its times count from `due_s` of `time.perf_counter`."""
    sent = Sent(late_s=time.perf_counter() - due_s)
    fields = {"stream": "true", **load.fields}
    if load.max_new_tokens:
        fields["max_new_tokens"] = str(load.max_new_tokens)
    if load.model_ids:
        fields["model_id"] = load.model_ids[number % len(load.model_ids)]
    files = {"file": ("page", load.pages[number % len(load.pages)])}
    try:
        async with client.stream("POST", "/ocr", data=fields, files=files) as response:
            if response.status_code != 200:
                sent.error = _code(await response.aread(), response.status_code)
                return sent
            answered = False
            # An answer that comes whole is an event without a stream.
            stream = events(response) if fields["stream"] == "true" else _whole(response)
            async for name, data in stream:
                now_s = time.perf_counter() - due_s
                if name == b"delta":
                    sent.ttft_s = now_s if math.isnan(sent.ttft_s) else sent.ttft_s
                    sent.last_s = now_s
                elif name == b"error":
                    sent.error = _code(data, 200)
                elif name == b"answer":
                    answer, answered, sent.total_s = json.loads(data), True, now_s
                    sent.tokens, sent.pages = answer["usage"]["completion_tokens"], len(answer["pages"])
                    sent.timings_ms = answer["timings_ms"]
            if not answered and sent.error is None:
                sent.error = "stream_cut"
    except httpx.HTTPError as error:
        sent.error = type(error).__name__
    return sent


def _code(body: bytes, status: int) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body)["code"])
    return f"http_{status}"


async def run_load(client: httpx.AsyncClient, load: Load) -> tuple[list[Sent], float]:
    """Send everything and wait for the answers; with the seconds that took."""
    began_s = time.perf_counter()
    ends_s = math.inf if load.duration_s is None else began_s + load.duration_s
    most = math.inf if load.requests is None else load.requests
    if load.rate is not None:
        chance, due_s = random.Random(load.seed), began_s
        tasks: list[asyncio.Task[Sent]] = []
        async with asyncio.TaskGroup() as group:
            while len(tasks) < most and (due_s := due_s + chance.expovariate(load.rate)) < ends_s:
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                tasks.append(group.create_task(send(client, load, len(tasks), due_s)))
        return [task.result() for task in tasks], time.perf_counter() - began_s
    sent: list[Sent] = []
    started = 0

    async def one_client() -> None:
        nonlocal started
        while started < most and time.perf_counter() < ends_s:
            started += 1
            sent.append(await send(client, load, started - 1, time.perf_counter()))
            if sent[-1].error:
                await asyncio.sleep(0.01)  # a full service is not asked in a tight loop

    async with asyncio.TaskGroup() as group:
        for _ in range(load.clients):
            group.create_task(one_client())
    return sent, time.perf_counter() - began_s


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed (nearest rank)."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def spread_ms(seconds: Sequence[float]) -> dict[str, float] | None:
    """Mean, percentiles and maximum in milliseconds; NaN is left out, None where nothing is left."""
    known = [1000 * each for each in seconds if not math.isnan(each)]
    if not known:
        return None
    shares = {f"p{share}": percentile(known, share / 100) for share in (50, 90, 95, 99)}
    return {
        name: round(each, 2) for name, each in {"mean": statistics.fmean(known), **shares, "max": max(known)}.items()
    }


def summarise(
    sent: Sequence[Sent], wall_s: float, slo_ttft_ms: float = math.inf, slo_e2e_ms: float = math.inf
) -> dict[str, Any]:
    """The row's measures: rates are of answered requests, the share of goodput is of all."""
    done = [each for each in sent if each.error is None]
    # An answer without text has no first text: its end counts.
    firsts = [each.total_s if math.isnan(each.ttft_s) else each.ttft_s for each in done]
    good = sum(
        1000 * first <= slo_ttft_ms and 1000 * each.total_s <= slo_e2e_ms
        for first, each in zip(firsts, done, strict=True)
    )
    return {
        "requests": len(sent),
        "wall_s": round(wall_s, 3),
        "errors": dict(Counter(each.error for each in sent if each.error)),
        "requests_per_s": round(len(done) / wall_s, 3),
        "tokens_per_s": round(sum(each.tokens for each in done) / wall_s, 2),
        "pages_per_s": round(sum(each.pages for each in done) / wall_s, 3),
        "goodput_share": round(good / len(sent), 4) if sent else None,
        "goodput_requests_per_s": round(good / wall_s, 3),
        "ttft_ms": spread_ms(firsts),
        "tpot_ms": spread_ms([each.tpot_s for each in done]),
        "e2e_ms": spread_ms([each.total_s for each in done]),
        "lateness_ms": spread_ms([each.late_s for each in sent]),
        "stages_median_ms": {
            stage: round(statistics.median(each.timings_ms[stage] for each in done), 2) for stage in STAGES if done
        },
    }


def table(row: dict[str, Any]) -> str:
    """The row for people."""
    names = ("mean", "p50", "p90", "p95", "p99", "max")
    lines = [f"{'ms':14}" + "".join(f"{name:>10}" for name in names)]
    shown = [name for name in ("ttft_ms", "tpot_ms", "e2e_ms", "lateness_ms") if row[name]]
    lines += [f"{each[:-3]:14}" + "".join(f"{row[each][name]:>10.2f}" for name in names) for each in shown]
    rates = ("requests_per_s", "tokens_per_s", "pages_per_s", "goodput_share", "goodput_requests_per_s")
    lines += [f"{name:24}{row[name]}" for name in (*rates, "errors", "stages_median_ms", "client_cpu_share", "cpu_ms")]
    return "\n".join(lines)


def size_of(text: str) -> tuple[int, int]:
    """Width and height in pixels: `640` or `1240x1754`."""
    width, _, height = text.partition("x")
    return int(width), int(height or width)


def pages_of(folder: Path, size: tuple[int, int] | None, seed: int, *, text: bool = False) -> list[bytes]:
    """Documents of a folder, or 16 PNG of noise or text, `size` pixels wide and high."""
    if size is None:
        return [path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    noise, pages = np.random.default_rng(seed), []
    for number in range(16):
        if text:
            pages.append(text_page(number, size))
            continue
        buffer = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(buffer, "PNG")
        pages.append(buffer.getvalue())
    return pages


def text_page(number: int, size: tuple[int, int]) -> bytes:
    """A PNG with rows of text from edge to edge; another one for each number."""
    image = Image.new("RGB", size, "white")
    canvas, row_px = ImageDraw.Draw(image), max(min(size) // 32, 9)
    font = ImageFont.load_default(0.7 * row_px)
    for row in range(1, size[1] // row_px - 1):
        words = f"Page {number}, row {row}: {number * 7919 + row * 104729}. "
        canvas.text((row_px, row * row_px), 3 * words, "black", font=font)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@contextlib.contextmanager
def service_of(arguments: argparse.Namespace) -> Iterator[tuple[str, int | None]]:
    """Address of the service that was named, or address and process of one that runs for as long."""
    if arguments.url:
        yield arguments.url, None
        return
    settings = dict(each.split("=", 1) for each in arguments.setting)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (volume := folder / "volume").mkdir()
        if (model := arguments.model) == "random":
            from benchmarks.random_model import write_random_checkpoint

            model = str(write_random_checkpoint(folder / "deepseek-ocr-random", NANO, arguments.device))
        chosen = {"ENGINE": "fake"} if model == "fake" else {"MODEL": model, "DEVICE": arguments.device.split(":")[0]}
        chosen["MAX_CONCURRENT_REQUESTS"] = "1024"
        with service(volume, folder / "service.log", **chosen | settings) as running:
            yield running.url, running.pid


@dataclass(frozen=True, slots=True)
class Part:
    """What one client process sent, and between which moments of `time.perf_counter`, which all processes share."""

    sent: Sequence[Sent]
    began_s: float
    ended_s: float
    cpu_s: float


async def take_part(url: str, load: Load, start: Callable[[], object]) -> Part:
    """Warm up with one request, wait for the start, then load."""
    async with httpx.AsyncClient(base_url=url, timeout=600.0, limits=httpx.Limits(), trust_env=False) as client:
        await send(client, load, 0, time.perf_counter())
        start()
        cpu_s, began_s = time.process_time(), time.perf_counter()
        sent, wall_s = await run_load(client, load)
        return Part(sent, began_s, began_s + wall_s, time.process_time() - cpu_s)


def shares_of(load: Load, processes: int) -> list[Load]:
    """A load shared out; arrivals of the parts together are as random as those of the whole."""

    def share(number: int | None, index: int) -> int | None:
        return None if number is None else number // processes + (index < number % processes)

    return [
        replace(
            load,
            pages=[*load.pages[index:], *load.pages[:index]],
            rate=None if load.rate is None else load.rate / processes,
            clients=share(load.clients, index) or 1,
            requests=share(load.requests, index),
            seed=load.seed + index,
        )
        for index in range(processes)
    ]


def _in_process(url: str, load: Load, start: Any, parts: Any) -> None:
    parts.put(asyncio.run(take_part(url, load, start.wait)))


def load_from(url: str, load: Load, processes: int) -> list[Part]:
    """Load a service from several processes at once.

    Raises:
        RuntimeError: One of them ended without a result.
    """
    if processes == 1:
        return [asyncio.run(take_part(url, load, lambda: None))]
    # Spawned, since this process has threads of libraries.
    context = multiprocessing.get_context("spawn")
    start, parts = context.Barrier(processes), context.Queue()
    started = [
        context.Process(target=_in_process, args=(url, share, start, parts), daemon=True)
        for share in shares_of(load, processes)
    ]
    for process in started:
        process.start()
    found: list[Part] = []
    while len(found) < processes:
        try:
            found.append(parts.get(timeout=1.0))
        except queue.Empty:
            if any(process.exitcode for process in started):
                raise RuntimeError("a client process failed; it said why above") from None
    for process in started:
        process.join()
    return found


async def measure(url: str, load: Load, slo_ttft_ms: float, slo_e2e_ms: float) -> dict[str, Any]:
    """Load a service from this process; the row's measures."""
    return measures_of([await take_part(url, load, lambda: None)], slo_ttft_ms, slo_e2e_ms)


def measures_of(parts: Sequence[Part], slo_ttft_ms: float, slo_e2e_ms: float) -> dict[str, Any]:
    """The row's measures, of all client processes together."""
    sent = [each for part in parts for each in part.sent]
    wall_s = max(part.ended_s for part in parts) - min(part.began_s for part in parts)
    busiest = max(part.cpu_s / (part.ended_s - part.began_s) for part in parts)
    return summarise(sent, wall_s, slo_ttft_ms, slo_e2e_ms) | {"client_cpu_share": round(busiest, 3)}


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running service; one is started otherwise")
    parser.add_argument("--model", default="nano", help="nano, fake, random (v1 weights) or a checkpoint's folder")
    parser.add_argument("--device", default="cpu", help="where it runs: cpu or cuda")
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="of the started service")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--rate", type=float, help="requests per second, open loop")
    way.add_argument("--clients", type=int, nargs="+", help="closed loop; several: one after another, a row each")
    parser.add_argument("--processes", type=int, default=1, help="client processes that share it (%(default)s)")
    parser.add_argument("--duration", type=float, help="seconds in which requests are sent")
    parser.add_argument("--requests", type=int, help="how many are sent")
    parser.add_argument("--pages", type=Path, default=SAMPLES, help="folder of documents")
    parser.add_argument("--side", type=size_of, metavar="PX|WxH", help="noise of that size instead")
    parser.add_argument("--text", action="store_true", help="with --side, text of that size")
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--field", action="append", default=[], metavar="NAME=VALUE", help="form field of each request")
    parser.add_argument("--model-id", default="", help="models or adapters that requests name in turn, by commas")
    parser.add_argument("--slo-ttft-ms", type=float, default=math.inf)
    parser.add_argument("--slo-e2e-ms", type=float, default=math.inf)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="file that the line is appended to, or `auto`")
    given = parser.parse_args()
    if given.duration is None and given.requests is None:
        parser.error("give --duration, --requests or both")
    if given.text and not given.side:
        parser.error("--text needs --side")
    if given.processes < 1:
        parser.error("--processes is at least 1")
    if not (pages := pages_of(given.pages, given.side, given.seed, text=given.text)):
        parser.error("--pages has no documents")
    model_ids = [each for each in given.model_id.split(",") if each]
    fields = dict(each.split("=", 1) for each in given.field)
    facts = {"model": "url" if given.url else Path(given.model).name, "rate_requests_per_s": given.rate}
    facts |= {name: getattr(given, name) for name in ("max_new_tokens", "side", "text")}
    for name in ("slo_ttft_ms", "slo_e2e_ms"):
        facts[name] = getattr(given, name) if math.isfinite(getattr(given, name)) else None
    with service_of(given) as (url, pid):
        for clients in given.clients or [None]:
            load = Load(pages, model_ids, given.max_new_tokens, given.rate, clients or 1, given.requests,
                        given.duration, given.seed, fields)  # fmt: skip
            # A client cannot be shared out.
            processes = min(given.processes, clients or given.processes)
            before_s = spent_s(pid) if pid else {}
            parts = load_from(url, load, processes)
            after_s = spent_s(pid) if pid else {}
            row = measures_of(parts, given.slo_ttft_ms, given.slo_e2e_ms)
            # Each client warms up with one more request.
            sent = row["requests"] + processes
            row["cpu_ms"] = {name: round(1000 * (after_s[name] - spent) / sent, 2) for name, spent in before_s.items()}
            row["cpu_ms"]["clients"] = round(1000 * sum(part.cpu_s for part in parts) / row["requests"], 2)
            print(table(row), flush=True)
            asked = {"clients": clients, "processes": processes}
            keep(
                {"benchmark": "online", "command": command(), **origin(given.device), **facts, **asked, **row},
                given.out,
            )


if __name__ == "__main__":
    main()
