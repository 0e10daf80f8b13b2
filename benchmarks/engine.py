"""The engine compared with its peers: latency, throughput, ablations, and a sweep over concurrency.

    python benchmarks/engine.py --model random --peers transformers,vllm --out auto             all cases
    python benchmarks/engine.py --model random --cases latency,throughput,prefill-page --ablate all
    python benchmarks/engine.py --model random --cases none --concurrency 1,2,4,8,16,32,64,128,256
    python benchmarks/engine.py --model random --cases throughput --adapters 8                  adapters and base
    python benchmarks/engine.py --model nano --device cpu --cases ttft,latency --tokens 32      a quick look

Cases are those of `benchmarks/cases.py`. A case's time runs from the first decoded image to the last answer: images
are prepared within it while the engine's thread reads, on the device or by worker processes (`--preparation`).
Every answer has exactly the asked number of tokens: no token ends it, and the loop rule is out of reach.

`--adapters N` reads the requests of `throughput` again, as the case `adapters`: in one batch, answered by N adapters in
turn, of `--adapter-rank` and in every projection that the engine takes. They are resident from the start: the case
`throughput` of the same run is the base model with them resident, a run without the flag is the base model without. The
row of `adapters` has `base_ratio`, its pages a second over those of `throughput`.

`--weights int8` keeps the engine's matrices as 8-bit rows. Rows and the last line then have `weights`; floors stay
those of full weights.

`--model random` has the public dimensions of DeepSeek-OCR and random weights, `--model random-ocr2` those of
DeepSeek-OCR-2 and `--model random-unlimited` those of Unlimited-OCR, for which there are neither floors nor targets.
`benchmarks/long_answer.py` measures Unlimited-OCR's long answers. Peers run in processes of their own
before the engine uses the device; one that is not installed is left out. Prints a table and, last, one JSON object
with the ratios to peers and floors. `--out FILE` appends a JSON line for each run to a file as soon as it is known, and
that object last; `auto` is `benchmarks/results/engine-CARD.jsonl`, `engine-ocr2-CARD.jsonl` or
`engine-unlimited-CARD.jsonl`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.ablation import REDUCED_REQUESTS, AblationError, Idea, leave_out, limits_without, without
from benchmarks.cases import PAGE_PX, SMALL_PX, Case, choose_cases, noise_images, row_of
from benchmarks.driving import EngineThread, Span, read_case, read_closed_loop
from benchmarks.floors import Ceilings, measure_ceilings
from benchmarks.origin import card, command, origin, slug
from benchmarks.peers import PEERS, run_peer
from benchmarks.preparation import DevicePreparation, InlinePreparation, Preparation, ProcessPreparation
from benchmarks.random_model import (
    adapter_names,
    load_random_adapters,
    random_checkpoint,
    random_ocr2_checkpoint,
)
from benchmarks.ratios import OURS, RESULTS, TARGETS, recorded_peers, summary
from service.engine.config import EngineLimits, WeightForm
from service.engine.engine import TorchEngine
from service.engine.factory import make_engine
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.configuration import DeepseekOcrConfig
from shared.deepseek_ocr.geometry import GeometryConfig
from shared.deepseek_ocr.loading import LoadedCheckpoint, load_checkpoint
from shared.deepseek_ocr.nano_config import nano_config
from shared.deepseek_ocr.ocr2 import OCR2_GEOMETRY
from shared.deepseek_ocr.unlimited import UnlimitedOcrConfig

NANO = Path(__file__).resolve().parents[1] / "shared" / "nano"
NEVER = 1_000_000
NO_END = -1
"""No token has this id, so no answer ends by itself."""


def load(model: str, device: str, dtype: torch.dtype) -> LoadedCheckpoint:
    """The checkpoint to measure, `nano` or `random`; its answers never end by themselves."""
    if model == "nano":
        checkpoint = load_checkpoint(NANO, device, dtype)
        checkpoint.tokenizer.eos_id = NO_END
        return checkpoint
    if model == "random-ocr2":
        return random_ocr2_checkpoint(device, dtype)
    return random_checkpoint(device, dtype, config_of(model))


def config_of(model: str) -> DeepseekOcrConfig:
    """Dimensions of a model of v1's class."""
    if model == "nano":
        return nano_config()
    return UnlimitedOcrConfig() if model == "random-unlimited" else DeepseekOcrConfig()


