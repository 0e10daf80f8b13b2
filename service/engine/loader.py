"""What to load and how much it may hold, and making the engine from that.

Free of torch until `load_engine` runs, so that the service can describe the engine of its child process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from service.engine.protocol import EngineInfo
from service.engine.repetition import LoopRule

if TYPE_CHECKING:
    from service.engine.engine import TorchEngine
    from service.engine.runner import Runner
    from shared.deepseek_ocr.loading import LoadedCheckpoint


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What the engine may hold and do."""

    batch_size: int = 8
    max_new_tokens: int = 4096
    max_sequence_tokens: int = 8192
    """Vision, prompt and answer of one page together; never more than the checkpoint's positions."""
    kv_tokens: int | None = None
    """Key and value tokens of all sequences together; None: as many as full rows hold."""
    views_per_step: int = 4
    """Views encoded between two tokens of the pages that already run."""
    prefill_tokens_per_step: int = 4096
    """Prompt tokens read between two tokens of the pages that already run; one prompt always may."""
    idle_factor: int = 1
    """How many times these bounds a step does while no page runs."""
    loop_rule: LoopRule = field(default_factory=LoopRule)


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

    from shared.deepseek_ocr.loading import load_checkpoint

    checkpoint = load_checkpoint(source.checkpoint, source.device, getattr(torch, source.dtype))
    return make_engine(checkpoint, source.limits, source.model_id)


def make_engine(checkpoint: LoadedCheckpoint, limits: EngineLimits, model_id: str | None = None) -> TorchEngine:
    """Make the engine over a checkpoint that is already loaded.

    Args:
        checkpoint: The model on its device, its tokenizer and geometry.
        limits: What the engine may hold and do.
        model_id: What requests call it; None: the checkpoint's own name.

    Returns:
        An engine that has not been warmed up.
    """
    from service.engine.engine import TorchEngine

    model = checkpoint.model
    max_sequence_tokens = min(limits.max_sequence_tokens, model.config.text_config.max_position_embeddings)
    info = EngineInfo(
        model_id=model_id or checkpoint.model_id,
        device=str(model.lm_head.weight.device),
        dtype=str(model.lm_head.weight.dtype).removeprefix("torch."),
        geometry=checkpoint.geometry,
        max_new_tokens=min(limits.max_new_tokens, max_sequence_tokens),
        max_sequence_tokens=max_sequence_tokens,
        batch_size=limits.batch_size,
    )
    return TorchEngine(_plain_runner(checkpoint, limits, max_sequence_tokens), checkpoint.tokenizer, info, limits)


def _plain_runner(checkpoint: LoadedCheckpoint, limits: EngineLimits, max_sequence_tokens: int) -> Runner:
    from service.engine.model_runner import ModelRunner
    from service.engine.plain_runner import PlainRunner

    # One token more than a sequence holds: a step makes room before it knows that the page has ended.
    rows = ModelRunner(checkpoint.model, max_rows=limits.batch_size, max_tokens=max_sequence_tokens + 1)
    return PlainRunner(
        rows,
        eos_id=checkpoint.tokenizer.eos_id,
        rule=limits.loop_rule,
        kv_tokens=limits.kv_tokens or limits.batch_size * max_sequence_tokens,
    )
