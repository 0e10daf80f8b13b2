"""What the processes of one run have to agree on, each of which may see the world a moment earlier than the others.

The library splits batches and sums gradients; this is for decisions: go on, stop, read. Alone, a process agrees with
itself.
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
    """What the first process says; every process has to ask."""
    if not is_distributed():
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def any_rank(value: bool, device: torch.device) -> bool:
    """Whether any process says yes; every process has to ask."""
    if not is_distributed():
        return value
    flag = torch.tensor(int(value), device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag.item())


def barrier() -> None:
    """Wait until every process is here."""
    if is_distributed():
        distributed.barrier()
