"""An engine in a thread of its own, and what it takes to read the pages of a case with it.

The thread does what the service's engine process does, without frames: it makes the engine, warms it up, takes requests
between steps, sleeps while there are none. Owns the measured span of a case: from the first image to the last answer.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.cases import Case
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
from shared.deepseek_ocr.forms import PreparedPage

ANSWER_TIMEOUT_S = 600.0
"""Longest that a case may go without an answer."""


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
    """Runs an engine.

    Args:
        factory: Makes it, on the thread.

    Attributes:
        info: What the engine loaded.
        start_s: From nothing to warmed up, in seconds.
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
        """Wait for the next finished page.

        Returns:
            It, and when it ended.

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
    """Read all pages of a case, all asked for at once.

    Args:
        engine: Who reads.
        preparation: Who prepares.
        case: What.
        model_ids: Who answers, in turn; None: the base.

    Returns:
        The span from the first image to the last answer.

    Raises:
        EngineThreadError: A page failed.
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

    Args:
        engine: Who reads.
        preparation: Who prepares; here before the clock starts, so that the curve is the engine's alone.
        case: How many at once, and what.
        rounds: Requests in all, in multiples of those open at once.

    Returns:
        The span from the first submission to the last answer.

    Raises:
        EngineThreadError: A page failed.
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