@dataclass(slots=True)
class Run:
    """One call of the program: its arguments, its output file and its rows."""

    arguments: argparse.Namespace
    origin: dict[str, Any]
    ceilings: Ceilings
    rows: list[dict[str, Any]]
    path: Path | None = None
    """None: nothing is written."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the engine's weights."""
        name = self.arguments.dtype or ("float32" if self.arguments.device == "cpu" else "bfloat16")
        dtype: torch.dtype = getattr(torch, name)
        return dtype

    @property
    def cases(self) -> list[Case]:
        """Named on the command line."""
        names = self.arguments.cases
        return [] if names == ["none"] else choose_cases(names, self.arguments.requests, self.arguments.tokens)

    @property
    def weights(self) -> dict[str, str]:
        """What rows say of an engine whose weights are not in full."""
        return {"weights": self.arguments.weights} if self.arguments.weights != WeightForm.FULL else {}

    def add(self, row: dict[str, Any]) -> None:
        """Show a row and keep it."""
        who = row["engine"] + (f", no {row['ablation']}" if "ablation" in row else "")
        what = row["case"] + (f", {row['clients']} clients" if "clients" in row else "")
        print(
            f"{who:<28} {what:<20} {row['requests']:>4} x {row['new_tokens']:<4} {row['wall_s']:>9.4f} s "
            f"{row['pages_per_s']:>9.2f} pages/s {row['tokens_per_s']:>9.0f} tokens/s",
            flush=True,
        )
        # Peers measure bfloat16 alone.
        dtype = str(self.dtype).removeprefix("torch.") if row["engine"] == OURS else "bfloat16"
        self.rows.append(row | {"model": self.arguments.model, "dtype": dtype} | self.origin)
        self.write(self.rows[-1])

    def write(self, row: Mapping[str, Any]) -> None:
        """Append to the file at once: a run that is cut short keeps its rows."""
        if self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def measure(self, idea: Idea | None, preparation: Preparation, sweep: bool) -> None:
        """Make an engine without an idea (None: whole), run the cases on it, and the sweep if asked.

        Raises:
            AblationError: The engine does not have the idea.
        """
        arguments = self.arguments
        limits = limits_without(idea, self._limits())

        def make() -> TorchEngine:
            checkpoint = load(arguments.model, arguments.device, self.dtype)
            engine = leave_out(idea, make_engine(checkpoint, limits))
            load_random_adapters(engine, checkpoint.model.decoder.config, arguments.adapters, arguments.adapter_rank)
            return engine

        with without(idea, arguments.device):
            # The thread makes the engine and drops it, so its memory is free before the next one measures what is free.
            engine = EngineThread(make)
            try:
                more = {"start_s": round(engine.start_s, 2), "preparation": preparation.name}
                more |= {"ablation": idea.value} if idea else {}
                # An engine with resident adapters is not the engine without.
                counts = {"adapters": arguments.adapters, "adapter_rank": arguments.adapter_rank}
                more |= counts if arguments.adapters else {}
                more |= self.weights
                self._read(engine, preparation, REDUCED_REQUESTS.get(idea) if idea else None, more)
                if arguments.adapters and not idea:
                    self._adapters(engine, preparation, more)
                if sweep:
                    self._sweep(engine, preparation, more)
            finally:
                engine.close()
                gc.collect()
                if arguments.device != "cpu":
                    torch.cuda.empty_cache()

    def _read(self, engine: EngineThread, preparation: Preparation, most: int | None, more: dict[str, Any]) -> None:
        for asked in self.cases:
            case = replace(asked, requests=min(asked.requests, most or asked.requests))
            self.add(_row(case, read_case(engine, preparation, case)) | more)

    def _adapters(self, engine: EngineThread, preparation: Preparation, more: dict[str, Any]) -> None:
        """Base and adapters in turn, the better of two each: a first batch of its kind may cost more."""
        arguments = self.arguments
        (case,) = choose_cases(["throughput"], arguments.requests, arguments.tokens)
        names = adapter_names(arguments.adapters)
        best_s: dict[str, float] = {}
        for asked, who in 2 * ((case, [None]), (replace(case, name="adapters"), names)):
            span = read_case(engine, preparation, asked, who)
            best_s[asked.name] = min(best_s.get(asked.name, span.wall_s), span.wall_s)
            ratio = {"base_ratio": round(best_s[case.name] / span.wall_s, 4)} if asked is not case else {}
            self.add(_row(asked, span) | more | ratio)

    def _sweep(self, engine: EngineThread, preparation: Preparation, more: dict[str, Any]) -> None:
        for clients in self.arguments.concurrency:
            case = Case("sweep", clients, SMALL_PX, self.arguments.sweep_tokens)
            span = read_closed_loop(engine, preparation, case, self.arguments.rounds)
            self.add(_sweep_row(case, span) | more)

    def _limits(self) -> EngineLimits:
        arguments = self.arguments
        return EngineLimits(
            batch_size=arguments.batch_size,
            max_new_tokens=arguments.tokens or 512,
            max_sequence_tokens=arguments.sequence_tokens,
            loop_rule=LoopRule(min_tokens=NEVER),
            weights=arguments.weights,
            adapter_slots=arguments.adapters,
            adapter_max_rank=arguments.adapter_rank,
        )


