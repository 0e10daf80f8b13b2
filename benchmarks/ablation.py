"""The engine without one of its ideas: what each idea gives is what its absence costs.

Switches an idea off through the engine's limits where they allow it, else by replacing a part from outside for the time
of the measurement. The engine knows nothing of ablations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from enum import StrEnum
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from service.engine.config import EngineLimits
from service.engine.engine import TorchEngine


class Idea(StrEnum):
    """What can be left out."""

    BATCHING = "batching"
    """One page at a time."""
    GRAPHS = "graphs"
    """Decode steps, and small batches of views, launched kernel by kernel."""
    EXPERTS = "experts"
    """The mixture of experts by torch's own grouped matrix product."""
    VISION_BATCHING = "vision-batching"
    """One view at a time."""
    PREPARATION = "preparation"
    """Images prepared one after another on the thread that submits them."""


REDUCED_REQUESTS = {Idea.BATCHING: 8}
"""An engine without the idea is measured on so many requests, which is enough for its rate."""


class AblationError(ValueError):
    """An idea that this engine does not have on this device."""


def limits_without(idea: Idea | None, limits: EngineLimits) -> EngineLimits:
    """Limits of an engine that lacks an idea; those of the whole engine where limits do not say it."""
    if idea is Idea.BATCHING:
        return replace(limits, batch_size=1)
    return replace(limits, cuda_graphs=False) if idea is Idea.GRAPHS else limits


@contextmanager
def without(idea: Idea | None, device: str) -> Iterator[None]:
    """Leave an idea out of every engine made and used within; None: nothing.

    Raises:
        AblationError: The engine does not have the idea on this device.
    """
    if idea in {Idea.GRAPHS, Idea.EXPERTS} and not device.startswith("cuda"):
        raise AblationError(f"on {device} the engine has no {idea} to leave out")
    with ExitStack() as stack:
        if idea is Idea.GRAPHS:
            from service.engine.vision.runner import GpuVision

            stack.enter_context(_with_argument(GpuVision, graphs=False))
        if idea is Idea.EXPERTS:
            from service.engine.gpu.runner import GpuRunner
            from service.engine.kernels.triton import decoder as fused

            # Plain torch looks experts up by what a kernel chose, and while compiling ahead no kernel has.
            stack.enter_context(patch.object(GpuRunner, "_compile", lambda _: None))
            stack.enter_context(patch.object(fused, "mixture", plain_mixture))
            stack.enter_context(patch.object(fused, "mixture_add", plain_mixture_add))
        yield


def leave_out(idea: Idea | None, engine: TorchEngine) -> TorchEngine:
    """Leave an idea out of one engine: the batching of views, which is a matter of its runner alone."""
    if idea is Idea.VISION_BATCHING:
        runner: Any = engine._runner  # the engine has no switch for this
        encode = runner.encode

        def one_by_one(views: Sequence[Any]) -> list[Any]:
            return [encoded for view in views for encoded in encode([view])]

        runner.encode = one_by_one
    return engine


def plain_mixture(
    x_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_EJH: Tensor, down_EHI: Tensor
) -> Tensor:
    """The mixture of `kernels.reference` by torch's grouped product; never waits for the device."""
    num_experts, num_chosen = gate_up_EJH.shape[0], experts_TK.shape[1]
    chosen = experts_TK.flatten().long()
    order = chosen.argsort(stable=True)
    counts_E = torch.zeros(num_experts, dtype=torch.int32, device=x_TH.device)
    counts_E.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=torch.int32))
    ends_E = counts_E.cumsum(0, dtype=torch.int32)
    grouped_mm: Any = F.grouped_mm
    gate, up = grouped_mm(x_TH[order // num_chosen], gate_up_EJH.transpose(1, 2), offs=ends_E).chunk(2, dim=-1)
    down = grouped_mm(F.silu(gate) * up, down_EHI.transpose(1, 2), offs=ends_E)
    by_token_TKH = down[order.argsort()].unflatten(0, (-1, num_chosen))
    return (by_token_TKH * weights_TK.unsqueeze(-1)).sum(dim=1).to(x_TH.dtype)


def plain_mixture_add(
    x_TH: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    gate_up_EJH: Tensor,
    down_EHI: Tensor,
    residual_TH: Tensor,
) -> None:
    """`plain_mixture`, added to the residual in place."""
    residual_TH += plain_mixture(x_TH, weights_TK, experts_TK, gate_up_EJH, down_EHI)


def _with_argument(made: type, **arguments: Any) -> Any:
    """Pass these keyword arguments whenever an object of the class is made."""
    make = made.__init__  # type: ignore[misc] # of whatever class is meant

    def make_with(self: Any, *positional: Any, **named: Any) -> None:
        make(self, *positional, **(named | arguments))

    return patch.object(made, "__init__", make_with)
