"""The engine of plain torch: continuous batching of pages on one device, greedy decoding.

Owns the life of sequences between `submit` and their last event. Decisions are the scheduler's, tensors the runner's,
text the sequence's. One thread calls all of it; nothing here waits or reads a clock but to stamp stages.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np

from service.engine.loader import EngineLimits
from service.engine.protocol import (
    EngineInfo,
    EngineState,
    EngineStats,
    FinishReason,
    PreparedPage,
    SequenceDelta,
    SequenceEvent,
    SequenceFailure,
    SequenceRequest,
)
from service.engine.runner import Choice, ModelRunner, Prompt
from service.engine.scheduler import ActivePage, Decision, Limits, PageCost, decide
from service.engine.sequence import Answer, PageSequence, Stages
from service.errors import EngineError
from shared.contract.prompts import Task, prompt_for
from shared.deepseek_ocr.geometry import plan_views
from shared.deepseek_ocr.tokenizer import OcrTokenizer

WARM_UP_TOKENS = 8
MAX_BATCH_SIZES = 1024
"""Batch sizes kept between two readings of the statistics."""


class TorchEngine:
    """Implements `protocol.Engine`.

    Invariant: `_rows[i]` is the sequence whose keys lie in row i of the cache, and every sequence is in exactly one of
    `_waiting` and `_active`.

    Args:
        runner: The model on its device, with at least `limits.batch_size` rows.
        tokenizer: The checkpoint's.
        info: What is loaded, as reported.
        limits: What the engine may hold and do.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        runner: ModelRunner,
        tokenizer: OcrTokenizer,
        info: EngineInfo,
        limits: EngineLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._info = info
        self._limits = limits
        self._clock = clock
        self._schedule = Limits(
            slots=limits.batch_size,
            kv_tokens=limits.kv_tokens or limits.batch_size * info.max_sequence_tokens,
            views_per_step=limits.views_per_step,
            prefill_tokens_per_step=limits.prefill_tokens_per_step,
        )
        self._waiting: dict[str, PageSequence] = {}
        self._active: dict[str, PageSequence] = {}
        self._rows: list[PageSequence] = []
        self._events: list[SequenceEvent] = []
        self._steps = 0
        self._batch_sizes: deque[int] = deque(maxlen=MAX_BATCH_SIZES)
        self._progress_s = clock()

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        return self._info

    @property
    def has_work(self) -> bool:
        """Whether a sequence waits or runs, or an event is to be fetched."""
        return bool(self._waiting or self._active or self._events)

    def warm_up(self) -> None:
        """Read one synthetic page of the default mode, so that the first request pays for nothing.

        Raises:
            EngineError: The model cannot read it.
        """
        geometry = self._info.geometry
        plan = plan_views(geometry.global_px, geometry.global_px, geometry.default_mode, geometry)
        ink = np.random.default_rng(0)
        page = PreparedPage(
            plan=plan,
            global_view_HWC=ink.integers(0, 256, (plan.global_px, plan.global_px, 3), np.uint8),
            tiles_THWC=ink.integers(0, 256, (plan.num_tiles, plan.tile_px, plan.tile_px, 3), np.uint8),
        )
        self.submit(SequenceRequest("warm-up", page, prompt_for(Task.FREE), WARM_UP_TOKENS, self._info.model_id))
        while self.has_work:
            for event in self.step():
                if isinstance(event, SequenceFailure):
                    raise EngineError(f"the warm-up page failed: {event.detail}")
        self._steps = 0
        self._batch_sizes.clear()

    def submit(self, request: SequenceRequest) -> None:
        """Queue a sequence; one that cannot run is answered with a failure at the next step.

        Args:
            request: The page, its id unlike that of any sequence still here.
        """
        fault = self._find_fault(request)
        if fault:
            self._events.append(fault)
            return
        prompt_ids = self._tokenizer.encode_prompt(request.page.plan, request.prompt)
        room = self._info.max_sequence_tokens - len(prompt_ids)
        max_new_tokens = min(request.max_new_tokens, self._info.max_new_tokens, room)
        if max_new_tokens < 1:
            self._fail(request.sequence_id, "too_many_vision_tokens", f"a prompt of {len(prompt_ids)} tokens")
            return
        self._waiting[request.sequence_id] = PageSequence(
            request=request,
            prompt_ids=prompt_ids,
            answer=Answer(self._tokenizer, max_new_tokens, self._limits.loop_rule),
            stages=Stages(submitted_s=self._clock()),
            cost=PageCost(request.sequence_id, 1 + request.page.plan.num_tiles, len(prompt_ids), max_new_tokens),
        )

    def cancel(self, sequence_id: str) -> None:
        """Forget a sequence and what it had to say; unknown ones are ignored."""
        self._waiting.pop(sequence_id, None)
        sequence = self._active.get(sequence_id)
        if sequence:
            self._leave(sequence)
        self._events = [event for event in self._events if event.sequence_id != sequence_id]

    def step(self) -> list[SequenceEvent]:
        """Admit what fits, encode and prefill a bounded share of it, add one token to every running sequence."""
        self._progress_s = self._clock()
        decision = decide(
            [sequence.cost for sequence in self._waiting.values()],
            [
                ActivePage(sequence.cost, len(sequence.encoded_views), sequence.row is not None)
                for sequence in self._active.values()
            ],
            self._schedule,
        )
        self._admit(decision)
        self._encode(decision)
        self._prefill([self._active[name] for name in decision.prefill])
        self._decode()
        self._steps += 1
        events, self._events = self._events, []
        return events

    def stats(self) -> EngineStats:
        """Current counts; batch sizes since the last call."""
        batch_sizes = tuple(self._batch_sizes)
        self._batch_sizes.clear()
        return EngineStats(
            state=EngineState.READY,
            waiting=len(self._waiting),
            running=len(self._active),
            steps=self._steps,
            batch_sizes=batch_sizes,
            device_memory_bytes=self._runner.device_memory_bytes(),
            seconds_since_progress=self._clock() - self._progress_s if self.has_work else 0.0,
        )

    def check_integrity(self) -> None:
        """Assert the invariants; for tests and for idle moments."""
        assert len(self._rows) == self._runner.num_rows
        assert [sequence.row for sequence in self._rows] == list(range(len(self._rows)))
        assert {id(sequence) for sequence in self._rows} <= {id(sequence) for sequence in self._active.values()}
        assert not self._waiting.keys() & self._active.keys()

    def _find_fault(self, request: SequenceRequest) -> SequenceFailure | None:
        name, page, plan = request.sequence_id, request.page, request.page.plan
        global_shape = (plan.global_px, plan.global_px, 3)
        tiles_shape = (plan.num_tiles, plan.tile_px, plan.tile_px, 3)
        if name in self._waiting or name in self._active:
            return SequenceFailure(name, "engine_failed", "the id is in use")
        if request.model_id != self._info.model_id:
            return SequenceFailure(name, "model_not_found", f"{request.model_id} is not {self._info.model_id}")
        if page.global_view_HWC.shape != global_shape or page.tiles_THWC.shape != tiles_shape:
            return SequenceFailure(name, "engine_failed", "the views do not have the sizes of their plan")
        return None

    def _admit(self, decision: Decision) -> None:
        for name in decision.refuse:
            cost = self._waiting.pop(name).cost
            self._fail(name, "too_many_vision_tokens", f"{cost.kv_tokens} tokens never fit into the cache")
        for name in decision.admit:
            sequence = self._waiting.pop(name)
            sequence.stages.admitted_s = self._clock()
            self._active[name] = sequence

    def _encode(self, decision: Decision) -> None:
        if not decision.encode:
            return
        grants = [(self._active[name], count) for name, count in decision.encode]
        encoded = iter(self._runner.encode([view for sequence, count in grants for view in sequence.next_views(count)]))
        for sequence, count in grants:
            sequence.encoded_views += [next(encoded) for _ in range(count)]
            sequence.stages.encoded_s = self._clock()

    def _prefill(self, sequences: list[PageSequence]) -> None:
        if not sequences:
            return
        prompts = [
            Prompt(sequence.prompt_ids, self._runner.assemble(sequence.request.page.plan, sequence.encoded_views))
            for sequence in sequences
        ]
        choices = self._runner.prefill(prompts)
        for sequence in sequences:
            sequence.row = len(self._rows)
            self._rows.append(sequence)
            sequence.encoded_views = []
            sequence.stages.prefilled_s = self._clock()
        self._take(zip(sequences, choices, strict=True))

    def _decode(self) -> None:
        if not self._rows:
            return
        rows = list(self._rows)
        banned = {index: ids for index, sequence in enumerate(rows) if (ids := sequence.answer.banned())}
        choices = self._runner.decode([sequence.answer.newest_token for sequence in rows], banned)
        self._batch_sizes.append(len(rows))
        self._take(zip(rows, choices, strict=True))

    def _take(self, chosen: Iterable[tuple[PageSequence, Choice]]) -> None:
        """Give each sequence its token and report what changed."""
        for sequence, choice in chosen:
            if not choice.is_valid:
                self._leave(sequence)
                self._fail(sequence.sequence_id, "engine_failed", "the model's logits are not numbers")
                continue
            before = sequence.answer.num_tokens
            reason = sequence.answer.push(choice.token, choice.log_probability)
            if reason:
                self._finish(sequence, reason)
                continue
            if sequence.answer.num_tokens <= before:
                # A second attempt: the newest token kept is fed again, so its keys go as well.
                assert sequence.row is not None
                kept = sequence.num_prompt_tokens + sequence.answer.num_tokens - 1
                self._runner.truncate(sequence.row, kept)
            self._report(sequence.sequence_id, sequence.answer.settled_text())

    def _finish(self, sequence: PageSequence, reason: FinishReason) -> None:
        self._leave(sequence)
        self._report(sequence.sequence_id, sequence.answer.finish())
        self._events.append(sequence.result(reason, self._clock()))

    def _leave(self, sequence: PageSequence) -> None:
        """Take a sequence out; the last row moves into the place of its row."""
        del self._active[sequence.sequence_id]
        if sequence.row is None:
            return
        row, sequence.row = sequence.row, None
        self._runner.close_row(row)
        last = self._rows.pop()
        if last is not sequence:
            self._rows[row] = last
            last.row = row

    def _report(self, sequence_id: str, text: str) -> None:
        if text:
            self._events.append(SequenceDelta(sequence_id, text))

    def _fail(self, sequence_id: str, code: str, detail: str) -> None:
        self._events.append(SequenceFailure(sequence_id, code, detail))
