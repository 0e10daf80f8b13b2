"""What a backend provides: the base model with a new adapter, ready for training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from peft import PeftModel

    from shared.deepseek_ocr.geometry import GeometryConfig
    from shared.deepseek_ocr.tokenizer import OcrTokenizer


@dataclass(frozen=True, slots=True)
class AdapterRequest:
    """The adapter to make.

    Attributes:
        checkpoint: base model: folder or repository.
        device: where it goes.
        choose: chooses the modules to adapt in the loaded model.
        rank: of the adapter.
        alpha: its product is multiplied by alpha / rank.
        dropout: share of inputs dropped.
        use_rslora: multiply by alpha / sqrt(rank) instead.
        in_4bit: keep frozen weights in 4 bits.
        gradient_checkpointing: compute activations twice.
        max_length: longest sequence, in tokens.
        seed: of the adapter's first values.
    """

    checkpoint: str
    device: torch.device
    choose: Callable[[torch.nn.Module], tuple[str, ...]]
    rank: int
    alpha: float
    dropout: float
    use_rslora: bool
    in_4bit: bool
    gradient_checkpointing: bool
    max_length: int
    seed: int


@dataclass(frozen=True, slots=True)
class AdaptedModel:
    """A base model with an adapter.

    Attributes:
        model: PEFT's model; the base inside it reads pages (`shared.deepseek_ocr.protocol.OcrModel`).
        tokenizer: of the base model.
        geometry: of the base model.
        base_name: of the base model, without folders of this machine.
        modules: whole names of the adapted modules.
        details: what makes the backend, for the record.
        keeps_logits: whether forward takes `logits_to_keep` together with labels.
    """

    model: PeftModel
    tokenizer: OcrTokenizer
    geometry: GeometryConfig
    base_name: str
    modules: tuple[str, ...]
    details: dict[str, Any]
    keeps_logits: bool = True


class Backend(Protocol):
    """Makes adapted models."""

    def __call__(self, request: AdapterRequest) -> AdaptedModel:
        """Load the base model onto its device and add the adapter."""


def as_pattern(modules: Sequence[str]) -> str:
    """A pattern that matches exactly these full names, for libraries that do not take lists of them."""
    return "(?:" + "|".join(name.replace(".", r"\.") for name in modules) + ")"
