"""Reading prompts: as a CUDA graph if their number of tokens was captured, else kernel by kernel.

Owns the way from new rows to the logits of their last tokens, and which prompts are read to warm up. Choosing
tokens and handling a lack of memory is up to `runner`. Used by the engine's single thread.

Shape letters: R prompts, L tokens of one, I image tokens, H decoder width, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.gpu.decoder import GpuDecoder
from service.engine.gpu.graphs import PromptGraphs
from service.engine.gpu.lora_layers import LoraLevel
from service.engine.gpu.paged_cache import PagedCache, to_device
from service.engine.gpu.prompts import PromptBatch, lay_out
from service.engine.lora.bank import AdapterBank
from service.engine.lora.registry import NO_ADAPTER
from service.engine.runner import NewRow
from shared.deepseek_ocr.protocol import OcrModel

WARM_UP_LENGTHS = ((16,), (276,), (906,), (64,) * 64, (4096,))
"""Prompts whose shapes choose all of the kernels' variants: tiny, short, a full page, many, long."""


class PromptReader:
    """Writes prompts' keys and values into the cache.

    Args:
        model: Names the image token; its decoder is not used.
        decoder: The model's, packed.
        cache: Whose cells prompts go to.
        bank: Adapters; None: there are none. With some, prefills are captured for each level.
        uses_graphs: Whether prefills are captured.

    Attributes:
        graphs: Captured prefills, by LoRA level.
    """

    def __init__(
        self,
        model: OcrModel,
        decoder: GpuDecoder,
        cache: PagedCache,
        *,
        bank: AdapterBank | None,
        uses_graphs: bool,
    ) -> None:
        self._image_id = model.config.image_token_id
        self._hidden_size = model.config.text_config.hidden_size
        self._dtype = model.lm_head.weight.dtype
        self._decoder = decoder
        self._cache = cache
        self._bank = bank
        self._device = cache.tables_SX.device
        self.graphs = [self._graphs(level, uses_graphs) for level in LoraLevel.levels(bank)]

    def warm_up(self, pool: Any) -> None:
        """Capture prefills.

        Args:
            pool: Memory that graphs share.
        """
        for graphs in self.graphs:
            graphs.warm_up(pool)

    def rehearse(self, choose: Callable[[Tensor], None]) -> None:
        """Read what `read_usual` and `warm_up` will; for `launch.compiling_ahead`.

        Args:
            choose: Given the logits of each batch of usual prompts.
        """
        self.read_usual(choose)
        for graphs in self.graphs:
            graphs.rehearse()

    def read_usual(self, choose: Callable[[Tensor], None]) -> None:
        """Read prompts whose keys go nowhere, none longer than a sequence may be.

        Args:
            choose: Given the logits of each batch.
        """
        most = self._decoder.max_positions
        for usual, level in itertools.product(WARM_UP_LENGTHS, LoraLevel.levels(self._bank)):
            lengths = [min(length, most) for length in usual]
            nowhere = [np.full(length, -1) for length in lengths]
            prompts = [[0] * length for length in lengths]
            choose(self._launch(prompts, nowhere, [], [NO_ADAPTER] * len(lengths), level))

    def read(self, rows: Sequence[NewRow], cells: Sequence[NDArray[np.int64]]) -> Tensor:
        """Read prompts of any number and length.

        Args:
            rows: With as many feature vectors as image tokens.
            cells: Where each one's keys and values go.

        Returns:
            Logits of their last tokens, `[R, V]`.
        """
        for row in rows:
            assert row.prompt_ids.count(self._image_id) == len(row.features_LD)
        prompts = [row.prompt_ids for row in rows]
        features = [row.features_LD for row in rows if len(row.features_LD)]
        adapters = [row.adapter for row in rows]
        level = LoraLevel.of(self._bank, adapters)
        graphs = self.graphs[level]
        if graphs.takes(prompts):
            return graphs.run(prompts, cells, features, adapters)
        return self._launch(prompts, cells, features, adapters, level)

    def _graphs(self, level: LoraLevel, is_captured: bool) -> PromptGraphs:
        return PromptGraphs(
            lambda batch: self._prefill(batch, level),
            image_id=self._image_id,
            hidden_size=self._hidden_size,
            device=self._device,
            dtype=self._dtype,
            is_captured=is_captured,
            has_adapters=level > LoraLevel.NOTHING,
        )

    def _launch(
        self,
        prompts: Sequence[Sequence[int]],
        cells: Sequence[NDArray[np.int64]],
        features: Sequence[Tensor],
        adapters: Sequence[int],
        level: LoraLevel,
    ) -> Tensor:
        """Launch kernel by kernel: `[R, V]`."""
        named = adapters if level else None
        numbers = to_device(lay_out(prompts, cells, self._image_id, adapters=named), self._device)
        none_IH = torch.zeros(1, self._hidden_size, dtype=self._dtype)
        features_IH = torch.cat(list(features)) if features else none_IH.to(self._device)
        lengths = [len(ids) for ids in prompts]
        batch = PromptBatch.unpack(
            numbers, sum(lengths), len(prompts), features_IH, max(lengths), has_adapters=bool(level)
        )
        return self._prefill(batch, level)

    def _prefill(self, batch: PromptBatch, level: LoraLevel) -> Tensor:
        return self._decoder.prefill(batch, self._cache, self._bank, has_experts=level is LoraLevel.EXPERTS)
