"""Decoders whose answer tokens see the whole prompt, but only a window of the answer: which have one, and their mask.

The mask is for callers whose caches keep every token, such as `generate`; the engine's caches keep little more than the
window.

Shape letters: L new tokens, S tokens attended to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from shared.deepseek_ocr.protocol import OcrModel


def answer_window(model: OcrModel) -> int | None:
    """Answer tokens that a token of a model's answer sees, itself included; None: all."""
    window: int | None = getattr(model.config.text_config, "answer_window", None)
    return window


def window_mask(num_seen: int, num_new: int, prompt_tokens: int, window: int, device: torch.device | str) -> Tensor:
    """Where new tokens may look.

    Args:
        num_seen: tokens in the cache.
        num_new: L, tokens after them.
        prompt_tokens: of the sequence, images included.
        window: answer tokens that a token of the answer sees, itself included.
        device: of the result.

    Returns:
        Bool, `[1, 1, L, S]`, True where attention is allowed; S is `num_seen + num_new`.
    """
    keys_S = torch.arange(num_seen + num_new, device=device)
    queries_L1 = keys_S[num_seen:, None]
    is_near_LS = (keys_S < prompt_tokens) | (keys_S > queries_L1 - window)
    return ((keys_S <= queries_L1) & is_near_LS)[None, None]
