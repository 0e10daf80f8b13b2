"""Linear layers of the vision encoder's MLPs with their activation: products of many rows.

Two ways to the same result: cuBLAS with the activation in a pass of its own, and a persistent Triton product that
applies it before anything is written. Which one is taken is a constant, set by measurement.

Shape letters: T tokens, C channels (inner dimension), O output channels.
"""

# ruff: noqa: ANN001, ANN202 - arguments of kernels are pointers and numbers of the language's own
# mypy: disable-error-code="no-untyped-def, import-not-found"

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from service.engine.kernels.vision_elementwise import activate, gelu, quick_gelu

FUSED = False
"""Whether the Triton product is taken instead of cuBLAS and a second pass. Not measured yet."""
GROUP = 8
"""Blocks of rows that are worked on side by side, so that they share blocks of weights in the cache."""


@dataclass(frozen=True, slots=True)
class LinearTiling:
    """How a product is cut."""

    tokens: int = 128
    outputs: int = 256
    channels: int = 64
    warps: int = 8
    stages: int = 3
    flatten: bool = False
    """Let the loads of the next block start before this one is written."""


TILING = LinearTiling()
"""Not measured yet."""


@triton.jit
def _linear_kernel(
    x_TC, weight_OC, bias_O, out_TO, tokens, outputs, channels,
    BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, GROUP: tl.constexpr, PROGRAMS: tl.constexpr,
    QUICK: tl.constexpr, FLATTEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    dtype = out_TO.dtype
    blocks_t, blocks_o = tl.cdiv(tokens, BLOCK_T), tl.cdiv(outputs, BLOCK_O)
    group_size = GROUP * blocks_o
    for block in tl.range(tl.program_id(0), blocks_t * blocks_o, PROGRAMS, flatten=FLATTEN):
        group = block // group_size
        height = min(blocks_t - group * GROUP, GROUP)
        first_t = (group * GROUP + block % group_size % height) * BLOCK_T
        first_o = block % group_size // height * BLOCK_O
        total = tl.zeros([BLOCK_T, BLOCK_O], tl.float32)
        for step in range(tl.cdiv(channels, BLOCK_C)):
            x = x_TC.load([first_t, step * BLOCK_C])
            weight = weight_OC.load([first_o, step * BLOCK_C])
            total = tl.dot(x, tl.trans(weight), total, input_precision=PRECISION)
        o = first_o + tl.arange(0, BLOCK_O)
        total += tl.load(bias_O + o, mask=o < outputs, other=0.0).to(tl.float32)[None, :]
        y = quick_gelu(total) if QUICK else gelu(total)
        out_TO.store([first_t, first_o], y.to(dtype))


def fused_linear(
    x_TC: Tensor, weight_OC: Tensor, bias_O: Tensor, *, quick: bool, tiling: LinearTiling = TILING
) -> Tensor:
    """Linear layer and activation in one kernel.

    Args:
        x_TC: tokens, contiguous.
        weight_OC: weights, contiguous.
        bias_O: bias.
        quick: x * sigmoid(1.702 x) instead of GELU.
        tiling: how to cut the product.

    Returns:
        `[T, O]`.
    """
    tokens, channels = x_TC.shape
    outputs = weight_OC.shape[0]
    out_TO = x_TC.new_empty(tokens, outputs)
    blocks = triton.cdiv(tokens, tiling.tokens) * triton.cdiv(outputs, tiling.outputs)
    programs = min(_processors(x_TC.device), blocks)
    _linear_kernel[(programs,)](
        TensorDescriptor.from_tensor(x_TC, [tiling.tokens, tiling.channels]),
        TensorDescriptor.from_tensor(weight_OC, [tiling.outputs, tiling.channels]),
        bias_O,
        TensorDescriptor.from_tensor(out_TO, [tiling.tokens, tiling.outputs]),
        tokens,
        outputs,
        channels,
        BLOCK_T=tiling.tokens,
        BLOCK_O=tiling.outputs,
        BLOCK_C=tiling.channels,
        GROUP=GROUP,
        PROGRAMS=programs,
        QUICK=quick,
        FLATTEN=tiling.flatten,
        PRECISION="ieee",
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )
    return out_TO


def separate_linear(x_TC: Tensor, weight_OC: Tensor, bias_O: Tensor, *, quick: bool) -> Tensor:
    """Linear layer by cuBLAS, then the activation in place: `[T, O]`."""
    return activate(torch.addmm(bias_O, x_TC, weight_OC.t()), quick=quick)


def linear_gelu(x_TC: Tensor, weight_OC: Tensor, bias_O: Tensor) -> Tensor:
    """See `vision_reference.linear_gelu`."""
    return (fused_linear if FUSED else separate_linear)(x_TC, weight_OC, bias_O, quick=False)


def linear_quick_gelu(x_TC: Tensor, weight_OC: Tensor, bias_O: Tensor) -> Tensor:
    """See `vision_reference.linear_quick_gelu`."""
    return (fused_linear if FUSED else separate_linear)(x_TC, weight_OC, bias_O, quick=True)


@cache
def _processors(device: torch.device) -> int:
    """Multiprocessors of the device; a few where there is none and kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
