"""The engine: continuous batching of pages on one device, over any runner.

Owns sequences between `submit` and their last event. `requests` makes them, `batch` starts them; tensors are the
runner's, text is the sequence's. One thread calls all of it, and the only wait is for the runner's oldest pending
output.

The engine is pipelined: with a runner of depth 1 the tokens of step t are read while the device computes step t + 1. So
one more token may be in flight when an answer ends or is rewound; the sequence's epoch tells such tokens apart.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.engine.batch import RunningBatch
from service.engine.config import EngineLimits
from service.engine.detokenization import DetokenizationThrottle
from service.engine.lora.bank import PackedAdapter
from service.engine.lora.files import AdapterFiles, read_adapter
from service.engine.lora.registry import AdapterError, AdapterRegistry
from service.engine.protocol import (
    EngineInfo,
    EngineState,
    EngineStats,
    SamplingParams,
    SequenceDelta,
    SequenceEvent,
    SequenceFailure,
    SequenceRequest,
)
from service.engine.requests import RequestValidator
from service.engine.runner import Runner, StepOutput
from service.engine.scheduler import PREFILL_TOKENS_PER_STEP, VIEWS_PER_STEP, Limits, decode_order
from service.engine.sequence import PageSequence
from service.errors import EngineError
from shared.contract.answer import FinishReason, Rewind, TokenStatus
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.forms import PageImage
from shared.deepseek_ocr.geometry import plan_views
from shared.deepseek_ocr.tokenizer import OcrTokenizer

WARM_UP_TOKENS = 8
MAX_BATCH_SIZES = 1024
"""Batch sizes kept between two readings of the statistics."""


@dataclass(frozen=True, slots=True)
class _InFlightStep:
    """The sequences of a pending output's rows, with their epochs at the launch."""

    rows: Sequence[tuple[PageSequence, int]]
    is_opening: bool = False


