"""Decisions that all processes of a distributed run must take alike: continue, stop, read.

The library splits batches and sums gradients. A single process decides alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import torch
from torch import distributed

from trainer.training.errors import TrainingCode, TrainingError

Value = TypeVar("Value")
_LOST: Final = ("gloo", "Connection reset by peer", "Connection closed by peer", "NCCL")
"""How the backends' errors, which have no class of their own, name a connection that broke."""


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


@contextmanager
def reporting_lost_processes() -> Iterator[None]:
    """Turn a broken connection between the run's processes into an error that says what to do.

    Yields:
        Nothing.

    Raises:
        TrainingError: another process ended (`process_lost`).
    """
    try:
        yield
    except RuntimeError as error:
        is_lost = isinstance(error, distributed.DistError) or any(words in str(error) for words in _LOST)
        if not (is_distributed() and is_lost):
            raise
        raise TrainingError(
            TrainingCode.PROCESS_LOST,
            f"process {distributed.get_rank()} lost another process of this run, which ended or was killed",
            "see what that one has printed; with --resume the same command continues from the newest checkpoint, if "
            "there is one",
        ) from error
