"""Makes the engine that an `EngineSource` describes. Free of torch until `load_engine` runs, as `app` imports it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from service.engine.config import EngineLimits, EngineSource, WeightForm
from service.engine.protocol import TOGETHER_MODE, EngineInfo
from service.errors import EngineError
from shared.contract.processors import usable_processors
from shared.deepseek_ocr.registry import kind_of

if TYPE_CHECKING:
    from service.engine.engine import TorchEngine
    from service.engine.runner import Runner
    from shared.deepseek_ocr.loading import LoadedCheckpoint


def load_engine(source: EngineSource) -> TorchEngine:
    """Load a checkpoint and make the engine over it; `functools.partial(load_engine, source)` is a factory.

    Args:
        source: Which checkpoint runs where.

    Returns:
        An engine that has not been warmed up.
    """
    import torch

    from shared.deepseek_ocr.loading import find_checkpoint, load_checkpoint

    # Torch knows the affinity of this process, but no container's quota: threads beyond it wait for their turn.
    torch.set_num_threads(min(torch.get_num_threads(), usable_processors()))
    folder, name = find_checkpoint(source.checkpoint)
    limits, dtype = source.limits, getattr(torch, source.dtype)
    if torch.device(source.device).type == "cuda":
        from service.engine.gpu.factory import choose_weights

        limits = replace(limits, weights=choose_weights(folder, source.device, dtype, limits))
    # What becomes 8-bit rows waits on the host: in full it may be more than the card holds.
    layers_device = "cpu" if limits.weights is WeightForm.INT8 else None
    checkpoint = load_checkpoint(folder, source.device, dtype, layers_device)
    return make_engine(checkpoint, limits, source.model_id or name)


def make_engine(checkpoint: LoadedCheckpoint, limits: EngineLimits, model_id: str | None = None) -> TorchEngine:
    """Make the engine over a checkpoint that is already loaded.

    On CUDA the engine takes the model's decoder over: the model itself cannot decode afterwards.

    Args:
        checkpoint: The model on its device, its tokenizer and geometry.
        limits: What the engine may hold and do.
        model_id: What requests call it; None: the checkpoint's own name.

    Returns:
        An engine that has not been warmed up.

    Raises:
        EngineError: The GPU has no room for a single page next to the model, or adapters or 8-bit weights were
            requested and the model's kind or device does not support them.
    """
    import torch

    from service.engine.engine import TorchEngine

    model = checkpoint.model
    device = model.lm_head.weight.device
    if model.lm_head.weight.dtype == torch.float32:
        # Who asks for float32 means it: torch lets convolutions round their inputs to 10 bits unless told otherwise.
        torch.backends.cudnn.allow_tf32 = False
    kind = kind_of(model)
    max_sequence_tokens = min(limits.max_sequence_tokens, model.config.text_config.max_position_embeddings)
    limits = replace(
        limits,
        max_sequence_tokens=max_sequence_tokens,
        # Several pages together get as many tokens as fit; a request for one page has its own bound.
        max_new_tokens=max_sequence_tokens
        if kind.reads_pages_together
        else min(limits.max_new_tokens, max_sequence_tokens),
    )
    if limits.adapter_slots and not kind.takes_adapters:
        raise EngineError("adapters are not served for this kind of model; set adapter_slots to 0")
    runs_on_gpu = device.type == "cuda" and kind.has_fast_decoder
    if limits.weights is WeightForm.INT8 and not runs_on_gpu:
        raise EngineError("8-bit weights need a GPU and a model that its decoder supports; set weights to full")
    make_runner = _make_gpu_runner if runs_on_gpu else _make_cpu_runner
    runner, limits = make_runner(checkpoint, limits)
    info = EngineInfo(
        model_id=model_id or checkpoint.model_id,
        device=str(device),
        dtype=str(model.lm_head.weight.dtype).removeprefix("torch."),
        geometry=checkpoint.geometry,
        max_new_tokens=limits.max_new_tokens,
        max_sequence_tokens=max_sequence_tokens,
        batch_size=limits.batch_size,
        prepares_views=runner.prepares_views,
        skips_padding=runner.skips_padding,
        steps=runner.steps,
        canvases=runner.canvases,
        adapter_slots=limits.adapter_slots,
        adapter_max_rank=limits.adapter_max_rank if limits.adapter_slots else 0,
        calibration=checkpoint.calibration,
        tasks=checkpoint.tasks,
        family=kind.family,
        prompts=kind.prompts,
        reads_pages_together=kind.reads_pages_together and TOGETHER_MODE in checkpoint.geometry.modes,
    )
    return TorchEngine(runner, checkpoint.tokenizer, info, limits)


def _make_cpu_runner(checkpoint: LoadedCheckpoint, limits: EngineLimits) -> tuple[Runner, EngineLimits]:
    from service.engine.cpu.runner import CpuRunner
    from service.engine.lora.bank import make_bank

    geometry = checkpoint.geometry
    skips_padding = limits.skips_padding and geometry.reads_lines and hasattr(checkpoint.model, "encode_bands")
    runner = CpuRunner(
        checkpoint.model,
        max_rows=limits.batch_size,
        max_tokens=limits.max_sequence_tokens,
        eos_id=checkpoint.tokenizer.eos_id,
        rule=limits.loop_rule,
        kv_tokens=limits.kv_tokens,
        bank=make_bank(checkpoint.model, limits),
        token_px=geometry.patch_px * geometry.downsample if skips_padding else None,
        rounds_canvases=limits.rounds_canvases,
        draft_head=checkpoint.draft_head,
    )
    return runner, limits


def _make_gpu_runner(checkpoint: LoadedCheckpoint, limits: EngineLimits) -> tuple[Runner, EngineLimits]:
    from service.engine.gpu.factory import make_gpu_runner

    return make_gpu_runner(checkpoint.model, checkpoint.geometry, checkpoint.tokenizer.eos_id, limits)