class TorchEngine:
    """Implements `protocol.Engine`.

    Invariant: `_in_flight` has an entry for each pending output of the runner, oldest first.

    Args:
        runner: The model on its device, with at least `limits.batch_size` slots.
        tokenizer: The checkpoint's.
        info: What is loaded, as reported.
        limits: What the engine may hold and do.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: OcrTokenizer,
        info: EngineInfo,
        limits: EngineLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._info = info
        self._limits = limits
        self._clock = clock
        schedule = Limits(
            slots=limits.batch_size,
            kv_tokens=runner.kv_tokens,
            views_per_step=limits.views_per_step or VIEWS_PER_STEP,
            prefill_tokens_per_step=limits.prefill_tokens_per_step or PREFILL_TOKENS_PER_STEP,
            idle_multiplier=limits.idle_multiplier or 1,
        )
        self._pages = RunningBatch(runner, schedule, info.geometry, clock)
        self._validator = RequestValidator(
            tokenizer, info, limits, self._pages, runner.block_tokens, runner.kept_answer_tokens, clock
        )
        self._in_flight: deque[_InFlightStep] = deque()
        self._events: list[SequenceEvent] = []
        self._steps = 0
        self._batch_sizes: deque[int] = deque(maxlen=MAX_BATCH_SIZES)
        self._drafted = self._accepted = 0
        self._progress_s = clock()
        self._throttle = DetokenizationThrottle()
        self._adapters = AdapterRegistry(limits.adapter_slots)

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        return self._info

    @property
    def has_work(self) -> bool:
        """Whether a sequence waits or runs, or an event is to be fetched."""
        return bool(self._pages.waiting or self._pages.active or self._events)

    def warm_up(self) -> None:
        """Read one synthetic page of the default mode, so that the first request is not slower than others.

        Raises:
            EngineError: The model cannot read it.
        """
        self._runner.warm_up()
        geometry = self._info.geometry
        side = geometry.global_px
        plan = plan_views(side, side, geometry.default_mode, geometry)
        page = PageImage(plan, np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
        self.submit(
            SequenceRequest(
                "warm-up",
                page,
                prompt_for(Task.FREE, prompts=self._info.prompts),
                SamplingParams(WARM_UP_TOKENS),
                self._info.model_id,
            )
        )
        while self.has_work:
            for event in self.step():
                if isinstance(event, SequenceFailure):
                    raise EngineError(f"the warm-up page failed: {event.detail}")
        self._steps = self._drafted = self._accepted = 0
        self._batch_sizes.clear()

    def submit(self, request: SequenceRequest) -> None:
        """Queue a sequence; one that cannot run is answered with a failure at the next step.

        Args:
            request: The page, its id unlike that of any sequence still here.
        """
        sequence = self._validator.make_sequence(request, self._adapters)
        if isinstance(sequence, SequenceFailure):
            self._events.append(sequence)
        else:
            self._pages.add(sequence)

    def cancel(self, sequence_id: str) -> None:
        """Drop a sequence and its pending events; unknown ids are ignored."""
        self._pages.drop(sequence_id)
        self._events = [event for event in self._events if event.sequence_id != sequence_id]

    def read_adapter(self, folder: Path) -> PackedAdapter:
        """Read and validate an adapter's files; touches no slot, so any thread may call it."""
        return self._runner.pack_adapter(read_adapter(folder))

    def load_adapter(self, model_id: str, source: PackedAdapter | AdapterFiles | Path) -> None:
        """Make an adapter resident and serve it under its name; running sequences continue.

        Args:
            model_id: `name@version`; never used for anything else before.
            source: The result of `read_adapter`, a PEFT adapter's files, or the folder with them.

        Raises:
            AdapterError: It cannot be loaded; nothing has changed.
        """
        if model_id == self._info.model_id:
            raise AdapterError("name_in_use", f"{model_id} is the base model")
        self._adapters.sweep(self._pages.adapters_in_use)
        slot = self._adapters.offer_slot(model_id)
        files = read_adapter(source) if isinstance(source, Path) else source
        self._runner.load_adapter(slot, self._runner.pack_adapter(files) if isinstance(files, AdapterFiles) else files)
        self._adapters.add(model_id, slot)

    def unload_adapter(self, model_id: str) -> bool:
        """Take an adapter out of service: at once for new sequences, and for good when its last one has ended.

        Args:
            model_id: Its name.

        Returns:
            Whether its slot is free; else it drains.

        Raises:
            AdapterError: `unknown_adapter`.
        """
        self._adapters.drain(model_id)
        self._adapters.sweep(self._pages.adapters_in_use)
        return model_id not in self._adapters.draining

    @property
    def adapters(self) -> AdapterRegistry:
        """Which adapters are resident; for reading."""
        return self._adapters

    def step(self) -> list[SequenceEvent]:
        """Admit what fits, encode and prefill a bounded share of it, and launch a token for every running sequence."""
        now_s = self._clock()
        elapsed_s, self._progress_s = now_s - self._progress_s, now_s
        has_moved = bool(self._events or self._in_flight)
        if self._pages.may_start:
            opened, failures = self._pages.start()
            has_moved |= self._pages.has_started_work
            self._events += failures
            if opened:
                self._in_flight.append(
                    _InFlightStep([(sequence, sequence.epoch) for sequence in opened], is_opening=True)
                )
        if not self._runner.depth:
            self._drain(0)
        has_launched = self._launch_decode()
        # Without a new launch, pending outputs are all there is to wait for.
        self._drain(self._runner.depth if has_launched else 0)
        shown = [sequence for sequence in self._pages.active.values() if sequence.shows_text]
        self._show_texts(self._throttle.take(shown, elapsed_s))
        # A step that moves nothing is none: the supervisor takes an engine that turns without progress for lost.
        self._steps += has_moved or has_launched
        if self._adapters.draining:
            self._adapters.sweep(self._pages.adapters_in_use)
        events, self._events = self._events, []
        return events

    def stats(self) -> EngineStats:
        """Current counts; batch sizes since the last call."""
        batch_sizes = tuple(self._batch_sizes)
        self._batch_sizes.clear()
        return EngineStats(
            state=EngineState.READY,
            waiting=len(self._pages.waiting),
            running=len(self._pages.active),
            steps=self._steps,
            batch_sizes=batch_sizes,
            device_memory_bytes=self._runner.device_memory_bytes(),
            seconds_since_progress=self._clock() - self._progress_s if self.has_work else 0.0,
            drafted_tokens=self._drafted,
            accepted_tokens=self._accepted,
        )

    def check_integrity(self) -> None:
        """Assert the invariants; for tests."""
        self._pages.check_integrity()
        self._adapters.check_integrity()
        self._runner.check_integrity()

    def _launch_decode(self) -> bool:
        sequences = [sequence for sequence in self._pages.active.values() if sequence.wants_tokens]
        if not sequences:
            return False
        if self._adapters.names or self._adapters.draining:
            sequences = decode_order(sequences)
        for sequence in sequences:
            sequence.num_launched += 1
        self._runner.launch([sequence.slot for sequence in sequences if sequence.slot is not None])
        self._in_flight.append(_InFlightStep([(sequence, sequence.epoch) for sequence in sequences]))
        self._batch_sizes.append(len(sequences))
        return True

    def _drain(self, num_pending: int) -> None:
        """Read outputs, oldest first, until at most `num_pending` are left."""
        while len(self._in_flight) > num_pending:
            output = self._runner.collect()
            assert output is not None
            step = self._in_flight.popleft()
            if step.is_opening:
                now_s = self._clock()
                for sequence, _ in step.rows:
                    sequence.stages.prefilled_s = now_s
            self._take(step, output)
            if step.is_opening:
                self._show_texts([sequence for sequence, epoch in step.rows if sequence.epoch == epoch])

    def _take(self, step: _InFlightStep, output: StepOutput) -> None:
        """Give each sequence its tokens, and rewind or finish it if that follows."""
        counts = output.counts or [1] * len(step.rows)
        self._drafted += output.num_drafted
        self._accepted += sum(counts) - len(counts)
        for (sequence, epoch), count in zip(step.rows, counts, strict=True):
            if sequence.epoch == epoch:
                sequence.num_launched += count - 1
        rows = [row for row, count in zip(step.rows, counts, strict=True) for _ in range(count)]
        columns = zip(output.tokens, output.log_probabilities, output.statuses, output.arguments, strict=True)
        for row, ((sequence, epoch), (token, log_probability, status, argument)) in enumerate(
            zip(rows, columns, strict=True)
        ):
            # A rewind or the end makes the row's other tokens void.
            if sequence.epoch != epoch:
                continue
            if status >= TokenStatus.FAULT:
                self._pages.leave(sequence)
                self._fail(sequence.sequence_id, "engine_failed", "the model's logits are not numbers")
                continue
            if row in output.alternatives:
                sequence.answer.note(output.alternatives[row], token, log_probability)
            turn = sequence.answer.push(token, log_probability, status, argument)
            if turn is None:
                continue
            if isinstance(turn, Rewind):
                self._rewind(sequence, turn)
            else:
                self._finish(sequence, turn)

    def _rewind(self, sequence: PageSequence, turn: Rewind) -> None:
        assert sequence.slot is not None
        sequence.epoch += 1
        sequence.num_launched = turn.kept
        self._runner.rewind(sequence.slot, kept=turn.kept, newest_token=turn.newest_token, forbidden=turn.forbidden)

    def _finish(self, sequence: PageSequence, reason: FinishReason) -> None:
        self._pages.leave(sequence)
        shows_text = sequence.shows_text
        rest = sequence.answer.finish()
        if shows_text:
            self._report(sequence.sequence_id, rest)
        self._events.append(sequence.result(reason, self._clock()))

    def _show_texts(self, sequences: Iterable[PageSequence]) -> None:
        for sequence in sequences:
            self._report(sequence.sequence_id, sequence.answer.settled_text())

    def _report(self, sequence_id: str, text: str) -> None:
        if text:
            self._events.append(SequenceDelta(sequence_id, text))

    def _fail(self, sequence_id: str, code: str, detail: str) -> None:
        self._events.append(SequenceFailure(sequence_id, code, detail))
