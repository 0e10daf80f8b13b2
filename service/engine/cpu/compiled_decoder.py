"""A small model's decoder for canvases, one token or several for every row, where the library was built.

Owns embeddings, positions and how many tokens are drafted; `compiled_step` calls the library. Keys and values are
bfloat16. Used by the engine's single thread.

Shape letters: B rows, T tokens of all rows, H hidden width, P positions, D head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from service.engine.cpu.compiled_step import CompiledStep, can_compile, language_head, load
from service.engine.cpu.kv_cache import DecodeWindow, SeveralWindow
from service.engine.cpu.layer_weights import join_layers
from service.engine.cpu.loaded_library import NoLibraryError
from service.engine.cpu.packed_decoder import can_pack, signed_rotary_tables
from service.engine.cpu.packed_weights import pack
from shared.deepseek_ocr.answer_window import answer_window
from shared.deepseek_ocr.draft_head import DraftHead
from shared.deepseek_ocr.protocol import OcrModel

MOST_DRAFTS, FEW_DRAFTING_ROWS, FEW_DRAFTING_ROWS_BY_BYTES = 2, 2, 16
"""Tokens that a step feeds with a row's newest, where a head drafts them: as many for so few rows, one for more. A step
of few tokens is bound by reading weights, one of more by its sums, so that a further draft has to be accepted more
often to pay (`benchmarks/engine_settings.py drafts`). By bytes a token's sums cost little, so more rows get as many."""


class CompiledDecoder:
    """A copy of a model's decoder in bfloat16, for the library.

    Args:
        model: In float32 on a CPU; later changes of its weights do not reach the copy.
        max_tokens: Positions that may occur.
        draft_head: Drafts tokens; None: there is none.

    Attributes:
        can_draft: Whether `step_several` and `draft` may be called.
        steps: `compiled` and for what, whether by bytes, and how many drafts, for the log.

    Raises:
        NoLibraryError: There is no library, or it does not take such a model; says why.
    """

    def __init__(self, model: OcrModel, max_tokens: int, draft_head: DraftHead | None = None) -> None:
        # A token of a windowed answer does not see all cells before its own.
        if not can_pack(model) or answer_window(model):
            raise NoLibraryError("other shapes")
        decoder = model.decoder
        text, layers = decoder.config, join_layers(model)
        if not can_compile(layers, text.head_dim):
            raise NoLibraryError("other shapes")
        self._embeddings_VH = decoder.embed_tokens.weight.detach()
        head = language_head(self._embeddings_VH, cast("Tensor", decoder.norm.weight), model.lm_head.weight)
        self.can_draft = head is not None and draft_head is not None
        self._step = CompiledStep(load(), layers, text.rms_norm_eps, head, draft_head if head else None)
        self._norm, self._head = decoder.norm, None if head else pack(model.lm_head.weight)
        self._cos_PD, self._sin_PD = signed_rotary_tables(text, max_tokens)
        drafts = f", up to {MOST_DRAFTS} drafts" if self.can_draft else ""
        by_bytes = ", by bytes" if self._step.multiplies_bytes else ""
        self.steps = f"compiled for {self._step.build}{by_bytes}{drafts}"

    def step(self, tokens: Sequence[int], window: DecodeWindow) -> Tensor:
        """Feed one token a row.

        Args:
            tokens: Ids, one for each row.
            window: The cache's window for this step.

        Returns:
            Logits, `[B, V]`, float32.
        """
        positions_B = window.position_ids_B1[:, 0]
        return self._run(tokens, positions_B, window.storage, window.cells, [1] * len(tokens))[1]

    def step_several(self, tokens: Sequence[Sequence[int]], window: SeveralWindow) -> tuple[Tensor, Tensor]:
        """Feed one token a row or more; only where `can_draft`.

        Args:
            tokens: Ids for each row, as many as the window has room for.
            window: The cache's window for this step.

        Returns:
            What the language head reads, `[T, H]`, and logits, `[T, V]`, float32, row by row; each token's are, bit for
            bit, those of `step`.
        """
        assert [len(each) for each in tokens] == list(window.counts)
        joined = [token for each in tokens for token in each]
        return self._run(joined, torch.tensor(window.positions), window.storage, window.cells, window.counts)

    def drafts_for(self, rows: int) -> int:
        """Tokens that are worth drafting for each of so many rows."""
        few = FEW_DRAFTING_ROWS_BY_BYTES if self._step.multiplies_bytes else FEW_DRAFTING_ROWS
        return MOST_DRAFTS if rows <= few else 1

    def draft(self, states_BH: Tensor, newest: Sequence[int], count: int) -> list[list[int]]:
        """Propose tokens; see `CompiledStep.draft`."""
        return self._step.draft(states_BH, newest, count)

    def _run(
        self, tokens: Sequence[int], positions_T: Tensor, storage: Tensor, cells: Sequence[int], counts: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        x_TH = self._embeddings_VH[torch.tensor(tokens)]
        cos_TD, sin_TD = self._cos_PD[positions_T], self._sin_PD[positions_T]
        states_TH, logits_TV = self._step.run(x_TH, cos_TD, sin_TD, storage, cells, counts)
        return (states_TH, self._head.product(self._norm(x_TH))) if self._head else (states_TH, logits_TV)
