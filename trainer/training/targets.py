"""Which modules get an adapter: matches users' names with a model's modules.

A name that matches nothing is an error that lists the names there are: an adapter silently trained on fewer modules
would be worse for no visible reason. Does not know PEFT.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn

from shared.contract.peft_config import matches_target
from shared.deepseek_ocr.registry import MODELS
from trainer.training.errors import TrainingCode, TrainingError

DECODERS = tuple(kind.decoder for kind in MODELS.values())
VISION = tuple(name for kind in MODELS.values() for name in kind.vision)
EXPERTS = "experts"
"""Routed experts are stacked tensors, not linear modules."""


def choose_modules(model: nn.Module, targets: Sequence[str], *, with_vision: bool) -> tuple[str, ...]:
    """Choose the modules to adapt.

    Args:
        model: the base model.
        targets: ends of names, or full names, by PEFT's rule for lists.
        with_vision: let them match vision encoders and projector too.

    Returns:
        Full names in the model's order; routed experts are never included.

    Raises:
        TrainingError: a target matches nothing.
    """
    linear = linear_modules(model)
    scopes = (*DECODERS, *VISION) if with_vision else DECODERS
    in_scope = [name for name in linear if f"{name}.".startswith(scopes)]
    chosen: dict[str, None] = {}
    for target in targets:
        # A name must match completely, at any depth.
        found = [target] if target in linear else [name for name in in_scope if matches_target(name, (target,))]
        if not found:
            raise _unmatched(target, in_scope, linear)
        chosen |= dict.fromkeys(found)
    return tuple(name for name in linear if name in chosen)


def linear_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of all linear modules, quantised ones too."""
    return tuple(name for name, module in model.named_modules() if isinstance(module, nn.Linear))


def touches_vision(modules: Iterable[str]) -> bool:
    """Whether an adapter changes what the encoder sees, so that its features cannot be kept."""
    return any(is_vision(name) for name in modules)


def is_vision(module: str) -> bool:
    """Whether a module, by its full name, is in the vision part; DeepSeek-OCR-2's projector is one itself."""
    return f"{module}.".startswith(VISION)


def _unmatched(target: str, in_scope: Sequence[str], linear: Sequence[str]) -> TrainingError:
    ends = Counter(name.rsplit(".", 1)[-1] for name in in_scope)
    known = ", ".join(f"{end} ({count})" for end, count in ends.items())
    remedy = f"the model's linear modules, by the ends of their names: {known or 'none'}"
    if EXPERTS in target.split("."):
        remedy += "; routed experts are stacked tensors, which no adapter of the contract can hold"
    elif any(matches_target(name, (target,)) for name in linear):
        remedy += "; it is in the vision part, which needs --train-vision"
    return TrainingError(TrainingCode.TARGET_UNMATCHED, f"target {target!r} matches no module", remedy)
