"""The vision encoder's Triton kernels under the names of `kernels.reference.vision`."""

from service.engine.kernels.triton.lora import gated
from service.engine.kernels.triton.norm import rms_norm
from service.engine.kernels.triton.vision_attention import grid_attention, window_attention
from service.engine.kernels.triton.vision_elementwise import layer_norm, patches
from service.engine.kernels.triton.vision_linear import linear_gelu, linear_quick_gelu

__all__ = [
    "gated",
    "grid_attention",
    "layer_norm",
    "linear_gelu",
    "linear_quick_gelu",
    "patches",
    "rms_norm",
    "window_attention",
]
