"""Products of the vision encoders in FP8, and Triton kernels that write their inputs: norms and activations.

A row's scale needs the whole row, so one program holds whole rows; the numbers are written once, in 8 bits. Signatures
and meaning are those of `kernels.reference.vision`. The norms take the result of the product before, which cuBLAS could
not add to the stream itself in FP8, and add it while they read the stream.

Shape letters: T tokens, C channels, O output channels.
"""

# ruff: noqa: ANN001, ANN202 - arguments of kernels are pointers and numbers of the language's own
# mypy: disable-error-code="no-untyped-def, import-not-found"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.engine.kernels.fp8_rows import FP8, FP8_HIGHEST, FP8_LEAST_ROW, Fp8Rows
from service.engine.kernels.triton.launch import launch

NORM_ROWS, NORM_WARPS = 4, 4
"""Tokens and warps of one program of a norm."""
ACTIVATION_ROWS, ACTIVATION_WARPS = 1, 4
"""Tokens and warps of one program of an activation. Not tuned yet."""

GELU, QUICK_GELU, GATED = 0, 1, 2


@triton.jit
def _binary_sigmoid(x):
    # 1 / (1 + 2^-x), of nothing that would overflow.
    return 1.0 / (1.0 + tl.exp2(tl.minimum(-x, 100.0)))


@triton.jit
def _store_rows(y, scale, t, c, tokens, values, CHANNELS: tl.constexpr, HIGHEST: tl.constexpr, LEAST: tl.constexpr):
    highest = tl.maximum(tl.max(tl.abs(values), axis=1), LEAST)
    levels = values * (HIGHEST / highest)[:, None]
    mask = (t < tokens)[:, None] & (c < CHANNELS)[None, :]
    tl.store(y + t.to(tl.int64)[:, None] * CHANNELS + c[None, :], levels.to(y.dtype.element_ty), mask=mask)
    tl.store(scale + t, highest / HIGHEST, mask=t < tokens)


@triton.jit(do_not_specialize=["tokens"])
def _norm_kernel(
    x_TC, added_TC, shift_C, weight_C, bias_C, y_TC, scale_T, tokens, eps,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr, ADDED: tl.constexpr, SHIFTED: tl.constexpr,
    CENTRED: tl.constexpr, HIGHEST: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK_C)
    real = c < CHANNELS
    mask = (t < tokens)[:, None] & real[None, :]
    offsets = t.to(tl.int64)[:, None] * CHANNELS + c[None, :]
    x = tl.load(x_TC + offsets, mask=mask, other=0.0).to(tl.float32)
    if ADDED:
        x += tl.load(added_TC + offsets, mask=mask, other=0.0).to(tl.float32)
        stored = x.to(x_TC.dtype.element_ty)
        tl.store(x_TC + offsets, stored, mask=mask)
        x = stored.to(tl.float32)
    if SHIFTED:
        x += tl.load(shift_C + c, mask=real, other=0.0)[None, :]
    if CENTRED:
        x = tl.where(real[None, :], x - (tl.sum(x, axis=1) / CHANNELS)[:, None], 0.0)
    y = x * tl.rsqrt(tl.sum(x * x, axis=1) / CHANNELS + eps)[:, None]
    y *= tl.load(weight_C + c, mask=real, other=0.0).to(tl.float32)[None, :]
    if CENTRED:
        y += tl.load(bias_C + c, mask=real, other=0.0).to(tl.float32)[None, :]
    _store_rows(y_TC, scale_T, t, c, tokens, y, CHANNELS, HIGHEST, LEAST)


@triton.jit(do_not_specialize=["tokens"])
def _activation_kernel(
    x_TO, bias_O, y_TC, scale_T, tokens,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr, BIASED: tl.constexpr, KIND: tl.constexpr,
    HIGHEST: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK_C)
    real = c < CHANNELS
    mask = (t < tokens)[:, None] & real[None, :]
    # Gates and ups of a token lie next to each other.
    width: tl.constexpr = 2 * CHANNELS if KIND == 2 else CHANNELS
    offsets = t.to(tl.int64)[:, None] * width + c[None, :]
    x = tl.load(x_TO + offsets, mask=mask, other=0.0).to(tl.float32)
    if BIASED:
        x += tl.load(bias_O + c, mask=real, other=0.0).to(tl.float32)[None, :]
    if KIND == 0:
        # By tanh, as the product of `vision_linear`: x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3)).
        y = x * _binary_sigmoid((x + 0.044715 * x * x * x) * 2.302208198251775)
    elif KIND == 1:
        y = x * _binary_sigmoid(x * 2.455466749571777)  # 1.702 / ln 2
    else:
        up = tl.load(x_TO + offsets + CHANNELS, mask=mask, other=0.0).to(tl.float32)
        y = x * _binary_sigmoid(x * 1.4426950408889634) * up
    _store_rows(y_TC, scale_T, t, c, tokens, y, CHANNELS, HIGHEST, LEAST)


