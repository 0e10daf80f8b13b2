"""Makes the runner of a CUDA device from a loaded model, sized by the memory that is left.

Weights are packed first, then the rest of the card is divided. Before anything is loaded, decides whether full weights
fit. Called once, at the start.
"""

from __future__ import annotations

import logging
import pkgutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from service.engine.answer_ring import AnswerRing
from service.engine.config import EngineLimits, WeightForm
from service.engine.gpu.decoder import GpuDecoder
from service.engine.gpu.memory import DecoderShape, MemoryPlan, plan_memory
from service.engine.gpu.paged_cache import BLOCK_TOKENS, PagedCache
from service.engine.gpu.runner import GpuRunner
from service.engine.gpu.state import AnswerState
from service.engine.lora.bank import make_bank
from service.engine.lora.shapes import bank_bytes
from service.engine.vision.runner import GpuVision
from service.errors import EngineError
from shared.deepseek_ocr.checkpoint import read_config
from shared.deepseek_ocr.configuration import TextConfig
from shared.deepseek_ocr.geometry import GeometryConfig, Mode, global_view_px
from shared.deepseek_ocr.protocol import OcrModel
from shared.deepseek_ocr.public_config import ConfigError
from shared.deepseek_ocr.registry import find_kind, kind_of

_log = logging.getLogger(__name__)
_FP8_CAPABILITY = (8, 9)
"""The first whose tensor cores multiply 8-bit floats."""


def choose_weights(folder: Path, device: torch.device | str, dtype: torch.dtype, limits: EngineLimits) -> WeightForm:
    """Decide in which form a checkpoint that is not loaded yet fits on the card.

    Args:
        folder: The checkpoint.
        device: The card.
        dtype: Of weights in full.
        limits: What the engine may hold and do.

    Returns:
        What the limits ask for; `auto` becomes full weights where they leave room for a page.
    """
    if limits.weights is not WeightForm.AUTO:
        return limits.weights
    values = read_config(folder)
    kind = find_kind(values.get("model_type"))
    if kind is None or not kind.has_fast_decoder:
        return WeightForm.FULL
    try:
        model: Any = pkgutil.resolve_name(kind.skeleton)(values)
    except ConfigError:
        return WeightForm.FULL  # loading says what is wrong
    text: TextConfig = model.decoder.config
    limits = replace(limits, max_sequence_tokens=min(limits.max_sequence_tokens, text.max_position_embeddings))
    full_bytes = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    try:
        _plan(text, torch.device(device), dtype, limits, coming_bytes=full_bytes)
    except EngineError as error:
        _log.warning("weights become 8-bit rows, as in full they do not fit: %s", error)
        return WeightForm.INT8
    return WeightForm.FULL


@torch.inference_mode()
def make_gpu_runner(
    model: OcrModel, geometry: GeometryConfig, eos_id: int, limits: EngineLimits
) -> tuple[GpuRunner, EngineLimits]:
    """Lay the decoder's weights out, share out the card and reserve the cache.

    Args:
        model: On its device, the decoder's layers there or on the host; gives its decoder up.
        geometry: The checkpoint's.
        eos_id: The token that ends an answer.
        limits: What the engine may hold and do.

    Returns:
        The runner, and the limits with what was left to the device filled in.

    Raises:
        EngineError: There is no room for a single page, or the card or the type does not suit encoders in FP8.
    """
    from service.engine.kernels.triton import decoder as fused

    text = model.decoder.config
    device, dtype = model.lm_head.weight.device, model.lm_head.weight.dtype
    fp8_bytes = 0
    if limits.encodes_in_fp8:
        if dtype != torch.bfloat16 or torch.cuda.get_device_capability(device) < _FP8_CAPABILITY:
            raise EngineError("encoders in FP8 need bfloat16 and a GPU of compute capability 8.9 or later")
        # At most: what is not a large product stays as it is.
        whole: Any = model
        prefixes = kind_of(model).vision
        fp8_bytes = sum(value.numel() for name, value in whole.named_parameters() if name.startswith(prefixes))
    ring = AnswerRing.of(model, limits.loop_rule)
    decoder = GpuDecoder(
        model,
        fused,
        max_positions=limits.max_sequence_tokens,
        takes_over=True,
        takes_adapters=limits.adapter_slots > 0,
        is_int8=limits.weights is WeightForm.INT8,
        ring=ring,
    )
    # Packing leaves the largest temporary tensor in the allocator's cache.
    torch.cuda.empty_cache()
    plan = _plan(text, device, dtype, limits, coming_bytes=fp8_bytes)
    _log.info("memory of %s: %s", device, plan)
    cache = PagedCache(
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        head_dim=text.head_dim,
        num_slots=limits.batch_size,
        num_blocks=plan.num_blocks,
        max_tokens=limits.max_sequence_tokens,
        device=device,
        dtype=dtype,
    )
    runner = GpuRunner(
        model,
        decoder=decoder,
        vision=GpuVision(model, chunk_patches=plan.bounds.chunk_patches, is_fp8=limits.encodes_in_fp8),
        cache=cache,
        state=AnswerState.create(limits.batch_size, limits.max_new_tokens, limits.loop_rule, eos_id, device),
        kernels=fused,
        rule=limits.loop_rule,
        view_sizes_px=_usual_views(geometry),
        uses_graphs=limits.cuda_graphs,
        ring=ring,
        bank=make_bank(model, limits, splits_shared=True),
    )
    filled = replace(
        limits,
        views_per_step=limits.views_per_step or plan.bounds.views,
        prefill_tokens_per_step=limits.prefill_tokens_per_step or plan.bounds.prefill_tokens,
        idle_multiplier=limits.idle_multiplier or plan.bounds.idle_multiplier,
    )
    return runner, filled


def _plan(
    text: TextConfig, device: torch.device, dtype: torch.dtype, limits: EngineLimits, coming_bytes: int = 0
) -> MemoryPlan:
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    shape = DecoderShape(
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        dense_width=text.intermediate_size,
        expert_width=text.moe_intermediate_size,
        num_chosen=text.num_experts_per_tok + text.n_shared_experts,
        value_bytes=dtype.itemsize,
        adapter_rank=limits.adapter_max_rank if limits.adapter_slots and limits.adapter_experts else 0,
    )
    plan = plan_memory(
        total_bytes=total_bytes,
        used_bytes=total_bytes - free_bytes + coming_bytes,
        fraction=limits.gpu_memory_fraction,
        shape=shape,
        slots=limits.batch_size,
        max_sequence_tokens=limits.max_sequence_tokens,
        block_tokens=BLOCK_TOKENS,
        adapter_bytes=bank_bytes(
            text,
            num_slots=limits.adapter_slots,
            max_rank=limits.adapter_max_rank,
            value_bytes=dtype.itemsize,
            has_experts=limits.adapter_experts,
        ),
    )
    if limits.kv_tokens:
        plan = replace(plan, num_blocks=min(plan.num_blocks, -(-limits.kv_tokens // BLOCK_TOKENS)))
    return plan


def _usual_views(geometry: GeometryConfig) -> tuple[int, ...]:
    """Sides of the views of the default mode."""
    sides = {global_view_px(geometry.default_mode, geometry)}
    if geometry.default_mode is Mode.GUNDAM:
        sides.add(geometry.tile_px)
    return tuple(sorted(sides))
