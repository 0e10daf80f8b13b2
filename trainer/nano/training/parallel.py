"""Several processes training one model, each on a device and pages of its own: gradients are averaged, time is shared.

Started by torchrun, which says each process's rank in the environment; alone, everything here does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Peers:
    """This process among those of the run."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls) -> Peers:
        """Meet the other processes; returns at once where there are none."""
        if not dist.is_torchelastic_launched():
            return cls()
        # Tensors on the CPU (shares of time) and on devices (gradients) take different ways.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), dist.get_world_size(), dist.get_node_local_rank(fallback_rank=0))

    @property
    def is_first(self) -> bool:
        """Whether this process writes logs and shards."""
        return self.rank == 0

    def leave(self) -> None:
        """Part from the others."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def start_alike(self, module: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self.count > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their mean over all processes; one without a gradient counts as zero."""
        if self.count == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
        dist.all_reduce(flat)
        flat /= self.count
        for parameter, mean in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(mean.view_as(parameter))

    def agree(self, value: float) -> float:
        """The first process's value: schedules and the end of a run must not depend on a process's own clock."""
        if self.count == 1:
            return value
        shared: Tensor = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)
