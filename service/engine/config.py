"""What the engine loads and how much it may hold. Plain data, free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from shared.contract.repetition import LoopRule

SHIPPED_MODEL = "nano"
"""Name of the included model."""


class WeightForm(StrEnum):
    """How a GPU holds the decoder's matrices."""

    AUTO = "auto"
    """In full, unless the card is too small for that."""
    FULL = "full"
    INT8 = "int8"
    """As 8-bit rows, see `int8_rows`; CUDA only."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What the engine may hold and do."""

    batch_size: int = 8
    max_new_tokens: int = 4096
    max_sequence_tokens: int = 32_768
    """Vision, prompt and answer of one sequence together; never more than the checkpoint's positions."""
    kv_tokens: int | None = None
    """Key and value tokens of all sequences together; None: as many as full rows hold, or as fit onto the GPU."""
    views_per_step: int | None = None
    """Views encoded between two tokens of the pages that already run; None: what suits the device."""
    prefill_tokens_per_step: int | None = None
    """Prompt tokens read between two tokens of the pages that already run, but one prompt always may; None as above."""
    idle_multiplier: int | None = None
    """How many times these bounds a step does while no page runs; None as above."""
    gpu_memory_fraction: float = 0.9
    """Share of the device's memory that may be used, by us and whatever else runs on it; CUDA only."""
    weights: WeightForm = WeightForm.AUTO
    """Of the decoder. What `auto` comes to is found out before anything is loaded, by `load_engine`; a model that is
    loaded already stays in full."""
    cuda_graphs: bool = True
    """Whether decode steps are captured; off, to measure what that gives."""
    skips_padding: bool = True
    """Whether a CPU leaves the padding of pages of one view out; see `cpu.bands`."""
    rounds_canvases: bool = False
    """Whether a CPU reads and decodes canvases of lines in what is faster than float32 there; needs `skips_padding`."""
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
