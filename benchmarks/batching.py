"""What batching gives on a CPU: one page, eight pages one after another, eight pages together.

Background: a decode step of a small model is bound by reading its weights, which a batch reads once for all its pages,
while encoding and prefill are bound by arithmetic, which a batch shares out but does not save. So the gain depends on
how much of a page's time is decoding; the table says where it went.

    python benchmarks/batching.py                     the checkpoint in shared/nano
    python benchmarks/batching.py --random            random weights of nano's dimensions, every page `--tokens` long
    python benchmarks/batching.py --checkpoint DIR --pages 16 --threads 4

Pages are views of noise with lines of ink, so with real weights their answers, and their lengths, mean nothing; each
is cut at `--tokens`. Prints a table, and one JSON object as the last line of its output.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from service.engine.config import EngineLimits
from service.engine.engine import TorchEngine
from service.engine.factory import make_engine
from service.engine.protocol import SamplingParams, SequenceFailure, SequenceRequest, SequenceResult
from service.engine.repetition import LoopRule
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.checkpoint import CheckpointError
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import plan_views
from shared.deepseek_ocr.loading import LoadedCheckpoint, load_checkpoint

NANO = Path(__file__).resolve().parents[1] / "shared" / "nano"
NO_LOOPS = LoopRule(min_tokens=1_000_000)
"""Answers to noise loop; the guard would change how long they are."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One case, the best of its repeats."""

    seconds: float
    pages: int
    tokens: int
    encode_s: float
    prefill_s: float
    generate_s: float


def random_checkpoint() -> LoadedCheckpoint:
    """Random weights of nano's dimensions, with a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
    from shared.deepseek_ocr.nano_config import NANO_GEOMETRY, nano_config
    from shared.deepseek_ocr.tokenizer import BOS, EOS, IMAGE, PAD, OcrTokenizer

    words = [BOS, EOS, PAD, IMAGE, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([BOS, EOS, PAD, IMAGE])
    torch.manual_seed(0)
    model = DeepseekOcrForConditionalGeneration(nano_config()).eval()
    return LoadedCheckpoint(model, OcrTokenizer(backend), NANO_GEOMETRY, "nano-random")


def page_of(engine: TorchEngine, seed: int, size_px: int) -> PageViews:
    """A page of the default mode: paper noise and dark strokes in lines."""
    geometry = engine.info.geometry
    plan = plan_views(size_px, size_px, geometry.default_mode, geometry)
    noise = np.random.default_rng(seed)

    def views(count: int, px: int) -> np.ndarray:
        paper = noise.integers(230, 256, (count, px, px, 3), np.uint8)
        ink = noise.random((count, px // 4, px // 2)) < 0.4
        ink[:, np.arange(px // 4) % 6 > 3] = False
        paper[np.repeat(np.repeat(ink, 4, axis=1), 2, axis=2)[:, :px, :px]] = 20
        return paper

    return PageViews(plan, views(1, plan.global_px)[0], views(plan.num_tiles, plan.tile_px))


def read(engine: TorchEngine, pages: list[PageViews], tokens: int) -> Measured:
    """Read pages that arrive together."""
    began_s = time.perf_counter()
    for index, page in enumerate(pages):
        engine.submit(
            SequenceRequest(str(index), page, prompt_for(Task.FREE), SamplingParams(tokens), engine.info.model_id)
        )
    results: list[SequenceResult] = []
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, SequenceFailure):
                raise SystemExit(f"a page failed: {event.detail}")
            if isinstance(event, SequenceResult):
                results.append(event)
    return Measured(
        seconds=time.perf_counter() - began_s,
        pages=len(results),
        tokens=sum(result.completion_tokens for result in results),
        encode_s=max(result.timings.encode_s for result in results),
        prefill_s=max(result.timings.prefill_s for result in results),
        generate_s=max(result.timings.generate_s for result in results),
    )


def read_in_turn(engine: TorchEngine, pages: list[PageViews], tokens: int) -> Measured:
    """Read pages of which each arrives when the one before is done."""
    turns = [read(engine, [page], tokens) for page in pages]
    return Measured(
        seconds=sum(turn.seconds for turn in turns),
        pages=len(turns),
        tokens=sum(turn.tokens for turn in turns),
        encode_s=sum(turn.encode_s for turn in turns),
        prefill_s=sum(turn.prefill_s for turn in turns),
        generate_s=sum(turn.generate_s for turn in turns),
    )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=str(NANO), help="folder or Hugging Face id")
    parser.add_argument("--random", action="store_true", help="random weights of nano's dimensions")
    parser.add_argument("--pages", type=int, default=8, help="pages read together")
    parser.add_argument("--tokens", type=int, default=250, help="new tokens of a page at most")
    parser.add_argument("--size-px", type=int, default=640, help="side of the page")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each case, the best counts")
    parser.add_argument("--threads", type=int, default=2, help="threads of a tensor operation")
    return parser.parse_args()


def main() -> None:
    """Measure the three cases and print them."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    try:
        checkpoint = random_checkpoint() if arguments.random else load_checkpoint(arguments.checkpoint)
    except CheckpointError as error:
        raise SystemExit(f"{error}; --random needs no checkpoint") from error
    limits = EngineLimits(batch_size=arguments.pages, max_new_tokens=arguments.tokens, loop_rule=NO_LOOPS)
    engine = make_engine(checkpoint, limits)
    engine.warm_up()
    pages = [page_of(engine, seed, arguments.size_px) for seed in range(arguments.pages)]
    cases = {
        "one": lambda: read(engine, pages[:1], arguments.tokens),
        "in_turn": lambda: read_in_turn(engine, pages, arguments.tokens),
        "together": lambda: read(engine, pages, arguments.tokens),
    }
    best = {
        name: min((case() for _ in range(arguments.repeats)), key=lambda measured: measured.seconds)
        for name, case in cases.items()
    }
    print(f"{engine.info.model_id}, {arguments.threads} threads, best of {arguments.repeats}")
    headings = ("pages", 5), ("tokens", 6), ("s", 7), ("pages/s", 8), ("encode s", 9), ("prefill s", 9), ("decode s", 9)
    print(f"{'case':<9}", *(f"{name:>{width}}" for name, width in headings))
    for name, case in best.items():
        print(
            f"{name:<9} {case.pages:>5} {case.tokens:>6} {case.seconds:>7.2f} {case.pages / case.seconds:>8.2f}"
            f" {case.encode_s:>9.2f} {case.prefill_s:>9.2f} {case.generate_s:>9.2f}"
        )
    one, in_turn, together = best["one"], best["in_turn"], best["together"]
    summary = {
        "benchmark": "batching",
        "model": engine.info.model_id,
        "device": engine.info.device,
        "dtype": engine.info.dtype,
        "threads": arguments.threads,
        "torch": torch.__version__,
        "page_px": arguments.size_px,
        "vision_tokens_per_page": pages[0].plan.num_vision_tokens,
        "new_tokens_per_page": one.tokens,
        "pages_together": arguments.pages,
        "one_page_s": round(one.seconds, 3),
        "pages_in_turn_s": round(in_turn.seconds, 3),
        "pages_together_s": round(together.seconds, 3),
        "in_turn_pages_per_s": round(in_turn.pages / in_turn.seconds, 3),
        "together_pages_per_s": round(together.pages / together.seconds, 3),
        "in_turn_over_together_ratio": round(in_turn.seconds / together.seconds, 3),
        "decode_step_one_ms": round(one.generate_s / max(one.tokens - 1, 1) * 1000, 2),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
