"""Forward and backward as a CUDA graph: recorded once for each shape of a batch, replayed for all others of it.

A step of a small batch is thousands of short kernels, and the host takes longer to start them than the card to run
them. A graph starts them all at once. Owns recordings and their inputs; knows neither models nor data. Where there is
no CUDA the same gradients are computed without a recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WARM_STEPS = 2
"""Steps before recording, in which libraries allocate workspaces and choose kernels."""
MAX_SHAPES = 8
"""Recordings kept; further shapes are computed without one, as each takes memory and seconds."""
LossOf = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True, slots=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    loss: Tensor
    gradients: tuple[Tensor, ...]


class GraphedLoss:
    """Adds gradients of a loss to parameters of a model whose weights do not move."""

    def __init__(self, loss_of: LossOf, parameters: Sequence[nn.Parameter]) -> None:
        """Prepare for recording.

        Args:
            loss_of: the loss of a batch; no host synchronisation, no inputs but the batch.
            parameters: the trained parameters.
        """
        self._loss_of = loss_of
        self._parameters = list(parameters)
        self._recordings: dict[tuple[object, ...], _Recording] = {}
        self._pool: Any = None

    def backward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Compute the loss of a batch and add its gradients to the parameters'; returns the detached loss."""
        key = tuple((name, tuple(each.shape), each.dtype) for name, each in sorted(batch.items()))
        recording = self._recordings.get(key)
        if recording is None:
            is_cuda = next(iter(batch.values())).device.type == "cuda"
            if not is_cuda or len(self._recordings) >= MAX_SHAPES:
                loss, gradients = self._compute(batch)
                self._add(gradients)
                return loss
            recording = self._recordings[key] = self._record(batch)
        for name, each in batch.items():
            recording.inputs[name].copy_(each, non_blocking=True)
        recording.graph.replay()
        self._add(recording.gradients)
        # The next replay overwrites it.
        return recording.loss.clone()

    def _record(self, batch: Mapping[str, Tensor]) -> _Recording:
        inputs = {name: each.detach().clone() for name, each in batch.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_STEPS):
                self._compute(inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            loss, gradients = self._compute(inputs)
        self._pool = self._pool or graph.pool()
        return _Recording(graph, inputs, loss, gradients)

    def _compute(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = self._loss_of(batch)
        return loss.detach(), torch.autograd.grad(loss, self._parameters)

    @torch.no_grad()
    def _add(self, gradients: Sequence[Tensor]) -> None:
        """Gradients belong to the recording, not to the parameters, whose own an optimiser may drop."""
        for each in self._parameters:
            if each.grad is None:
                each.grad = torch.zeros_like(each)
        torch._foreach_add_([each.grad for each in self._parameters if each.grad is not None], tuple(gradients))
