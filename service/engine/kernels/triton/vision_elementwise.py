"""Triton kernels of the vision encoder that only move memory: layer norm, an activation in place, patches of pixels.

Each reads its input once and writes its output once; nothing here is bound by arithmetic. Signatures and meaning are
those of `kernels.reference.vision`.

Shape letters: T tokens, C channels, V views, P pixels.
"""

# ruff: noqa: ANN001, ANN202 - arguments of kernels are pointers and numbers of the language's own
# mypy: disable-error-code="no-untyped-def, import-not-found"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.engine.kernels.triton.launch import launch

NORM_ROWS = 4
"""Tokens of one program of the norm. 1600 and 65,536 patches 6.1 and 55 us (1 to 16: 6.1 to 9.6 and 58 to 75). H200,
de9a6fa."""
FLAT_BLOCK = 2048
"""Elements of one program of an activation. 65,536 patches 192 us (4096: 201; 512: 310). H200, de9a6fa."""
PATCH_ROWS = 2
"""Patches of one program. A view of 640 px and 16 of 1024 px 4.7 and 82 us (8: 7.5 and 123). H200, de9a6fa."""


@triton.jit(do_not_specialize=["tokens"])
def _layer_norm_kernel(
    x_TC, shift_C, weight_C, bias_C, y_TC, tokens, eps,
    CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK_C)
    real = c < CHANNELS
    mask = (t < tokens)[:, None] & real[None, :]
    offsets = t.to(tl.int64)[:, None] * CHANNELS + c[None, :]
    x = tl.load(x_TC + offsets, mask=mask, other=0.0).to(tl.float32)
    if SHIFTED:
        x += tl.load(shift_C + c, mask=real, other=0.0)[None, :]
    mean = tl.sum(x, axis=1) / CHANNELS
    centred = tl.where(real[None, :], x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / CHANNELS
    weight = tl.load(weight_C + c, mask=real, other=0.0).to(tl.float32)
    bias = tl.load(bias_C + c, mask=real, other=0.0).to(tl.float32)
    y = centred * tl.rsqrt(variance + eps)[:, None] * weight[None, :] + bias[None, :]
    tl.store(y_TC + offsets, y.to(y_TC.dtype.element_ty), mask=mask)


@triton.jit
def _quick_gelu_kernel(x, size, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    value /= 1.0 + tl.exp2(value * -2.455466749571777)  # -1.702 / ln 2
    tl.store(x + offsets, value.to(x.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["patches"])
def _patches_kernel(
    views, out, patches,
    SIDE: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # A row of a patch is SIZE * 3 neighbouring bytes; rows of a patch lie SIDE * 3 bytes apart.
    across: tl.constexpr = SIDE // SIZE
    width: tl.constexpr = SIZE * 3
    patch = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    view, cell = patch // (across * across), patch % (across * across)
    first_row = (cell // across) * SIZE
    corner = (view.to(tl.int64) * SIDE + first_row) * (SIDE * 3) + (cell % across) * width
    e = tl.arange(0, BLOCK)
    mask = (patch < patches)[:, None] & (e < SIZE * width)[None, :]
    inside = (e // width) * (SIDE * 3) + e % width
    pixels = tl.load(views + corner[:, None] + inside[None, :], mask=mask, other=0).to(tl.float32)
    normalised = tl.div_rn(pixels, 127.5) - 1.0
    offsets = patch.to(tl.int64)[:, None] * (SIZE * width) + e[None, :]
    tl.store(out + offsets, normalised.to(out.dtype.element_ty), mask=mask)


def layer_norm(x_TC: Tensor, shift_C: Tensor | None, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    """See `kernels.reference.vision.layer_norm`; `x_TC` contiguous."""
    tokens, channels = x_TC.shape
    assert x_TC.is_contiguous()
    y_TC = torch.empty_like(x_TC)
    launch(
        _layer_norm_kernel,
        (triton.cdiv(tokens, NORM_ROWS),),
        x_TC,
        weight_C if shift_C is None else shift_C,
        weight_C,
        bias_C,
        y_TC,
        tokens,
        eps,
        CHANNELS=channels,
        BLOCK_C=triton.next_power_of_2(channels),
        ROWS=NORM_ROWS,
        SHIFTED=shift_C is not None,
    )
    return y_TC


def activate(x: Tensor) -> Tensor:
    """Replace x by x * sigmoid(1.702 x).

    Args:
        x: contiguous, any shape.

    Returns:
        `x` itself.
    """
    assert x.is_contiguous()
    size = x.numel()
    launch(_quick_gelu_kernel, (triton.cdiv(size, FLAT_BLOCK),), x, size, BLOCK=FLAT_BLOCK, num_warps=8)
    return x


def patches(views_VPPC: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """See `kernels.reference.vision.patches`; `views_VPPC` contiguous and square."""
    views, side, _, colours = views_VPPC.shape
    assert views_VPPC.is_contiguous()
    assert views_VPPC.dtype == torch.uint8
    assert views_VPPC.shape[2] == side
    assert colours == 3
    assert side % size == 0
    count, width = views * (side // size) ** 2, size * size * 3
    out = torch.empty(count, width, dtype=dtype, device=views_VPPC.device)
    launch(
        _patches_kernel,
        (triton.cdiv(count, PATCH_ROWS),),
        views_VPPC,
        out,
        count,
        SIDE=side,
        SIZE=size,
        ROWS=PATCH_ROWS,
        BLOCK=triton.next_power_of_2(width),
        num_warps=8,
    )
    return out
