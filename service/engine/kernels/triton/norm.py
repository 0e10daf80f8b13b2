"""Root-mean-square norms, Triton: one program a token.

Owns `rms_norm` and `add_rms_norm`. Stateless; used by the engine's single thread.

Shape letters: T tokens, H hidden width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.engine.kernels.triton.launch import early, launch, launch_options, let_next_start, wait_for_inputs

_NUM_WARPS = 4
"""1, 64, 256 and 4096 tokens 1.7, 1.6, 2.3 and 7.4 us (1 to 16 warps 1.6 to 2.5, 1.6 to 2.1, 2.4 to 2.7 and 7.6 to
9.5). H200, de9a6fa."""


@triton.jit
def _norm(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    """Grid `[tokens]`."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    scale = tl.load(weight + column, inside, other=0.0)
    wait_for_inputs(EARLY)
    let_next_start(EARLY)
    cell = token * WIDTH + column
    value = tl.load(x + cell, inside, other=0.0)
    if ADD:
        value = (value.to(tl.float32) + tl.load(residual + cell, inside, other=0.0).to(tl.float32)).to(value.dtype)
        tl.store(residual + cell, value, inside)
    wide = value.to(tl.float32)
    normed = (wide * tl.rsqrt(tl.sum(wide * wide) / WIDTH + eps)).to(value.dtype)
    tl.store(out + cell, (scale.to(tl.float32) * normed.to(tl.float32)).to(value.dtype), inside)


def rms_norm(x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """See `reference.rms_norm`."""
    return _launch(x_TH, None, weight_H, eps)


def add_rms_norm(x_TH: Tensor, residual_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """See `reference.add_rms_norm`."""
    return _launch(x_TH, residual_TH, weight_H, eps)


def _launch(x_TH: Tensor, residual_TH: Tensor | None, weight_H: Tensor, eps: float) -> Tensor:
    tokens, width = x_TH.shape
    assert x_TH.is_contiguous()
    assert residual_TH is None or residual_TH.is_contiguous()
    out_TH = torch.empty_like(x_TH)
    is_early = early(x_TH.device, tokens)
    if tokens:
        launch(
            _norm, (tokens,),
            x_TH, residual_TH, weight_H, out_TH, eps,
            WIDTH=width, BLOCK=triton.next_power_of_2(width), ADD=residual_TH is not None, EARLY=is_early,
            **launch_options(_NUM_WARPS, 1, is_early),
        )  # fmt: skip
    return out_TH
