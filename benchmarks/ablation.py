"""The engine without one of its ideas: what each gave is what its absence costs.

Owns how an idea is switched off. Whatever has no switch of its own in the engine is replaced from outside, for this
process alone; the engine itself knows nothing of ablations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from enum import StrEnum
from typing import Any

from service.engine.engine import TorchEngine
from service.engine.loader import EngineLimits


class Idea(StrEnum):
    """What can be left out."""

    BATCHING = "batching"
    """One page at a time."""
    GRAPHS = "graphs"
    """Decode steps launched kernel by kernel."""
    EXPERTS = "experts"
    """The mixture of experts by plain torch operations."""
    VISION_BATCHING = "vision-batching"
    """One view at a time."""
    PREPARATION = "preparation"
    """Images prepared one after another on the thread that submits them."""


REDUCED_REQUESTS = {Idea.BATCHING: 8}
"""An engine without the idea is measured on so many requests, which is enough for its rate."""


class AblationError(ValueError):
    """An idea that this engine does not have on this device."""


def limits_without(idea: Idea | None, limits: EngineLimits) -> EngineLimits:
    """Limits of an engine that lacks an idea.

    Args:
        idea: What to leave out; None: nothing.
        limits: Of the whole engine.

    Returns:
        The limits to make it with.

    Raises:
        AblationError: The engine has no such switch.
    """
    if idea is Idea.BATCHING:
        return replace(limits, batch_size=1)
    if idea is Idea.GRAPHS:
        if "cuda_graphs" not in {field.name for field in fields(EngineLimits)}:
            raise AblationError("this engine has no switch for graphs")
        off: dict[str, Any] = {"cuda_graphs": False}
        return replace(limits, **off)
    return limits


def make_without(idea: Idea | None, make: Callable[[], TorchEngine]) -> TorchEngine:
    """Make an engine that lacks an idea.

    Args:
        idea: What to leave out; None: nothing.
        make: Makes the whole engine over limits that `limits_without` gave.

    Returns:
        The engine.

    Raises:
        AblationError: There is nothing to replace on this device.
    """
    if idea is Idea.EXPERTS:
        _use_plain_mixture()
    engine = make()
    if idea is Idea.VISION_BATCHING:
        _encode_one_by_one(engine)
    return engine


def _encode_one_by_one(engine: TorchEngine) -> None:
    runner: Any = engine._runner  # there is no switch, and there should be none
    encode = runner.encode

    def one_by_one(views: Sequence[Any]) -> list[Any]:
        return [encoded for view in views for encoded in encode([view])]

    runner.encode = one_by_one


def _use_plain_mixture() -> None:
    try:
        from service.engine.kernels import fused, reference
    except ImportError as error:
        raise AblationError("this engine has no kernel for experts here") from error
    fused.mixture = reference.mixture
