"""Driving an engine in this process: step by step on the caller's thread, or on a thread of its own.

`EngineThread` does what the service's engine process does, without frames: it makes the engine, warms it up, takes
requests between steps and sleeps while there are none. `read_case` measures a case from the first image to the last
answer; `read_pages` measures pages whose images are ready.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.cases import DISTINCT_IMAGES, Case
from benchmarks.preparation import Preparation
from service.engine.engine import TorchEngine
from service.engine.protocol import (
    EngineInfo,
    SamplingParams,
    SequenceDelta,
    SequenceFailure,
    SequenceRequest,
    SequenceResult,
)
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.forms import PageImage, PreparedPage
from shared.deepseek_ocr.geometry import GeometryConfig, plan_views

ANSWER_TIMEOUT_S = 600.0
"""Longest that a case may go without an answer."""
STAGES = ("encode_s", "prefill_s", "generate_s")


class EngineThreadError(RuntimeError):
    """A page or the engine failed: there is nothing to measure."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished request."""

    result: SequenceResult
    latency_s: float
    """From the image's turn to be prepared to the answer's end."""


@dataclass(frozen=True, slots=True)
class Span:
    """What a case took."""

    wall_s: float
    answers: tuple[Answer, ...]
    prepared_s: float = 0.0
    """From the first image to the last page's handing over."""

    @property
    def generated_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(answer.result.completion_tokens for answer in self.answers)

    @property
    def prompt_tokens(self) -> int:
        """Tokens before one answer; the same for all pages of a case."""
        result = self.answers[0].result
        return result.vision_tokens + result.prompt_tokens


