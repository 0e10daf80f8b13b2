"""nano against Tesseract 5 on a CPU: the same images, the same cores, pages per second and seconds per page.

    python benchmarks/cpu_reading.py                                the included samples
    python benchmarks/cpu_reading.py --data data/nano-eval --limit 10 --out auto

Each reader is measured as its users run it. Tesseract: one process after another on one thread, and as many
processes at once as there are cores (one thread each, its fastest: its own threads compete for the cores).
nano: one page after another on one thread, one after another on all, and pages together through the engine on all. A
reader starts from image files. A Tesseract page includes the start of its process, since a program cannot call it any
other way; nano's start, once for all pages, is not included but printed. A page's seconds are what it takes when read
alone, or its share of the wall time when pages are read together.

With `--alternating` both read each page in turn, nano pages by lines as the service does but images once, Tesseract on
one thread; then seconds of the processor are given as well, which other work on the machine changes little:

    OMP_NUM_THREADS=1 python benchmarks/cpu_reading.py --alternating --scans SCANS

With `--service PID` as well a running service reads, with all that a request costs: HTTP, the image processes, second
readings. Its seconds of the processor are those of that process and its children.

    DEEPSYNTH_CPU_THREADS=1 make serve
    python benchmarks/cpu_reading.py --alternating --data data/nano-eval --tiers line --limit 60 --service PID

Accuracy comes with the speed: character error rate against the truth, all pages together. Prints a table, and
one JSON object last; `--out FILE` appends a JSON line for each row to a file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx
import torch
from PIL import Image

from benchmarks.origin import card, command, origin, slug
from benchmarks.ratios import RESULTS
from benchmarks.reading import SAMPLES, prepared, shipped_samples
from service.engine.config import EngineLimits
from service.engine.engine import TorchEngine
from service.engine.factory import make_engine
from service.engine.protocol import SamplingParams, SequenceDelta, SequenceFailure, SequenceRequest, SequenceResult
from service.engine.resolve import CPU_BATCH_SIZE
from service.ocr.line_reading import read_lines
from shared.contract.prompts import Task, prompt_for
from shared.contract.text import char_errors, total
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import plan_views
from shared.deepseek_ocr.line_views import is_crop
from shared.deepseek_ocr.loading import load_checkpoint
from shared.images.canvases import LARGE_EM_PX, LOW_PX, SIDE_PX, Strip
from shared.images.page_lines import lines_of_page
from trainer.config import child_environment
from trainer.evaluation.samples import Layout, Sample, load_scans, load_set, open_page
from trainer.reading.protocol import ReaderError
from trainer.reading.tesseract import TesseractReader

NANO = Path(__file__).resolve().parents[1] / "shared" / "nano"
Read = Callable[[Sequence[Sample]], list[str]]
Reads = tuple[str, Callable[[Sample], str], Callable[[], float]]
"""How it is run, what reads, and the seconds of the processor that it has used so far."""


@dataclass(frozen=True, slots=True)
class Way:
    """A reader, and how it is run."""

    reader: str
    how: str
    read: Read
    at_once: bool
    """Whether pages are read together, so that a page has no time of its own."""


def tesseract_ways(cores: int, program: str) -> list[Way]:
    """Tesseract on one core and on all; none if the program is missing."""
    ways = []
    for processes in dict.fromkeys((1, cores)):
        try:
            reader = TesseractReader(child_environment(), processes, program=program)
        except ReaderError as error:
            print(error, file=sys.stderr)
            return []

        def read(samples: Sequence[Sample], reader: TesseractReader = reader) -> list[str]:
            texts = {place: reading.text for place, reading in reader.read(samples)}
            return [texts[place] for place in range(len(samples))]

        plural = "process" if processes == 1 else "processes"
        ways.append(Way(reader.name, f"{processes} {plural}", read, at_once=processes > 1))
    return ways


def nano_ways(cores: int, batch_size: int, max_new_tokens: int) -> tuple[list[Way], float]:
    """The included model alone on one core, alone on all, and in batches; and the seconds it takes to start."""
    began_s = time.perf_counter()
    checkpoint = load_checkpoint(NANO)
    engine = make_engine(checkpoint, EngineLimits(batch_size=batch_size, max_new_tokens=max_new_tokens), "nano")
    engine.warm_up()
    start_s = time.perf_counter() - began_s

    def reading(threads: int, together: int) -> Read:
        def read(samples: Sequence[Sample]) -> list[str]:
            torch.set_num_threads(threads)
            texts: list[str] = []
            for first in range(0, len(samples), together):
                texts += read_together(engine, samples[first : first + together], max_new_tokens)
            return texts

        return read

    threads = "1 thread" if cores == 1 else f"{cores} threads"
    ways = [Way("nano", "one page at a time, 1 thread", reading(1, 1), at_once=False)]
    if cores > 1:
        ways.append(Way("nano", f"one page at a time, {threads}", reading(cores, 1), at_once=False))
    ways.append(Way("nano", f"{batch_size} slots, {threads}", reading(cores, sys.maxsize), at_once=True))
    return ways, start_s


def read_together(engine: TorchEngine, samples: Sequence[Sample], max_new_tokens: int) -> list[str]:
    """Open, prepare and read images; all are submitted at once, and the engine takes as many as it has slots."""
    for index, sample in enumerate(samples):
        page = prepared(open_page(sample.image_path), engine.info.geometry)
        engine.submit(
            SequenceRequest(
                str(index), page, prompt_for(Task.FREE), SamplingParams(max_new_tokens), engine.info.model_id
            )
        )
    texts: dict[str, str] = {}
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, SequenceFailure):
                raise SystemExit(f"a page failed: {event.detail}")
            if not isinstance(event, SequenceDelta):
                texts[event.sequence_id] = event.text
    return [texts[str(index)] for index in range(len(samples))]


def measure(way: Way, samples: Sequence[Sample]) -> dict[str, Any]:
    """Read all pages once; a row."""
    began_s = time.perf_counter()
    texts = way.read(samples)
    wall_s = time.perf_counter() - began_s
    errors = total(char_errors(sample.truth, text) for sample, text in zip(samples, texts, strict=True))
    return {
        "reader": way.reader,
        "how": way.how,
        "at_once": way.at_once,
        "pages": len(samples),
        "wall_s": round(wall_s, 3),
        "seconds_per_page": round(wall_s / len(samples), 4),
        "pages_per_s": round(len(samples) / wall_s, 4),
        "cer": round(errors.rate, 5),
    }


def read_as_served(engine: TorchEngine, image: Image.Image, max_new_tokens: int) -> str:
    """Read a page by its lines where the service would, else whole."""
    geometry = engine.info.geometry
    plan = plan_views(image.width, image.height, geometry.default_mode, geometry)
    strips = lines_of_page(image) if plan.num_views > 1 else ()
    if not strips or is_crop(plan, strips):
        return asyncio.run(_answer(engine, prepared(image, geometry), max_new_tokens)).text
    most_px = LOW_PX if engine.info.skips_padding else SIDE_PX
    read = partial(_answer, engine)

    async def enlarge() -> Sequence[Strip]:
        return lines_of_page(image, LARGE_EM_PX)

    reading = read_lines(strips, geometry, max_new_tokens, read, enlarge=enlarge, most_px=most_px)
    return asyncio.run(reading).result.text


async def _answer(engine: TorchEngine, page: PageViews, max_new_tokens: int) -> SequenceResult:
    """Read one page or canvas, with whatever else the engine was given in this event loop."""
    task = asyncio.current_task()
    assert task is not None
    name = f"{task.get_name()}-{time.perf_counter_ns()}"
    params = SamplingParams(max_new_tokens)
    wanted = SequenceRequest(name, page, prompt_for(Task.FREE), params, engine.info.model_id, wants_token_scores=True)
    engine.submit(wanted)
    while name not in _results:
        # All tasks submit before the first of them steps.
        await asyncio.sleep(0)
        for event in engine.step() if name not in _results else []:
            if isinstance(event, SequenceFailure):
                raise SystemExit(f"a page failed: {event.detail}")
            if not isinstance(event, SequenceDelta):
                _results[event.sequence_id] = event
    return _results.pop(name)


_results: dict[str, SequenceResult] = {}


def alternate(samples: Sequence[Sample], readers: Sequence[tuple[str, Reads]]) -> list[dict[str, Any]]:
    """Read each page with each reader, one after the other; a row for each.

    Args:
        samples: The pages.
        readers: With their names.

    Returns:
        Figures.
    """
    texts: dict[str, list[str]] = {name: [] for name, _ in readers}
    wall_s, cpu_s = dict.fromkeys(texts, 0.0), dict.fromkeys(texts, 0.0)
    for sample in samples:
        page_s = {}
        for name, (_, read, used_s) in readers:
            began_s, began_cpu_s = time.perf_counter(), used_s()
            texts[name].append(read(sample))
            wall_s[name] += time.perf_counter() - began_s
            page_s[name] = used_s() - began_cpu_s
            cpu_s[name] += page_s[name]
        print(f"{sample.name:<24} " + "  ".join(f"{name} {cpu:.2f} s" for name, cpu in page_s.items()), flush=True)
    rows = []
    for name, (how, *_) in readers:
        errors = total(char_errors(sample.truth, text) for sample, text in zip(samples, texts[name], strict=True))
        rows.append(
            {
                "reader": name,
                "how": how,
                "pages": len(samples),
                "characters": sum(len(sample.truth) for sample in samples),
                "seconds_per_page": round(wall_s[name] / len(samples), 4),
                "cpu_seconds_per_page": round(cpu_s[name] / len(samples), 4),
                "cer": round(errors.rate, 5),
            }
        )
    return rows


def _engine(arguments: argparse.Namespace) -> Reads:
    limits = EngineLimits(
        batch_size=arguments.batch_size,
        max_new_tokens=arguments.max_new_tokens,
        rounds_canvases=not arguments.exact,
    )
    engine = make_engine(load_checkpoint(NANO), limits, "nano")
    engine.warm_up()

    def read(sample: Sample) -> str:
        return read_as_served(engine, open_page(sample.image_path), engine.info.max_new_tokens)

    return f"as served, {torch.get_num_threads()} threads", read, _cpu_s


def _service(arguments: argparse.Namespace) -> Reads:
    client = httpx.Client(base_url=arguments.url, timeout=600)

    def read(sample: Sample) -> str:
        answer = client.post("/ocr", files={"file": (sample.image_path.name, sample.image_path.read_bytes())})
        return str(answer.raise_for_status().json()["text"])

    return "service", read, partial(_cpu_s_of, arguments.service)


def _read_with_tesseract(reader: TesseractReader, sample: Sample) -> str:
    return next(reading.text for _, reading in reader.read([sample]))


def _cpu_s() -> float:
    """Seconds of the processor, of this process and of the programs that it has run."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _cpu_s_of(pid: int) -> float:
    """Seconds of the processor, of a process and of what it has started that still runs."""
    used_s = 0.0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        # The command's name comes first, in brackets, and may contain spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            used_s += sum(_cpu_s_of(int(child)) for child in task.read_text().split())
    return used_s


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The best of nano over the best of Tesseract: pages per second on all cores, seconds of a page read alone.

    Above 1 nano is faster. Empty if a reader is missing.
    """

    def best(reader: str, *, alone: bool) -> float:
        rates = [
            row["pages_per_s"] for row in rows if row["reader"].startswith(reader) and not (alone and row["at_once"])
        ]
        return max(rates, default=0.0)

    found: dict[str, float] = {}
    for name, alone in (("pages_per_s_ratio", False), ("page_alone_ratio", True)):
        ours, theirs = best("nano", alone=alone), best("Tesseract", alone=alone)
        if ours and theirs:
            found[name] = round(ours / theirs, 3)
    return found


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, or the arguments that are given; ends the program where they cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="evaluation set; none: the included samples")
    parser.add_argument("--tiers", type=lambda text: text.split(","), default=[])
    parser.add_argument("--limit", type=int, help="pages of a tier at most")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch-size", type=int, default=CPU_BATCH_SIZE, help="the engine's slots")
    parser.add_argument("--max-new-tokens", type=int, default=2048)
    parser.add_argument("--tesseract", default="tesseract", help="name or path of the program")
    parser.add_argument("--alternating", action="store_true", help="nano as served, page by page next to Tesseract")
    parser.add_argument(
        "--service", type=int, metavar="PID", help="with --alternating: the service that reads at --url"
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--exact", action="store_true", help="read canvases in float32 everywhere")
    parser.add_argument("--scans", type=Path, help="folder with images/ and truth/ instead of a set")
    parser.add_argument("--out", help="file that the rows are appended to, or `auto`")
    arguments = parser.parse_args(given)
    if arguments.service is not None:
        if not arguments.alternating:
            parser.error("--service needs --alternating")
        if not Path(f"/proc/{arguments.service}/stat").is_file():
            parser.error(f"--service: there is no process {arguments.service}")
    return arguments


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    samples: Sequence[Sample] = shipped_samples()
    if arguments.data:
        samples = load_set(arguments.data, arguments.tiers, arguments.limit).samples
    if arguments.scans:
        samples = load_scans(arguments.scans, arguments.limit).samples
    if arguments.alternating:
        # A scan is a page here, of whatever layout.
        samples = [replace(sample, layout=Layout.PAGE) if arguments.scans else sample for sample in samples]
        tesseract = TesseractReader(child_environment(), 1, program=arguments.tesseract)
        read = partial(_read_with_tesseract, tesseract)
        reads = _service(arguments) if arguments.service is not None else _engine(arguments)
        rows = alternate(samples, [("nano", reads), (tesseract.name, ("alternating, 1 thread", read, _cpu_s))])
        ours, theirs = rows[0]["cpu_seconds_per_page"], rows[1]["cpu_seconds_per_page"]
        name = (arguments.scans or arguments.data or SAMPLES).name
        about = {"benchmark": "cpu_reading", "set": name, **origin("cpu"), "command": command()}
        print(json.dumps(about | {"cpu_ratio": round(ours / theirs, 3), "rows": rows}))
        return
    # Forking many processes is cheapest before torch has started its threads.
    ways = tesseract_ways(arguments.cores, arguments.tesseract)
    nano, start_s = nano_ways(arguments.cores, arguments.batch_size, arguments.max_new_tokens)
    tiers = ",".join(dict.fromkeys(sample.tier for sample in samples))
    source = {"set": arguments.data.name if arguments.data else "docs/samples", "tiers": tiers}
    about = {"benchmark": "cpu_reading", **source, **origin("cpu"), "command": command()}
    rows = []
    print(f"{'reader':<18} {'how':<30} {'pages':>5} {'s/page':>8} {'pages/s':>8} {'CER':>7}")
    for way in [*nano, *ways]:
        row = measure(way, samples)
        shown = f"{row['pages']:>5} {row['seconds_per_page']:>8.3f} {row['pages_per_s']:>8.3f} {row['cer']:>7.2%}"
        print(f"{way.reader:<18} {way.how:<30} {shown}", flush=True)
        rows.append(row)
    last = about | {"cores": arguments.cores, "nano_start_s": round(start_s, 2), "summary": ratios(rows)}
    last |= {"rows": rows}
    print(json.dumps(last))
    if arguments.out:
        path = RESULTS / f"cpu-reading-{slug(card('cpu'))}.jsonl" if arguments.out == "auto" else Path(arguments.out)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row | about) + "\n" for row in rows)


if __name__ == "__main__":
    main()
