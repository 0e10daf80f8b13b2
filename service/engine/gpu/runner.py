"""The runner of CUDA devices: everything is enqueued, one small copy a step comes back.

Owns the device's side of all slots: encoder, decoder, cache, answers' state, captured steps; `prefill` reads prompts.
Implements `runner.Runner`; knows no sequences. Runs on a CPU too, where tests use it with plain kernels. Used by the
engine's single thread, on one stream.

Shape letters: B rows, T tokens of all prompts, R prompts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from service.engine.answer_ring import AnswerRing
from service.engine.gpu.decoder import GpuDecoder
from service.engine.gpu.graphs import StepGraphs
from service.engine.gpu.lora_layers import LoraLevel
from service.engine.gpu.paged_cache import PagedCache, to_device
from service.engine.gpu.prefill import PromptReader
from service.engine.gpu.reports import ReportPart, Reports
from service.engine.gpu.state import AnswerState
from service.engine.lora.bank import AdapterBank, PackedAdapter, pack_adapter
from service.engine.lora.files import AdapterFiles
from service.engine.runner import DeviceFullError, NewRow, StepOutput, View
from service.engine.vision.preparation import Preparation
from service.engine.vision.runner import GpuVision
from shared.contract.answer import TokenStatus
from shared.contract.processors import usable_processors
from shared.contract.repetition import LoopRule
from shared.deepseek_ocr.forms import PreparedPage
from shared.deepseek_ocr.geometry import GeometryConfig, ViewPlan
from shared.deepseek_ocr.pages import assemble_pages
from shared.deepseek_ocr.protocol import OcrModel

MAX_COMPILING_THREADS = 16
"""8, 16 and 32 threads compile in 11.4, 11.0 and 11.1 s (H200 with 32 cores, 558e320, `engine_settings.py start`)."""

_log = logging.getLogger(__name__)


class GpuRunner:
    """Implements `runner.Runner`.

    Invariant: a slot that is not open is done in the state, so that no step touches the cache for it.

    Args:
        model: Encodes and assembles; its decoder is not used.
        decoder: The model's, packed.
        vision: Encodes views.
        cache: With as many slots as can be open.
        state: Of as many slots.
        kernels: `kernels.fused`, or `kernels.reference` where there is no GPU.
        rule: What counts as a loop.
        view_sizes_px: Views that will come, for `warm_up`.
        uses_graphs: Whether steps are captured.
        ring: The decoder's.
        bank: Adapters, made with `splits_shared`; None: there are none. With one, all graphs are captured twice, and a
            third time where adapters may change routed experts: a step does what its rows' adapters need, and steps
            in which no row has one are what they would be without a bank.
    """

    depth = 1
    prepares_views = True
    skips_padding = False
    steps = ""
    canvases = ""

    def __init__(
        self,
        model: OcrModel,
        *,
        decoder: GpuDecoder,
        vision: GpuVision,
        cache: PagedCache,
        state: AnswerState,
        kernels: Any,
        rule: LoopRule,
        view_sizes_px: Sequence[int] = (),
        uses_graphs: bool = True,
        ring: AnswerRing | None = None,
        bank: AdapterBank | None = None,
    ) -> None:
        self._model = model
        self._ring = ring
        self._decoder = decoder
        self._vision = vision
        self._cache = cache
        self._state = state
        self._kernels = kernels
        self._rule = rule
        self._view_sizes_px = view_sizes_px
        self._device = cache.tables_SX.device
        self._preparation = Preparation(self._device)
        self._prompt_tokens: dict[int, int] = {}
        """Of the slots that are open."""
        self._bank = bank
        self._adapters: dict[int, int] = {}
        """Of the slots that are open and have one."""
        self._num_alternatives: dict[int, int] = {}
        """Of the slots that are open and are asked for some."""
        self._reports = Reports(self._device)
        self._prompts = PromptReader(model, decoder, cache, bank=bank, uses_graphs=uses_graphs)
        self._steps = [self._step_graphs(level, uses_graphs) for level in LoraLevel.levels(bank)]

    @property
    def kv_tokens(self) -> int:
        """Key and value tokens that all slots hold together."""
        return self._cache.num_tokens

    @property
    def block_tokens(self) -> int:
        """Tokens of a block of the cache."""
        return self._cache.block_tokens

    @property
    def kept_answer_tokens(self) -> int | None:
        """Newest answer tokens whose keys a slot keeps; None: all."""
        return self._ring.cells if self._ring else None

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compile kernels and capture graphs; on a CPU there is nothing to do."""
        if self._device.type != "cuda":
            return
        began_s = time.monotonic()
        self._compile()
        compiled_s = time.monotonic()
        self._vision.warm_up(self._view_sizes_px)
        self._preparation.warm_up()
        vision_s = time.monotonic()
        self._prompts.read_usual(self._choose_nowhere)
        torch.cuda.synchronize(self._device)
        prefill_s = time.monotonic()
        pool = torch.cuda.graph_pool_handle()
        for steps in self._steps:
            steps.warm_up(pool)
        steps_s = time.monotonic()
        self._prompts.warm_up(pool)
        # What compiling and trying took is given back, what graphs hold is not.
        torch.cuda.empty_cache()
        _log.info(
            "warmed up: compiling %.1f s, encoder %.1f s, prefills %.1f s, captured: steps %.1f s, prefills %.1f s",
            compiled_s - began_s,
            vision_s - compiled_s,
            prefill_s - vision_s,
            steps_s - prefill_s,
            time.monotonic() - steps_s,
        )

    def prepare(self, page: PreparedPage, geometry: GeometryConfig) -> Sequence[View]:
        """Make a page's views on the device; where memory runs out, once again.

        Args:
            page: In either form.
            geometry: The checkpoint's.

        Returns:
            See `Preparation.prepare`.

        Raises:
            DeviceFullError: There is no memory for the page's views.
        """
        try:
            return self._preparation.prepare(page, geometry)
        except torch.cuda.OutOfMemoryError:
            self._make_room("preparing a page of %d views", 1 + page.plan.num_tiles)
        try:
            return self._preparation.prepare(page, geometry)
        except torch.cuda.OutOfMemoryError as error:
            raise DeviceFullError("no memory to prepare a page") from error

    @torch.inference_mode()
    def encode(self, views: Sequence[View]) -> list[Tensor]:
        """Encode views; where memory runs out, in halves.

        Args:
            views: `[px, px, 3]` each.

        Returns:
            `[N, D]` for each, in their order.

        Raises:
            DeviceFullError: Not even one view fits.
        """
        try:
            return self._vision.encode(views)
        except torch.cuda.OutOfMemoryError as error:
            self._make_room("encoding %d views", len(views))
            if len(views) == 1:
                raise DeviceFullError("no memory to encode a view") from error
        half = len(views) // 2
        return self.encode(views[:half]) + self.encode(views[half:])

    @torch.inference_mode()
    def assemble(self, pages: Sequence[tuple[ViewPlan, Sequence[Tensor]]]) -> Tensor:
        """See `runner.Runner`."""
        return assemble_pages(self._model, pages)

    @torch.inference_mode()
    def open(self, rows: Sequence[NewRow]) -> None:
        """Read prompts into free slots and choose their first tokens.

        A prompt for which there is no memory, even alone, is reported as a fault.
        """
        slots = [row.slot for row in rows]
        kept = [min(row.params.max_new_tokens, self.kept_answer_tokens or row.params.max_new_tokens) for row in rows]
        self._cache.open(slots, [len(row.prompt_ids) + count for row, count in zip(rows, kept, strict=True)])
        self._prompt_tokens |= {row.slot: len(row.prompt_ids) for row in rows}
        self._adapters |= {row.slot: row.adapter for row in rows if row.adapter >= 0}
        self._num_alternatives |= {row.slot: row.params.num_alternatives for row in rows if row.params.num_alternatives}
        self._reports.add(self._read(rows))

    @torch.inference_mode()
    def launch(self, slots: Sequence[int]) -> None:
        """Choose one more token for these slots."""
        level = LoraLevel.of(self._bank, (self._adapters[slot] for slot in slots if slot in self._adapters))
        wanted = self._wanted(slots)
        report_BC, logits_BV = self._steps[level].run(slots, wants_logits=bool(wanted))
        self._reports.add([self._reports.to_host(report_BC, logits_BV, wanted)])

    def collect(self) -> StepOutput | None:
        """Wait for the oldest pending report and take it.

        Returns:
            See `Reports.collect`.
        """
        return self._reports.collect()

    @torch.inference_mode()
    def rewind(self, slot: int, *, kept: int, newest_token: int, forbidden: int | None) -> None:
        """See `runner.Runner`."""
        position = self._prompt_tokens[slot] + kept - 1
        self._state.rewind(slot, position=position, kept_tokens=kept, newest_token=newest_token, forbidden=forbidden)

    @torch.inference_mode()
    def close(self, slot: int) -> None:
        """Free a slot; its blocks may be taken at once, as work of their next holder is enqueued after this."""
        self._state.close(slot)
        self._cache.close(slot)
        del self._prompt_tokens[slot]
        self._adapters.pop(slot, None)
        self._num_alternatives.pop(slot, None)

    def pack_adapter(self, files: AdapterFiles) -> PackedAdapter:
        """See `runner.Runner`."""
        return pack_adapter(self._bank, files)

    def load_adapter(self, adapter: int, packed: PackedAdapter) -> None:
        """Put an adapter where no open slot's is; work enqueued before it does not see it.

        Args:
            adapter: Its slot.
            packed: What `pack_adapter` gave.
        """
        assert self._bank is not None
        assert adapter not in self._adapters.values()
        self._bank.load(adapter, packed)

    def device_memory_bytes(self) -> int:
        """Memory that tensors hold on the device; 0 on a CPU."""
        return torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0

    def check_integrity(self) -> None:
        """Assert the invariants; waits for the device, so for tests."""
        self._cache.allocator.check_integrity()
        holders = {slot for slot in range(self._state.scratch_slot) if self._cache.allocator.held(slot)}
        assert holders == self._prompt_tokens.keys()
        assert self._adapters.keys() <= holders
        assert set((~self._state.done_S).nonzero().flatten().tolist()) <= holders

    def _compile(self) -> None:
        """Compile kernels, several at once, so that what warms up finds them compiled."""
        from service.engine.kernels.triton.launch import compiling_ahead  # Triton is not everywhere

        with compiling_ahead(min(MAX_COMPILING_THREADS, usable_processors())):
            self._vision.rehearse(self._view_sizes_px)
            self._preparation.warm_up()
            self._prompts.rehearse(self._choose_nowhere)
            for steps in self._steps:
                steps.rehearse()

    def _choose_nowhere(self, logits_RV: Tensor) -> None:
        """Choose for prompts that no slot reads."""
        slots_R = torch.full((len(logits_RV),), self._state.scratch_slot, dtype=torch.int64, device=self._device)
        self._kernels.choose(logits_RV, slots_R, self._state, self._rule)

    def _step_graphs(self, level: LoraLevel, is_captured: bool) -> StepGraphs:
        return StepGraphs(
            partial(self._step, level),
            max_rows=self._state.scratch_slot,
            scratch_slot=self._state.scratch_slot,
            device=self._device,
            is_captured=is_captured,
        )

    def _step(self, level: LoraLevel, slots_B: Tensor) -> tuple[Tensor, Tensor]:
        bank = self._bank if level else None
        logits_BV = self._decoder.decode(
            slots_B, self._state, self._cache, bank, has_experts=level is LoraLevel.EXPERTS
        )
        report_BC: Tensor = self._kernels.choose(logits_BV, slots_B, self._state, self._rule)
        # A captured step lends its logits as they lie in memory; theirs lie in one piece already.
        return report_BC, logits_BV.contiguous()

    def _wanted(self, slots: Sequence[int]) -> dict[int, int]:
        """How many alternatives rows report, by their index; rows that report none are left out."""
        if not self._num_alternatives:
            return {}
        return {row: self._num_alternatives[slot] for row, slot in enumerate(slots) if slot in self._num_alternatives}

    def _read(self, rows: Sequence[NewRow]) -> list[ReportPart]:
        try:
            return [self._prefill(rows)]
        except torch.cuda.OutOfMemoryError:
            self._make_room("reading %d prompts", len(rows))
        if len(rows) == 1:
            self._state.close(rows[0].slot)
            return [ReportPart(torch.tensor([[0, 0, int(TokenStatus.FAULT), 0]], dtype=torch.int32))]
        half = len(rows) // 2
        return self._read(rows[:half]) + self._read(rows[half:])

    def _prefill(self, rows: Sequence[NewRow]) -> ReportPart:
        """One pass over prompts; the report's rows on their way to the host."""
        slots = [row.slot for row in rows]
        lengths = [len(row.prompt_ids) for row in rows]
        cells = [self._cache.cells(slot, length) for slot, length in zip(slots, lengths, strict=True)]
        logits_RV = self._prompts.read(rows, cells)
        self._state.open(
            slots,
            lengths,
            [row.params.max_new_tokens for row in rows],
            temperatures=[row.params.temperature for row in rows],
            seeds=[row.params.seed or 0 for row in rows],
            adapters=[row.adapter for row in rows],
        )
        slots_R = to_device(np.array(slots), self._device)
        report_RC = self._kernels.choose(logits_RV, slots_R, self._state, self._rule)
        return self._reports.to_host(report_RC, logits_RV, self._wanted(slots))

    def _make_room(self, doing: str, count: int) -> None:
        _log.warning("out of device memory while " + doing + "; trying again with less", count)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
