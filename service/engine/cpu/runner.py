"""The runner in plain torch: maps slots to `ModelRunner`'s rows and detects ends and loops on the host.

Keeps for each slot what the sampler keeps on a GPU: newest token, loop detector, guard of the second attempt, sampling
parameters. For CPUs, and for decoders that the GPU path does not know. Every call finishes its work before it returns.
Used by the engine's single thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from service.engine.cpu.model_runner import Choice, ModelRunner, Prompt
from service.engine.lora.bank import PackedAdapter
from service.engine.lora.files import AdapterFiles
from service.engine.lora.registry import NO_ADAPTER
from service.engine.protocol import SamplingParams
from service.engine.repetition import LoopDetector, LoopRule, RepetitionGuard
from service.engine.runner import NewRow, StepOutput, TokenStatus, View
from service.engine.sampling import Draw
from shared.deepseek_ocr.forms import PageImage, PageViews, PreparedPage
from shared.deepseek_ocr.geometry import GeometryConfig, ViewPlan
from shared.deepseek_ocr.images import prepare_views


@dataclass(slots=True)
class _SlotState:
    """A slot's answer: its tokens, and where the second attempt begins among them."""

    num_prompt_tokens: int
    params: SamplingParams
    detector: LoopDetector
    tokens: list[int] = field(default_factory=list)
    restart: int = 0
    guard: RepetitionGuard | None = None
    adapter: int = NO_ADAPTER

    def draw(self) -> Draw | None:
        """How the next token is chosen; None: greedily."""
        params = self.params
        return Draw(params.temperature, params.seed or 0, len(self.tokens)) if params.temperature > 0 else None

    def push(self, token: int, eos_id: int) -> tuple[TokenStatus, int]:
        """Take a token and return its status and argument, as in `StepOutput`."""
        if token == eos_id:
            return TokenStatus.STOP, 0
        self.tokens.append(token)
        if self.guard:
            self.guard.push(token)
        keep = self.detector.push(token)
        if keep is not None:
            return TokenStatus.LOOP, self.restart + keep
        count = len(self.tokens)
        status = TokenStatus.LENGTH if count >= self.params.max_new_tokens else TokenStatus.RUN
        return status, count - self.restart - self.detector.num_settled


class CpuRunner:
    """Implements `runner.Runner`.

    Invariant: row i of the model's runner belongs to slot `_slots[i]`, and `_states` has exactly those slots.

    Args:
        model_runner: The model, with a row for each slot.
        eos_id: The token that ends an answer.
        rule: What counts as a loop.
        kv_tokens: What all rows hold together.
    """

    depth = 0
    prepares_views = False
    block_tokens = 1

    def __init__(self, model_runner: ModelRunner, *, eos_id: int, rule: LoopRule, kv_tokens: int) -> None:
        self._model_runner = model_runner
        self._eos_id = eos_id
        self._rule = rule
        self._kv_tokens = kv_tokens
        self._slots: list[int] = []
        self._states: dict[int, _SlotState] = {}
        self._pending: deque[StepOutput] = deque()

    @property
    def kv_tokens(self) -> int:
        """Key and value tokens that all slots hold together."""
        return self._kv_tokens

    def warm_up(self) -> None:
        """Nothing to prepare."""

    def prepare(self, page: PreparedPage, geometry: GeometryConfig) -> Sequence[NDArray[np.uint8]]:
        """All views of a page on the host; those of an image are made by Pillow."""
        if isinstance(page, PageImage):
            page = PageViews(page.plan, *prepare_views(Image.fromarray(page.image_HWC), page.plan, geometry))
        return [page.global_view_HWC, *page.tiles_THWC]

    def encode(self, views: Sequence[View]) -> list[Tensor]:
        """See `ModelRunner.encode`."""
        return self._model_runner.encode([np.asarray(view) for view in views])

    def assemble(self, plan: ViewPlan, tokens: Sequence[Tensor]) -> Tensor:
        """See `ModelRunner.assemble`."""
        return self._model_runner.assemble(plan, tokens)

    def open(self, rows: Sequence[NewRow]) -> None:
        """Read prompts into free slots and choose their first tokens."""
        prompts = []
        for row in rows:
            assert row.slot not in self._states
            state = _SlotState(len(row.prompt_ids), row.params, LoopDetector(self._rule), adapter=row.adapter)
            self._slots.append(row.slot)
            self._states[row.slot] = state
            prompts.append(Prompt(row.prompt_ids, row.features_LD, row.adapter, state.draw()))
        choices = self._model_runner.prefill(prompts)
        self._report([row.slot for row in rows], choices)

    def launch(self, slots: Sequence[int]) -> None:
        """Choose one more token for these slots, which must be all open slots."""
        assert len(slots) == len(self._slots)
        rows = [self._states[slot] for slot in self._slots]
        banned = {index: ids for index, row in enumerate(rows) if row.guard and (ids := row.guard.banned())}
        draws = {index: draw for index, row in enumerate(rows) if (draw := row.draw())}
        newest, adapters = [row.tokens[-1] for row in rows], [row.adapter for row in rows]
        choices = self._model_runner.decode(newest, banned, adapters, draws)
        choice_of = dict(zip(self._slots, choices, strict=True))
        self._report(slots, [choice_of[slot] for slot in slots])

    def collect(self) -> StepOutput | None:
        """Take the oldest output."""
        return self._pending.popleft() if self._pending else None

    def rewind(self, slot: int, *, kept: int, newest_token: int, forbidden: int) -> None:
        """Begin the second attempt of an answer whose report said LOOP."""
        state = self._states[slot]
        del state.tokens[kept:]
        assert state.tokens[-1] == newest_token
        # The newest token kept is fed again, so its keys go as well.
        self._model_runner.truncate(self._slots.index(slot), state.num_prompt_tokens + kept - 1)
        state.restart = kept
        state.detector = LoopDetector(self._rule)
        state.guard = RepetitionGuard(state.tokens, forbidden)

    def close(self, slot: int) -> None:
        """Free a slot; the last row moves into the place of its row."""
        row = self._slots.index(slot)
        self._model_runner.close_row(row)
        self._slots[row] = self._slots[-1]
        self._slots.pop()
        del self._states[slot]

    def pack_adapter(self, files: AdapterFiles) -> PackedAdapter:
        """See `runner.Runner`."""
        return self._model_runner.pack_adapter(files)

    def load_adapter(self, adapter: int, packed: PackedAdapter) -> None:
        """See `runner.Runner`."""
        assert all(state.adapter != adapter for state in self._states.values())
        self._model_runner.load_adapter(adapter, packed)

    def device_memory_bytes(self) -> int:
        """Memory that tensors hold on the device; 0 on a CPU."""
        return self._model_runner.device_memory_bytes()

    def check_integrity(self) -> None:
        """Assert the invariants; for tests."""
        assert len(self._slots) == self._model_runner.num_rows
        assert set(self._slots) == self._states.keys()

    def _report(self, slots: Sequence[int], choices: Sequence[Choice]) -> None:
        report = StepOutput()
        for slot, choice in zip(slots, choices, strict=True):
            status, argument = (
                self._states[slot].push(choice.token, self._eos_id) if choice.is_valid else (TokenStatus.FAULT, 0)
            )
            report.tokens.append(choice.token)
            report.log_probabilities.append(choice.log_probability)
            report.statuses.append(status)
            report.arguments.append(argument)
        self._pending.append(report)