def _row(case: Case, span: Span) -> dict[str, Any]:
    timings = [answer.result.timings for answer in span.answers]
    stages = {
        name: round(statistics.fmean(getattr(timing, name) for timing in timings), 5)
        for name in ("queue_s", "encode_s", "prefill_s", "generate_s")
    }
    row = row_of(
        OURS,
        case,
        prompt_tokens=span.prompt_tokens,
        generated_tokens=span.generated_tokens,
        wall_s=span.wall_s,
        prepared_s=round(span.prepared_s, 5),
        mean_stages=stages,
    )
    if case.requests == 1 and case.new_tokens > 1:
        row["ms_per_token"] = round(1000 * timings[0].generate_s / (case.new_tokens - 1), 4)
    return row


def _sweep_row(case: Case, span: Span) -> dict[str, Any]:
    count = len(span.answers)
    latencies = sorted(answer.latency_s for answer in span.answers)
    firsts = sorted(
        timing.queue_s + timing.encode_s + timing.prefill_s for timing in (a.result.timings for a in span.answers)
    )
    row = row_of(
        OURS,
        replace(case, requests=count),
        prompt_tokens=span.prompt_tokens,
        generated_tokens=span.generated_tokens,
        wall_s=span.wall_s,
        clients=case.requests,
    )
    for name, values in (("latency", latencies), ("first_token", firsts)):
        row |= {f"{name}_p{part}_s": round(values[min(count * part // 100, count - 1)], 5) for part in (50, 90, 99)}
    return row


def parse_arguments() -> argparse.Namespace:
    """The command line."""

    def words(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("nano", "random", "random-ocr2", "random-unlimited"), default="nano")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="none: float32 on a CPU, bfloat16 elsewhere")
    parser.add_argument("--weights", type=WeightForm, choices=(WeightForm.FULL, WeightForm.INT8), default="full")
    parser.add_argument("--cases", type=words, default=[], help="names; none given: all; `none`: none")
    parser.add_argument("--ablate", type=words, default=[], help=f"of {', '.join(Idea)}, or all: each off alone")
    parser.add_argument("--concurrency", type=lambda text: [int(word) for word in words(text)], default=[])
    parser.add_argument("--sweep-tokens", type=int, default=256, help="new tokens of a request of the sweep")
    parser.add_argument("--rounds", type=int, default=2, help="requests of each client of the sweep")
    parser.add_argument("--peers", type=words, default=[], help=f"of {', '.join(PEERS)}")
    parser.add_argument("--adapters", type=int, default=0, help="resident adapters that answer in turn")
    parser.add_argument("--adapter-rank", type=int, default=16)
    parser.add_argument("--skip-whole", action="store_true", help="only peers and ablations")
    parser.add_argument(
        "--preparation", choices=("device", "processes", "inline"), help="none given: the device on a GPU"
    )
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="preparing processes")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--sequence-tokens", type=int, default=4096, help="longest prompt and answer together")
    parser.add_argument("--requests", type=int, help="requests of a case at most")
    parser.add_argument("--tokens", type=int, help="new tokens of a request at most")
    parser.add_argument("--threads", type=int, help="threads of a tensor operation on a CPU")
    parser.add_argument("--out", help="file that the lines are appended to, or `auto`")
    arguments = parser.parse_args()
    if not arguments.preparation:
        arguments.preparation = "processes" if arguments.device == "cpu" else "device"
    if arguments.ablate == ["all"]:
        arguments.ablate = list(Idea)
    if arguments.ablate and arguments.weights != WeightForm.FULL:
        parser.error("ideas are left out of an engine with weights in full")
    return arguments


def _sizes(run: Run) -> Iterator[tuple[tuple[int, int], int]]:
    for size_px in (SMALL_PX, PAGE_PX):
        counts = [case.requests for case in run.cases if case.size_px == size_px]
        if size_px == SMALL_PX:
            counts += run.arguments.concurrency
            if run.arguments.adapters:
                (case,) = choose_cases(["throughput"], run.arguments.requests, run.arguments.tokens)
                counts.append(case.requests)
        if counts:
            yield size_px, max(counts)


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = config_of(arguments.model)
    geometry: GeometryConfig = OCR2_GEOMETRY if arguments.model == "random-ocr2" else config.geometry_config()
    run = Run(arguments, {}, Ceilings(0, 0), [])
    # Workers are forked before anything touches the device.
    most = dict(_sizes(run))
    images = {size_px: noise_images(size_px) for size_px in most}
    preparations: dict[str, Preparation] = {"inline": InlinePreparation(images, geometry)}
    preparations["processes"] = ProcessPreparation(images, geometry, arguments.workers, most)
    card_slug = slug(card(arguments.device))
    if arguments.out:
        kind = {"random-ocr2": "engine-ocr2", "random-unlimited": "engine-unlimited"}.get(arguments.model, "engine")
        run.path = RESULTS / f"{kind}-{card_slug}.jsonl" if arguments.out == "auto" else Path(arguments.out)
    try:
        run.ceilings = measure_ceilings(arguments.device, run.dtype)
        # After the ceilings: an idle card shows a low clock.
        run.origin = origin(arguments.device) | {"command": command()}
        for peer in arguments.peers:
            for row in run_peer(peer, run.cases):
                run.add(row)
        preparations["device"] = DevicePreparation(images, geometry)
        if not arguments.skip_whole:
            run.measure(None, preparations[arguments.preparation], sweep=True)
        for name in arguments.ablate:
            try:
                chosen = "inline" if name == Idea.PREPARATION else arguments.preparation
                run.measure(Idea(name), preparations[chosen], sweep=False)
            except AblationError as error:
                print(f"without {name}: {error}", file=sys.stderr)
    finally:
        for preparation in preparations.values():
            preparation.close()
    # Peers and targets are of the public dimensions.
    recorded, targets = (recorded_peers(card_slug), TARGETS) if arguments.model == "random" else ([], {})
    floors_of = config if arguments.model in ("nano", "random") else None
    last = summary(run.rows, recorded, floors_of, arguments.batch_size, run.ceilings, targets)
    last |= {"model": arguments.model} | run.weights | run.origin
    run.write(last)
    print(json.dumps(last), flush=True)


if __name__ == "__main__":
    main()
