"""The vision encoder's Triton kernels under the names of `kernels.reference.vision`."""

from service.engine.kernels.triton.lora import gated
from service.engine.kernels.triton.norm import rms_norm
from service.engine.kernels.triton.vision_attention import grid_attention, window_attention
from service.engine.kernels.triton.vision_elementwise import layer_norm, patches
from service.engine.kernels.triton.vision_fp8 import (
    gated_fp8,
    gelu_fp8,
    layer_norm_fp8,
    linear_fp8,
    quick_gelu_fp8,
    rms_norm_fp8,
)
from service.engine.kernels.triton.vision_linear import linear_gelu, linear_quick_gelu

__all__ = [
    "gated",
    "gated_fp8",
    "gelu_fp8",
    "grid_attention",
    "layer_norm",
    "layer_norm_fp8",
    "linear_fp8",
    "linear_gelu",
    "linear_quick_gelu",
    "patches",
    "quick_gelu_fp8",
    "rms_norm",
    "rms_norm_fp8",
    "window_attention",
]
