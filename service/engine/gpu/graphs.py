"""One decode step for any number of rows: a captured graph for each of some batch sizes, padded up to the next.

Owns the buckets, the graphs and the tensor that names the rows. Knows nothing of what a step does. On a device without
graphs the step is called as it is, padded all the same. Used by the engine's single thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from service.engine.gpu.paged_cache import to_device

BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
"""Rows of a captured step. A row of padding costs what its part of the experts and of the logits costs, and no
attention; the sizes were not tuned."""


def buckets_for(max_rows: int) -> tuple[int, ...]:
    """Batch sizes to capture, ascending; the last holds all rows."""
    return (*(bucket for bucket in BUCKETS if bucket < max_rows), max_rows)


class StepGraphs:
    """Calls a step with as many rows as one of the buckets has.

    Args:
        step: Takes `slots_B`, int64, and gives `[B, columns]`; must not wait for the device.
        max_rows: Rows at most.
        scratch_slot: The slot that padding rows name.
        device: Where the step runs.
        is_captured: Whether graphs are to be used; CUDA only.
    """

    def __init__(
        self,
        step: Callable[[Tensor], Tensor],
        *,
        max_rows: int,
        scratch_slot: int,
        device: torch.device,
        is_captured: bool,
    ) -> None:
        self._step = step
        self._scratch_slot = scratch_slot
        self._device = device
        self._is_captured = is_captured and device.type == "cuda"
        self._buckets = buckets_for(max_rows)
        self._named: list[int] = [scratch_slot] * max_rows
        self._slots_B = torch.full((max_rows,), scratch_slot, dtype=torch.int64, device=device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def warm_up(self) -> None:
        """Compile what a step needs, capture the graphs, and wait for all that."""
        if self._device.type != "cuda":
            return
        pool: Any = torch.cuda.graph_pool_handle()
        # The largest first, so that the others fit into its memory.
        for bucket in reversed(self._buckets):
            slots_B = self._slots_B[:bucket]
            self._step(slots_B)
            torch.cuda.synchronize(self._device)
            if not self._is_captured:
                continue
            graph = torch.cuda.CUDAGraph()
            # Other threads may not use CUDA here, but those of libraries may ask it things.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                report_BC = self._step(slots_B)
            self._graphs[bucket] = graph, report_BC
        torch.cuda.synchronize(self._device)

    def run(self, slots: Sequence[int]) -> Tensor:
        """Enqueue a step.

        Args:
            slots: Rows, none twice.

        Returns:
            What the step gives for them, `[len(slots), columns]`; valid until the next call.
        """
        count = len(slots)
        bucket = next(bucket for bucket in self._buckets if bucket >= count)
        padded = [*slots, *[self._scratch_slot] * (bucket - count)]
        if self._named[:bucket] != padded:
            self._named[:bucket] = padded
            self._slots_B[:bucket] = to_device(np.array(padded), self._device)
        captured = self._graphs.get(bucket)
        if captured is None:
            return self._step(self._slots_B[:bucket])[:count]
        graph, report_BC = captured
        graph.replay()
        return report_BC[:count]
