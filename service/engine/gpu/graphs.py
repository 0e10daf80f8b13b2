"""Captured graphs: decode steps for any number of rows, and prefills of few short prompts, padded to the next size.

Owns the sizes, the graphs and the tensors that they read. Knows nothing of what a step does. On a device without graphs
the work is called as it is, padded all the same. Used by the engine's single thread.

Launching a prefill's kernels one by one takes the host 5.5 ms for any prompt; captured, it takes 0.6 to 1.3 ms.
Prompts of 276, 906 and 3864 tokens take 2.2, 3.4 and 9.0 ms captured, 5.5, 5.7 and 9.0 ms launched (H200, 558e320, see
`kernels.launch`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.gpu.paged_cache import to_device
from service.engine.gpu.prompts import PromptBatch, lay_out

BUCKETS = (*range(1, 9), *range(10, 17, 2), *range(20, 33, 4), *range(40, 65, 8), *range(80, 257, 16))
"""Rows of a captured step. A row of padding costs what its part of the experts and of the logits costs, and no
attention. In the mean of 1 to 256 rows these sizes cost 2.1 % of time over a graph for every number, half as many 4.4
%, powers of two 13.2 %; all are captured in 0.5 s (H100, 3aebed2, see `kernels.launch`)."""
PROMPT_BUCKETS = (*range(64, 1024, 64), *range(1024, 2048, 128), *range(2048, 4097, 256))
"""Tokens of a captured prefill. 64 tokens of padding cost 0.15 ms (H200, 558e320)."""
MAX_PROMPTS = 16
"""Prompts of a captured prefill. With 16 instead of 4 a prompt of 276 tokens takes 2.28 ms instead of 2.22, and 14 of
them take the host 1.3 ms instead of 6.2 (H200, 558e320)."""

Result = TypeVar("Result")


def buckets_for(max_rows: int) -> tuple[int, ...]:
    """Batch sizes to capture, ascending; the last holds all rows."""
    return (*(bucket for bucket in BUCKETS if bucket < max_rows), max_rows)


class StepGraphs:
    """Calls a step with as many rows as one of the buckets has.

    Args:
        step: Takes `slots_B`, int64, and gives a report `[B, columns]` and logits `[B, V]`; must not wait for the
            device.
        max_rows: Rows at most.
        scratch_slot: The slot that padding rows name.
        device: Where the step runs.
        is_captured: Whether graphs are to be used; CUDA only.
    """

    def __init__(
        self,
        step: Callable[[Tensor], tuple[Tensor, Tensor]],
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
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, BorrowedTensor]] = {}

    def warm_up(self, pool: Any) -> None:
        """Compile what a step needs, capture the graphs, and wait for all that.

        Args:
            pool: Memory that no two graphs use at once.
        """
        if self._device.type != "cuda":
            return
        # The largest first, so that the others reuse its memory.
        for bucket in reversed(self._buckets):
            slots_B = self._slots_B[:bucket]
            self._step(slots_B)
            torch.cuda.synchronize(self._device)
            if not self._is_captured:
                continue
            graph, (report_BC, logits_BV) = capture(partial(self._step, slots_B), pool)
            self._graphs[bucket] = graph, report_BC, BorrowedTensor(logits_BV)
        torch.cuda.synchronize(self._device)

    def rehearse(self) -> None:
        """Call the step with every number of rows that will be; for `launch.compiling_ahead`."""
        for bucket in self._buckets:
            self._step(self._slots_B[:bucket])

    def run(self, slots: Sequence[int], *, wants_logits: bool = False) -> tuple[Tensor, Tensor | None]:
        """Enqueue a step.

        Args:
            slots: Rows, none twice.
            wants_logits: Whether the logits are needed.

        Returns:
            What the step gives for them, `[len(slots), columns]` and `[len(slots), V]`; valid until another graph is
            replayed, so what reads them is to be enqueued at once.
        """
        count = len(slots)
        bucket = next(bucket for bucket in self._buckets if bucket >= count)
        padded = [*slots, *[self._scratch_slot] * (bucket - count)]
        if self._named[:bucket] != padded:
            self._named[:bucket] = padded
            self._slots_B[:bucket] = to_device(np.array(padded), self._device)
        captured = self._graphs.get(bucket)
        if captured is None:
            report_BC, logits_BV = self._step(self._slots_B[:bucket])
            return report_BC[:count], logits_BV[:count]
        graph, report_BC, borrowed = captured
        graph.replay()
        return report_BC[:count], borrowed.tensor()[:count] if wants_logits else None


class PromptGraphs:
    """Calls a prefill with as many tokens as one of the buckets has, for few short prompts.

    Args:
        prefill: Gives `[R, V]`; must not wait for the device.
        image_id: Of image tokens.
        hidden_size: Width of vision tokens.
        device: Where it runs.
        dtype: Type of vision tokens.
        is_captured: Whether graphs are to be used; CUDA only.
        has_adapters: Whether prompts may have adapters.
    """

    def __init__(
        self,
        prefill: Callable[[PromptBatch], Tensor],
        *,
        image_id: int,
        hidden_size: int,
        device: torch.device,
        dtype: torch.dtype,
        is_captured: bool,
        has_adapters: bool = False,
    ) -> None:
        self._prefill = prefill
        self._has_adapters = has_adapters
        self._image_id = image_id
        self._device = device
        self._is_captured = is_captured and device.type == "cuda"
        most = PROMPT_BUCKETS[-1]
        self._numbers = torch.zeros(self._num_numbers(most), dtype=torch.int64, device=device)
        self._features_IH = torch.zeros((most, hidden_size), dtype=dtype, device=device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def takes(self, prompts: Sequence[Sequence[int]]) -> bool:
        """Whether prompts are few and short enough."""
        return len(prompts) <= MAX_PROMPTS and sum(map(len, prompts)) <= PROMPT_BUCKETS[-1]

    def warm_up(self, pool: Any) -> None:
        """Compile what a prefill needs, capture the graphs, and wait for all that.

        Args:
            pool: Memory that no two graphs use at once.
        """
        if not self._is_captured:
            return
        for bucket in reversed(PROMPT_BUCKETS):
            self._fill_for_capture(bucket)
            self._read(bucket)
            torch.cuda.synchronize(self._device)
            self._graphs[bucket] = capture(partial(self._read, bucket), pool)
        torch.cuda.synchronize(self._device)

    def rehearse(self) -> None:
        """Read every number of tokens that will be captured; for `launch.compiling_ahead`."""
        for bucket in PROMPT_BUCKETS if self._is_captured else ():
            self._fill_for_capture(bucket)
            self._read(bucket)

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        cells: Sequence[NDArray[np.int64]],
        features: Sequence[Tensor],
        adapters: Sequence[int] = (),
    ) -> Tensor:
        """Enqueue a prefill.

        Args:
            prompts: Ids of each; `takes` is true of them.
            cells: Where each prompt's keys go.
            features: Vision tokens, in the order of the image tokens.
            adapters: Of each prompt, where prompts may have them.

        Returns:
            Logits `[len(prompts), V]`; valid until the next call.
        """
        total = sum(map(len, prompts))
        bucket = next(bucket for bucket in PROMPT_BUCKETS if bucket >= total)
        self._fill(prompts, cells, features, adapters, bucket)
        captured = self._graphs.get(bucket)
        if captured is None:
            return self._read(bucket)[: len(prompts)]
        graph, logits_RV = captured
        graph.replay()
        return logits_RV[: len(prompts)]

    def _fill_for_capture(self, bucket: int) -> None:
        """Little but padding: one prompt as long as the bucket may have more tokens than there are positions."""
        self._fill([[0]], [np.full(1, -1)], [], [-1], bucket)

    def _fill(
        self,
        prompts: Sequence[Sequence[int]],
        cells: Sequence[NDArray[np.int64]],
        features: Sequence[Tensor],
        adapters: Sequence[int],
        bucket: int,
    ) -> None:
        numbers = lay_out(
            prompts,
            cells,
            self._image_id,
            num_tokens=bucket,
            num_prompts=MAX_PROMPTS,
            adapters=adapters if self._has_adapters else None,
        )
        # The stream keeps the order: what an earlier replay reads is read before it is overwritten here.
        self._numbers[: len(numbers)] = to_device(numbers, self._device)
        first = 0
        for part in features:
            self._features_IH[first : first + len(part)] = part
            first += len(part)

    def _read(self, bucket: int) -> Tensor:
        numbers = self._numbers[: self._num_numbers(bucket)]
        batch = PromptBatch.unpack(
            numbers, bucket, MAX_PROMPTS, self._features_IH, bucket, has_adapters=self._has_adapters
        )
        return self._prefill(batch)

    def _num_numbers(self, bucket: int) -> int:
        return (5 if self._has_adapters else 4) * bucket + 2 * MAX_PROMPTS + 2


class BorrowedTensor:
    """A graph's tensor in memory that later captures may use as well; it has its values from a replay to the next.

    The logits of all captured steps by themselves would take a gigabyte at 256 rows and 129,280 tokens.

    Args:
        tensor: Made while a graph was captured; not kept.
    """

    def __init__(self, tensor: Tensor) -> None:
        assert tensor.is_contiguous()
        self._device, self._dtype, self._shape = tensor.device, tensor.dtype, tensor.shape
        # What `torch.as_tensor` looks for; it keeps this object, which has no claim to the memory.
        self.__cuda_array_interface__ = {
            "shape": (tensor.nbytes,),
            "typestr": "|u1",
            "data": (tensor.data_ptr(), False),
            "version": 3,
        }

    def tensor(self) -> Tensor:
        """The tensor as it is now."""
        return torch.as_tensor(self, device=self._device).view(self._dtype).view(self._shape)


def capture(work: Callable[[], Result], pool: Any) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Capture work that has run before; the device must be idle.

    Args:
        work: Enqueues, never waits.
        pool: Memory of the graph.

    Returns:
        The graph, and what the work gives, whose tensors it writes.
    """
    graph = torch.cuda.CUDAGraph()
    # Our other threads must not use CUDA during a capture; those of libraries may query it.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = work()
    return graph, result
