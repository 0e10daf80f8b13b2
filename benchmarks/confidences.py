"""What confidences of words cost, on a page of 500 words: nothing while it is streamed, a few milliseconds at its end.

Times are CPU time of one thread, the median of many runs, so that other work on the machine counts little. The last
line is a JSON object.

    python benchmarks/confidences.py
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from service.adapters.canary import canary_page
from service.engine.fake import FakeEngine
from service.engine.process.codec import EngineOutputs, decode_message, encode_message
from service.engine.protocol import (
    EngineState,
    EngineStats,
    SamplingParams,
    SequenceRequest,
    SequenceResult,
    SequenceTimings,
)
from service.ocr.answer import to_page_answer
from service.ocr.confidence import Granularity, Wanted, judge
from service.ocr.outcome import PageStatus
from service.ocr.reader import PageResult
from shared.contract.answer import FinishReason
from shared.contract.confidence import TokenScores, score_tokens
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.geometry import GeometryConfig
from shared.deepseek_ocr.grounding import parse_grounded

NUM_WORDS = 500
RUNS = 200
WANTED = Wanted(Granularity.WORD, 0.9)


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rng = random.Random(1)
    pieces = [piece for word in range(NUM_WORDS) for piece in (" w", "or", "d1\n" if word % 10 == 9 else "ds")]
    encoded = [piece.encode() for piece in pieces]
    chances = [math.log(rng.random()) for _ in pieces]
    scores = score_tokens(encoded, chances)
    plain, scored = _result("".join(pieces), len(pieces), None), _result("".join(pieces), len(pieces), scores)
    figures = {
        "words": NUM_WORDS,
        "tokens": len(pieces),
        "engine_ms": _ms(lambda: score_tokens(encoded, chances)),
        "transport_ms": _ms(lambda: _transported(scored)) - _ms(lambda: _transported(plain)),
        "answer_ms": _ms(lambda: _answered(scored)) - _ms(lambda: _answered(plain)),
        "step_without_ms": _ms_of_a_step(wants=False),
        "step_with_ms": _ms_of_a_step(wants=True),
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def _result(text: str, num_tokens: int, scores: TokenScores | None) -> SequenceResult:
    timings = SequenceTimings(0.0, 0.0, 0.0, 0.0)
    return SequenceResult("page", text, FinishReason.STOP, 0.9, 0.5, 1, 1, num_tokens, timings, token_scores=scores)


def _transported(result: SequenceResult) -> None:
    decode_message(encode_message(EngineOutputs((result,), EngineStats(EngineState.READY))))


def _answered(result: SequenceResult) -> str:
    grounded = parse_grounded(result.text, 1000, 1000)
    words = judge(result, grounded, WANTED, None)
    page = PageResult(1, PageStatus.OK, 1000, 1000, grounded.text, grounded.regions, result, words=words)
    return to_page_answer(page).model_dump_json()


def _ms_of_a_step(*, wants: bool) -> float:
    """Of the fake engine with 64 pages: what a stream waits for between two pieces of text."""
    engine = FakeEngine(batch_size=64)
    page, steps = canary_page(GeometryConfig()), []
    for run in range(RUNS // 4):
        for row in range(64):
            name = f"{run}-{row}"
            request = SequenceRequest(
                name, page, prompt_for(Task.FREE), SamplingParams(100), engine.info.model_id, wants_token_scores=wants
            )
            engine.submit(request)
        while engine.has_work:
            start = time.process_time()
            events = engine.step()
            if all(event.kind == "delta" for event in events):
                steps.append(time.process_time() - start)
    return 1000 * statistics.median(steps)


def _ms(work: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return 1000 * statistics.median(times)


if __name__ == "__main__":
    main()
