"""What to load and how much it may hold, and making the engine from that.

Free of torch until `load_engine` runs, so that the service can describe the engine of its child process.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, TypeGuard

from service.engine.protocol import EngineInfo
from service.engine.repetition import LoopRule
from service.errors import EngineError

if TYPE_CHECKING:
    from service.engine.engine import TorchEngine
    from service.engine.runner import Runner
    from shared.deepseek_ocr.loading import LoadedCheckpoint
    from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration


class WeightForm(StrEnum):
    """How a GPU holds the decoder's matrices."""

    AUTO = "auto"
    """In full, unless the card is too small for that."""
    FULL = "full"
    INT8 = "int8"
    """As 8-bit rows, see `int8_rows`; CUDA and DeepSeek-OCR (v1) only."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What the engine may hold and do."""

    batch_size: int = 8
    max_new_tokens: int = 4096
    max_sequence_tokens: int = 8192
    """Vision, prompt and answer of one page together; never more than the checkpoint's positions."""
    kv_tokens: int | None = None
    """Key and value tokens of all sequences together; None: as many as full rows hold, or as fit onto the GPU."""
    views_per_step: int | None = None
    """Views encoded between two tokens of the pages that already run; None: what suits the device."""
    prefill_tokens_per_step: int | None = None
    """Prompt tokens read between two tokens of the pages that already run, but one prompt always may; None as above."""
    idle_factor: int | None = None
    """How many times these bounds a step does while no page runs; None as above."""
    gpu_memory_fraction: float = 0.9
    """Share of the device's memory that may be used, by us and whatever else runs on it; CUDA only."""
    weights: WeightForm = WeightForm.AUTO
    """Of the decoder. What `auto` comes to is found out before anything is loaded, by `load_engine`; a model that is
    loaded already stays in full."""
    cuda_graphs: bool = True
    """Whether decode steps are captured; off, to measure what that gives."""
    loop_rule: LoopRule = field(default_factory=LoopRule)
    adapter_slots: int = 0
    """Adapters that can be resident at once; 0: none, and nothing is prepared for them."""
    adapter_max_rank: int = 64
    """Largest rank of one; each slot takes the memory and the time of that rank."""
    adapter_experts: bool = False
    """Whether adapters may change routed experts; a slot takes many times the memory then, see `lora`."""


@dataclass(frozen=True, slots=True)
class EngineSource:
    """Which checkpoint runs where."""

    checkpoint: str
    """A folder, or a repository of the Hugging Face Hub."""
    device: str = "cpu"
    dtype: str = "float32"
    """A torch type by its name."""
    model_id: str | None = None
    """What requests call it; None: the checkpoint's own name."""
    limits: EngineLimits = field(default_factory=EngineLimits)


def load_engine(source: EngineSource) -> TorchEngine:
    """Load a checkpoint and make the engine over it; `functools.partial(load_engine, source)` is a factory.

    Args:
        source: Which checkpoint runs where.

    Returns:
        An engine that has not been warmed up.
    """
    import torch

    from shared.deepseek_ocr.loading import find_checkpoint, load_checkpoint

    folder, name = find_checkpoint(source.checkpoint)
    limits, dtype = source.limits, getattr(torch, source.dtype)
    if torch.device(source.device).type == "cuda":
        from service.engine.gpu.making import choose_weights

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
        EngineError: The GPU has no room for a single page beside the model, or adapters or 8-bit weights were asked
            for and the model is of a kind, or in a place, that takes none.
    """
    import torch

    from service.engine.engine import TorchEngine

    model = checkpoint.model
    device = model.lm_head.weight.device
    if model.lm_head.weight.dtype == torch.float32:
        # Who asks for float32 means it: torch lets convolutions round their inputs to 10 bits unless told otherwise.
        torch.backends.cudnn.allow_tf32 = False
    max_sequence_tokens = min(limits.max_sequence_tokens, model.config.text_config.max_position_embeddings)
    limits = replace(
        limits,
        max_sequence_tokens=max_sequence_tokens,
        max_new_tokens=min(limits.max_new_tokens, max_sequence_tokens),
    )
    if limits.adapter_slots and not _has_gpu_path(model):
        raise EngineError("adapters are not served for this kind of model; set adapter_slots to 0")
    runs_on_gpu = device.type == "cuda" and _has_gpu_path(model)
    if limits.weights is WeightForm.INT8 and not runs_on_gpu:
        raise EngineError("8-bit weights need a GPU and DeepSeek-OCR (v1); set weights to full")
    make_runner = _make_gpu_runner if runs_on_gpu else _make_plain_runner
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
        adapter_slots=limits.adapter_slots,
        adapter_max_rank=limits.adapter_max_rank if limits.adapter_slots else 0,
    )
    return TorchEngine(runner, checkpoint.tokenizer, info, limits)


def _has_gpu_path(model: object) -> TypeGuard[DeepseekOcrForConditionalGeneration]:
    from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration

    return isinstance(model, DeepseekOcrForConditionalGeneration)


def _make_plain_runner(checkpoint: LoadedCheckpoint, limits: EngineLimits) -> tuple[Runner, EngineLimits]:
    from service.engine.lora import make_bank
    from service.engine.model_runner import ModelRunner
    from service.engine.plain_runner import PlainRunner

    bank = make_bank(checkpoint.model, limits) if _has_gpu_path(checkpoint.model) else None
    # One token more than a sequence holds: a step makes room before it knows that the page has ended.
    rows = ModelRunner(
        checkpoint.model, max_rows=limits.batch_size, max_tokens=limits.max_sequence_tokens + 1, bank=bank
    )
    runner = PlainRunner(
        rows,
        eos_id=checkpoint.tokenizer.eos_id,
        rule=limits.loop_rule,
        kv_tokens=limits.kv_tokens or limits.batch_size * limits.max_sequence_tokens,
    )
    return runner, limits


def _make_gpu_runner(checkpoint: LoadedCheckpoint, limits: EngineLimits) -> tuple[Runner, EngineLimits]:
    from service.engine.gpu.making import make_gpu_runner

    assert _has_gpu_path(checkpoint.model)
    return make_gpu_runner(checkpoint.model, checkpoint.geometry, checkpoint.tokenizer.eos_id, limits)