def layer_norm_fp8(
    x_TC: Tensor, added_TC: Tensor | None, shift_C: Tensor | None, weight_C: Tensor, bias_C: Tensor, eps: float
) -> Fp8Rows:
    """See `kernels.reference.vision.layer_norm_fp8`; contiguous."""
    return _normed(x_TC, added_TC, shift_C, weight_C, bias_C, eps)


def rms_norm_fp8(x_TC: Tensor, added_TC: Tensor | None, weight_C: Tensor, eps: float) -> Fp8Rows:
    """See `kernels.reference.vision.rms_norm_fp8`; contiguous."""
    return _normed(x_TC, added_TC, None, weight_C, None, eps)


def gelu_fp8(x_TC: Tensor, bias_C: Tensor) -> Fp8Rows:
    """See `kernels.reference.vision.gelu_fp8`; contiguous. By tanh, see `vision_linear.linear_gelu`."""
    return _activated(x_TC, bias_C, x_TC.shape[1], GELU)


def quick_gelu_fp8(x_TC: Tensor, bias_C: Tensor) -> Fp8Rows:
    """See `kernels.reference.vision.quick_gelu_fp8`; contiguous."""
    return _activated(x_TC, bias_C, x_TC.shape[1], QUICK_GELU)


def gated_fp8(joined_TO: Tensor) -> Fp8Rows:
    """See `kernels.reference.vision.gated_fp8`; contiguous."""
    return _activated(joined_TO, None, joined_TO.shape[1] // 2, GATED)


def linear_fp8(x: Fp8Rows, weight: Fp8Rows, bias_O: Tensor | None, dtype: torch.dtype) -> Tensor:
    """See `kernels.reference.vision.linear_fp8`; bfloat16 alone."""
    return torch._scaled_mm(
        x.values,
        weight.values.t(),
        scale_a=x.scale.unsqueeze(1),
        scale_b=weight.scale.unsqueeze(0),
        bias=bias_O,
        out_dtype=dtype,
        use_fast_accum=True,
    )


def _empty_rows(tokens: int, channels: int, like: Tensor) -> Fp8Rows:
    values_TC = torch.empty(tokens, channels, dtype=FP8, device=like.device)
    return Fp8Rows(values_TC, torch.empty(tokens, dtype=torch.float32, device=like.device))


def _normed(
    x_TC: Tensor,
    added_TC: Tensor | None,
    shift_C: Tensor | None,
    weight_C: Tensor,
    bias_C: Tensor | None,
    eps: float,
) -> Fp8Rows:
    tokens, channels = x_TC.shape
    assert x_TC.is_contiguous()
    assert added_TC is None or (added_TC.is_contiguous() and added_TC.shape == x_TC.shape)
    rows = _empty_rows(tokens, channels, x_TC)
    launch(
        _norm_kernel,
        (triton.cdiv(tokens, NORM_ROWS),),
        x_TC,
        added_TC,
        shift_C,
        weight_C,
        bias_C,
        rows.values,
        rows.scale,
        tokens,
        eps,
        CHANNELS=channels,
        BLOCK_C=triton.next_power_of_2(channels),
        ROWS=NORM_ROWS,
        ADDED=added_TC is not None,
        SHIFTED=shift_C is not None,
        CENTRED=bias_C is not None,
        HIGHEST=FP8_HIGHEST,
        LEAST=FP8_LEAST_ROW,
        num_warps=NORM_WARPS,
    )
    return rows


def _activated(x_TO: Tensor, bias_O: Tensor | None, channels: int, kind: int) -> Fp8Rows:
    tokens = x_TO.shape[0]
    assert x_TO.is_contiguous()
    rows = _empty_rows(tokens, channels, x_TO)
    launch(
        _activation_kernel,
        (triton.cdiv(tokens, ACTIVATION_ROWS),),
        x_TO,
        bias_O,
        rows.values,
        rows.scale,
        tokens,
        CHANNELS=channels,
        BLOCK_C=triton.next_power_of_2(channels),
        ROWS=ACTIVATION_ROWS,
        BIASED=bias_O is not None,
        KIND=kind,
        HIGHEST=FP8_HIGHEST,
        LEAST=FP8_LEAST_ROW,
        num_warps=ACTIVATION_WARPS,
    )
    return rows
