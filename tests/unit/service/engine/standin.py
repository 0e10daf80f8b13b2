"""An engine without a model whose life tests can upset: the prompt says what happens."""

import ctypes
import os
import signal
import threading
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from service.engine.protocol import (
    EngineInfo,
    EngineState,
    EngineStats,
    SamplingParams,
    SequenceDelta,
    SequenceEvent,
    SequenceFailure,
    SequenceRequest,
    SequenceResult,
    SequenceTimings,
)
from shared.contract.answer import FinishReason
from shared.deepseek_ocr.forms import PageViews
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, ViewPlan

INFO = EngineInfo("stand-in", "cpu", "none", GeometryConfig(), 64, 256, 4)
PLAN = ViewPlan(Mode.GUNDAM, 2, 1, 1, 2, 3)
GATE = threading.Event()
"""What a sequence with the prompt `wait` stays in a step for."""
AT_GATE = threading.Event()
"""Set by a sequence that has come there."""


@dataclass
class StandIn:
    """Answers each sequence with `max_new_tokens` words, one a step, unless its prompt says otherwise."""

    waiting: deque[SequenceRequest] = field(default_factory=deque)
    running: dict[str, tuple[SequenceRequest, int]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    steps: int = 0
    info: EngineInfo = INFO

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def warm_up(self) -> None:
        pass

    def submit(self, request: SequenceRequest) -> None:
        self.waiting.append(request)

    def cancel(self, sequence_id: str) -> None:
        self.running.pop(sequence_id, None)
        self.waiting = deque(r for r in self.waiting if r.sequence_id != sequence_id)

    def step(self) -> list[SequenceEvent]:
        self.steps += 1
        while self.waiting and len(self.running) < self.info.batch_size:
            request = self.waiting.popleft()
            self.running[request.sequence_id] = (request, 0)
        self.sizes.append(len(self.running))
        return [event for name in list(self.running) for event in self.advance(name)]

    def advance(self, name: str) -> list[SequenceEvent]:
        request, count = self.running[name]
        if request.prompt == "die":
            os._exit(3)
        if request.prompt == "hang":
            time.sleep(3600)
        if request.prompt == "wait":
            AT_GATE.set()
            GATE.wait()
        if request.prompt == "raise":
            raise RuntimeError("told to raise")
        if request.prompt == "fail":
            del self.running[name]
            return [SequenceFailure(name, "engine_failed", "told to fail")]
        if count == request.params.max_new_tokens:
            del self.running[name]
            return [standin_result(request)]
        self.running[name] = (request, count + 1)
        return [SequenceDelta(name, f"{request.prompt}{count} ")]

    def stats(self) -> EngineStats:
        sizes, self.sizes = tuple(self.sizes), []
        return EngineStats(EngineState.READY, len(self.waiting), len(self.running), self.steps, sizes)


def standin_result(request: SequenceRequest) -> SequenceResult:
    text = "".join(f"{request.prompt}{count} " for count in range(request.params.max_new_tokens))
    timings = SequenceTimings(0.25, 0.5, 0.125, 1.0)
    pixels = sum(int(array.sum()) for array in request.page.arrays)
    return SequenceResult(
        request.sequence_id, text, FinishReason.STOP, 0.5, 0.25, pixels, 2, request.params.max_new_tokens, timings
    )


def standin_request(name: str, prompt: str = "word", max_new_tokens: int = 3, ink: int = 1) -> SequenceRequest:
    page = PageViews(PLAN, np.full((2, 2, 3), ink, np.uint8), np.full((2, 1, 1, 3), ink, np.uint8))
    return SequenceRequest(name, page, prompt, SamplingParams(max_new_tokens), "stand-in")


def make_standin() -> StandIn:
    return StandIn()


def make_failing() -> StandIn:
    raise FileNotFoundError("no checkpoint at nowhere")


def make_saying_how_threads_wait() -> StandIn:
    # As libraries see it; Python's own copy of the environment is older.
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    raise RuntimeError(f"threads are {getenv(b'OMP_WAIT_POLICY')!r}")


def make_endless() -> StandIn:
    time.sleep(3600)
    return StandIn()


def make_exiting() -> StandIn:
    os._exit(5)


def make_killed() -> StandIn:
    os.kill(os.getpid(), signal.SIGKILL)
    return StandIn()