class EngineThread:
    """Runs an engine, which `factory` makes on the thread.

    Attributes:
        info: What the engine loaded.
        start_s: Seconds until it was warm.
    """

    def __init__(self, factory: Callable[[], TorchEngine]) -> None:
        self._factory = factory
        self._inbox: queue.SimpleQueue[SequenceRequest | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[tuple[SequenceResult | SequenceFailure | BaseException, float]]
        self._outbox = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[EngineInfo | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        began_s = time.perf_counter()
        self._thread.start()
        made = self._ready.get()
        if isinstance(made, BaseException):
            raise made
        self.info = made
        self.start_s = time.perf_counter() - began_s

    def submit(self, sequence_id: str, page: PreparedPage, max_new_tokens: int, model_id: str | None = None) -> None:
        """Hand over a page, to the base where no adapter is named."""
        model_id = model_id or self.info.model_id
        self._inbox.put(
            SequenceRequest(sequence_id, page, prompt_for(Task.FREE), SamplingParams(max_new_tokens), model_id)
        )

    def next_answer(self) -> tuple[SequenceResult, float]:
        """Wait for the next finished page, and when it ended.

        Raises:
            EngineThreadError: A page or the engine failed.
        """
        event, ended_s = self._outbox.get(timeout=ANSWER_TIMEOUT_S)
        if isinstance(event, BaseException):
            raise EngineThreadError("the engine's thread ended") from event
        if isinstance(event, SequenceFailure):
            raise EngineThreadError(f"a page failed: {event.code}: {event.detail}")
        return event, ended_s

    def close(self) -> None:
        """End the thread; pages still in it are lost."""
        self._inbox.put(None)
        self._thread.join(timeout=ANSWER_TIMEOUT_S)

    def _run(self) -> None:
        try:
            engine = self._factory()
            engine.warm_up()
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            self._ready.put(error)
            return
        self._ready.put(engine.info)
        try:
            self._serve(engine)
        except BaseException as error:  # noqa: BLE001 - as above
            self._outbox.put((error, time.perf_counter()))

    def _serve(self, engine: TorchEngine) -> None:
        while True:
            if not engine.has_work:
                request = self._inbox.get()
                if request is None:
                    return
                engine.submit(request)
            while not self._inbox.empty():
                request = self._inbox.get()
                if request is None:
                    return
                engine.submit(request)
            for event in engine.step():
                if not isinstance(event, SequenceDelta):
                    self._outbox.put((event, time.perf_counter()))


def read_case(
    engine: EngineThread, preparation: Preparation, case: Case, model_ids: Sequence[str | None] = (None,)
) -> Span:
    """Read all pages of a case, submitted at once, from the first image to the last answer.

    `model_ids` answer in turn; None is the base model.
    """
    began_s = time.perf_counter()
    for index, page in enumerate(preparation.pages(case.size_px, case.requests)):
        engine.submit(str(index), page, case.new_tokens, model_ids[index % len(model_ids)])
    prepared_s = time.perf_counter() - began_s
    answers = [engine.next_answer() for _ in range(case.requests)]
    return Span(
        max(ended_s for _, ended_s in answers) - began_s,
        tuple(Answer(result, ended_s - began_s) for result, ended_s in answers),
        prepared_s,
    )


def read_closed_loop(engine: EngineThread, preparation: Preparation, case: Case, rounds: int) -> Span:
    """Keep as many requests open as the case has, each answer making room for the next request.

    Pages are prepared before the clock starts, so that the curve is the engine's alone. `rounds` is requests a client.
    """
    pages = list(preparation.pages(case.size_px, case.requests))
    total = rounds * case.requests
    began_s: dict[str, float] = {}
    answers: list[Answer] = []

    def submit(indices: Iterable[int]) -> None:
        for index in indices:
            began_s[str(index)] = time.perf_counter()
            engine.submit(str(index), pages[index % len(pages)], case.new_tokens)

    submit(range(case.requests))
    ended_s = 0.0
    for finished in range(total):
        result, ended_s = engine.next_answer()
        answers.append(Answer(result, ended_s - began_s[result.sequence_id]))
        submit(range(case.requests + finished, min(case.requests + finished + 1, total)))
    return Span(ended_s - began_s["0"], tuple(answers))


def sync() -> None:
    """Wait for the device, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def images_of(size: tuple[int, int], geometry: GeometryConfig, count: int) -> list[PageImage]:
    """Pages of noise as the service sends them to a GPU, at most 16 of them different."""
    noise = np.random.default_rng(0)
    plan = plan_views(*size, geometry.default_mode, geometry)
    different = [
        PageImage(plan, noise.integers(0, 256, (size[1], size[0], 3), np.uint8))
        for _ in range(min(count, DISTINCT_IMAGES))
    ]
    return [different[index % len(different)] for index in range(count)]


def submit(engine: TorchEngine, pages: Sequence[PreparedPage], tokens: int, name: str) -> None:
    """Hand pages over, for the base model."""
    for index, page in enumerate(pages):
        engine.submit(SequenceRequest(f"{name}-{index}", page, "", SamplingParams(tokens), engine.info.model_id))


@dataclass(frozen=True, slots=True)
class PagesRead:
    """What it took to read pages that arrived together."""

    wall_s: float
    steps: int
    encode_s: float
    """Of the slowest page, like the other two."""
    prefill_s: float
    generate_s: float
    """From its first token to its last."""


def read_pages(engine: TorchEngine, pages: Sequence[PreparedPage], tokens: int, name: str) -> PagesRead:
    """Read pages that arrive together, each to its last token; the engine is warm and idle.

    Raises:
        SystemExit: A page failed.
    """
    sync()
    steps, began_s = engine.stats().steps, time.perf_counter()
    submit(engine, pages, tokens, name)
    results: list[SequenceResult] = []
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, SequenceFailure):
                raise SystemExit(f"{event.sequence_id}: {event.detail}")
            if isinstance(event, SequenceResult):
                results.append(event)
    wall_s = time.perf_counter() - began_s
    assert [result.completion_tokens for result in results] == [tokens] * len(pages)
    slowest = (max(getattr(result.timings, stage) for result in results) for stage in STAGES)
    return PagesRead(wall_s, engine.stats().steps - steps, *slowest)


def longest_gap_s(
    engine: TorchEngine,
    running: Sequence[PreparedPage],
    coming: Sequence[PreparedPage],
    *,
    tokens: int,
    head_start: int,
) -> float:
    """The longest time between two steps while pages run and others start; the engine is warm and idle.

    Args:
        engine: Any device.
        running: Pages whose steps are timed.
        coming: Pages that arrive later, of one token.
        tokens: Of each running page; enough to outlast the others.
        head_start: Steps before the others arrive.

    Returns:
        Seconds.
    """
    submit(engine, running, tokens, "running")
    for _ in range(head_start):
        engine.step()
    submit(engine, coming, 1, "coming")
    longest_s, last_s, left = 0.0, time.perf_counter(), len(coming)
    while engine.has_work:
        events = engine.step()
        now_s = time.perf_counter()
        if left:
            longest_s = max(longest_s, now_s - last_s)
        left -= sum(isinstance(each, SequenceResult) and each.sequence_id.startswith("coming") for each in events)
        last_s = now_s
    return longest_s
