"""The engine's sequences, waiting and running, and the start of a page: admission, encoding, prefill.

Owns the two sets and the slots. The scheduler decides how much of that a step does; tensors are the runner's. Knows
nothing of answers. Used by the engine's single thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from service.engine.protocol import SequenceFailure
from service.engine.runner import DeviceFullError, NewRow, Runner
from service.engine.scheduler import ActivePage, Decision, Limits, PageCost, decide, queue_index
from service.engine.sequence import PageSequence
from shared.deepseek_ocr.geometry import GeometryConfig


class RunningBatch:
    """All sequences between their request and their end.

    Invariant: every sequence is in exactly one of `waiting` and `active`; each slot is free or an active sequence's.

    Args:
        runner: With a slot for each page that can be active.
        schedule: What a step may do.
        geometry: The checkpoint's.
        clock: Monotonic seconds.

    Attributes:
        waiting: By id, in the scheduler's order.
        active: By id, in order of admission.
        may_start: Whether a change since the last step may let a page be admitted, encoded or prefilled.
        has_started_work: Whether the last `start` admitted, encoded, prefilled or failed a page.
    """

    def __init__(self, runner: Runner, schedule: Limits, geometry: GeometryConfig, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._schedule = schedule
        self._geometry = geometry
        self._clock = clock
        self.waiting: dict[str, PageSequence] = {}
        self.active: dict[str, PageSequence] = {}
        self.may_start = False
        self.has_started_work = False
        self._free_slots = list(reversed(range(schedule.slots)))
        self._failures: list[SequenceFailure] = []

    def __contains__(self, name: str) -> bool:
        """Whether a sequence of that id waits or is active."""
        return name in self.waiting or name in self.active

    @property
    def adapters_in_use(self) -> set[int]:
        """Adapters of all pages."""
        return {sequence.adapter for sequence in (*self.waiting.values(), *self.active.values())}

    def refusal(self, cost: PageCost) -> SequenceFailure | None:
        """Why a page can never run; None: it can."""
        if self._schedule.can_hold(cost):
            return None
        detail = f"{cost.kv_tokens} tokens never fit into the cache"
        return SequenceFailure(cost.sequence_id, "too_many_vision_tokens", detail)

    def add(self, sequence: PageSequence) -> None:
        """Queue a page."""
        entry = {sequence.sequence_id: sequence}
        index = queue_index((each.cost for each in self.waiting.values()), sequence.cost)
        if index is None:
            self.waiting |= entry
        else:
            waiting = list(self.waiting.items())
            self.waiting = {**dict(waiting[:index]), **entry, **dict(waiting[index:])}
        self.may_start = True

    def drop(self, name: str) -> None:
        """Forget a page, if there is one of that id."""
        self.may_start |= self.waiting.pop(name, None) is not None
        sequence = self.active.get(name)
        if sequence:
            self.leave(sequence)

    def leave(self, sequence: PageSequence) -> None:
        """Take an active page out; pending outputs for its slot are ignored."""
        del self.active[sequence.sequence_id]
        self.may_start = True
        sequence.epoch += 1
        if sequence.slot is not None:
            self._runner.close(sequence.slot)
            self._free_slots.append(sequence.slot)
            sequence.slot = None

    def start(self) -> tuple[list[PageSequence], list[SequenceFailure]]:
        """Admit what fits, encode and prefill a bounded share of it.

        Returns:
            The pages whose prompts are being read, in the order of the runner's next output, and those that failed.
        """
        self.may_start = False
        active = [
            ActivePage(sequence.cost, len(sequence.encoded_views), sequence.slot is not None)
            for sequence in self.active.values()
        ]
        decision = decide((sequence.cost for sequence in self.waiting.values()), active, self._schedule)
        self._admit(decision)
        self._encode(decision)
        opened = [self.active[name] for name in decision.prefill if name in self.active]
        self._open(opened)
        # Waiting pages cannot start before another one leaves.
        self.may_start |= any(sequence.slot is None for sequence in self.active.values())
        failures, self._failures = self._failures, []
        self.has_started_work = bool(decision.admit or decision.encode or opened or failures)
        return opened, failures

    def check_integrity(self) -> None:
        """Assert the invariants; for tests."""
        taken = [sequence.slot for sequence in self.active.values() if sequence.slot is not None]
        assert sorted([*taken, *self._free_slots]) == list(range(self._schedule.slots))
        assert not self.waiting.keys() & self.active.keys()
        assert sum(sequence.cost.kv_tokens for sequence in self.active.values()) <= self._schedule.kv_tokens

    def _admit(self, decision: Decision) -> None:
        for name in decision.admit:
            sequence = self.waiting.pop(name)
            sequence.stages.admitted_s = sequence.stages.encoded_s = self._clock()
            self.active[name] = sequence

    def _encode(self, decision: Decision) -> None:
        grants = [(self.active[name], count) for name, count in decision.encode if self._prepare(self.active[name])]
        if not grants:
            return
        try:
            encoded = self._runner.encode([view for sequence, count in grants for view in sequence.next_views(count)])
        except DeviceFullError as error:
            for sequence, _ in grants:
                self._fail(sequence, error)
            return
        now_s, tokens = self._clock(), iter(encoded)
        for sequence, count in grants:
            sequence.encoded_views += [next(tokens) for _ in range(count)]
            sequence.stages.encoded_s = now_s
            if len(sequence.encoded_views) == sequence.cost.num_views:
                sequence.drop_pixels()

    def _prepare(self, sequence: PageSequence) -> bool:
        """Make a page's views; False if there is no memory for them and the page has failed."""
        if sequence.views is None:
            assert sequence.pages
            try:
                prepared = [self._runner.prepare(page, self._geometry) for page in sequence.pages]
                sequence.views = [view for views in prepared for view in views]
            except DeviceFullError as error:
                self._fail(sequence, error)
                return False
        return True

    def _open(self, sequences: list[PageSequence]) -> None:
        if not sequences:
            return
        rows = []
        for sequence in sequences:
            features = self._features_of(sequence)
            sequence.encoded_views = []
            sequence.slot = self._free_slots.pop()
            sequence.num_launched = 1
            rows.append(
                NewRow(
                    sequence.slot,
                    sequence.prompt_ids,
                    features,
                    sequence.params,
                    sequence.adapter,
                )
            )
        self._runner.open(rows)

    def _features_of(self, sequence: PageSequence) -> Any:
        """One vector for each image token of the prompt."""
        if sequence.cost.num_views:
            features_LD = self._runner.assemble(sequence.encoded_pages())
            if sequence.canary:
                sequence.canary.features_LD = features_LD
            return features_LD
        assert sequence.canary
        return sequence.canary.features_LD

    def _fail(self, sequence: PageSequence, error: DeviceFullError) -> None:
        self.leave(sequence)
        self._failures.append(SequenceFailure(sequence.sequence_id, "engine_failed", str(error)))
