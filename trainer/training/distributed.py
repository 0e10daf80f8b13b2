"""Decisions that all processes of a distributed run must take alike: continue, stop, read.

The library splits batches and sums gradients. A single process decides alone.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import distributed

Value = TypeVar("Value")


def is_distributed() -> bool:
    """Whether there are several processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def broadcast_first(value: Value) -> Value:
    """The first process's value; every process must call this."""
    if not is_distributed():
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def any_rank(value: bool, device: torch.device) -> bool:
    """Whether the value is true in any process; every process must call this."""
    if not is_distributed():
        return value
    flag = torch.tensor(int(value), device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag.item())


def barrier() -> None:
    """Wait until every process has called this."""
    if is_distributed():
        distributed.barrier()
