"""The decoder's Triton kernels under the names of `kernels.reference.decoder`, which says what each one means.

Needs CUDA, or Triton's interpreter.
"""

from __future__ import annotations

from service.engine.kernels.triton.attention import decode_attention, paged_attention
from service.engine.kernels.triton.experts import mixture, mixture_add
from service.engine.kernels.triton.linear import linear, linear_add, norm_linear
from service.engine.kernels.triton.lora import gated, lora_add
from service.engine.kernels.triton.lora_experts import mixture_lora, mixture_lora_add
from service.engine.kernels.triton.norm import add_rms_norm, rms_norm
from service.engine.kernels.triton.prefill import prefill_attention
from service.engine.kernels.triton.rotary import rotate_and_store
from service.engine.kernels.triton.routing import norm_route, route
from service.engine.kernels.triton.sampler import choose
from service.engine.kernels.triton.step import begin_step

__all__ = [
    "add_rms_norm",
    "begin_step",
    "choose",
    "decode_attention",
    "gated",
    "linear",
    "linear_add",
    "lora_add",
    "mixture",
    "mixture_add",
    "mixture_lora",
    "mixture_lora_add",
    "norm_linear",
    "norm_route",
    "paged_attention",
    "prefill_attention",
    "rms_norm",
    "rotate_and_store",
    "route",
]
