"""What all Triton kernels share: compiling, launching, finding the last program of a group, splitting widths.

Kernels of one device run on one stream at a time, as they share its tickets. Used by the engine's single
thread.

Sizes in the kernels' files are constants, chosen from what was measured, and say where: "H200, 558e320" is a card and a
commit of `benchmarks/kernel_sweep.py` (or `engine_settings.py`, of the engine's constants) at the public dimensions in
bf16 unless said otherwise. Its rows, versions included, are in `benchmarks/results/`. Figures in brackets are those of
rejected or earlier values (the latter measured on a H200 at de9a6fa).

Programmatic dependent launch (`early`): a kernel may start while the one before it still runs. Each kernel then waits
(`wait_for_inputs`) before it reads what the one before wrote or writes anything, and lets its successor start only
after its own wait (`let_next_start`); so what is read before the wait may stem from the kernel before the last, or be
a weight. On Hopper and later; elsewhere, and in the interpreter, nothing of it is compiled.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.runtime.errors import OutOfResources

NUM_TICKETS = 1 << 16
_DEFAULT_STAGES = 3
"""Triton's, where a kernel's launch says nothing."""
_tickets: dict[torch.device, Tensor] = {}
_early = {"most_tokens": 64}
_rehearsed: set[Hashable] | None = None
"""Within `compiling_ahead`: what launches were asked for, each kind once."""


def tickets(device: torch.device) -> Tensor:
    """Counters that are zero between kernels, for `is_last`.

    Args:
        device: Of the kernel.

    Returns:
        `[NUM_TICKETS]` int32.

    Raises:
        RuntimeError: First call for the device while a graph is being captured: the zeros would belong to the graph.
    """
    if device not in _tickets:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("run a kernel once before capturing a graph with it")
        _tickets[device] = torch.zeros(NUM_TICKETS, dtype=torch.int32, device=device)
    return _tickets[device]


def start_early(most_tokens: int) -> None:
    """Choose for how many tokens at most kernels start before their predecessor has ended; 0: never.

    Holds for graphs captured from now on. The default was measured: a decode step of 1, 16 and 64 rows took 726, 2152
    and 3183 us without and 690, 2125 and 3126 us with it; 128 and 256 rows 4017 and 5784 us without, 4046 and 5913 us
    with it (H100 80GB, PyTorch 2.11, Triton 3.6, `benchmarks/kernel_speed.py step`).
    """
    _early["most_tokens"] = most_tokens


def early(device: torch.device, num_tokens: int) -> bool:
    """Whether kernels that work on so many tokens are to start early."""
    return num_tokens <= _early["most_tokens"] and device.type == "cuda" and _has_early_start(device)


@cache
def _has_early_start(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] >= 9


def launch_options(num_warps: int, num_stages: int, is_early: bool) -> dict[str, Any]:
    """Triton's options of a launch."""
    options: dict[str, Any] = {"num_warps": num_warps, "num_stages": num_stages}
    # Passed only when true: it is part of the key of a compiled kernel.
    return options | {"launch_pdl": True} if is_early else options


@contextmanager
def compiling_ahead(num_threads: int) -> Iterator[None]:
    """Compile the kernels that are launched within, several at once, and launch none of them.

    What kernels would have written is not there, so this is for work whose launches do not depend on results: all that
    can be captured as a graph. Leaving waits for the compiler. CUDA only.

    Args:
        num_threads: Kernels compiled at once.

    Yields:
        Nothing.
    """
    global _rehearsed  # noqa: PLW0603 - used by the engine's single thread
    with ThreadPoolExecutor(num_threads) as threads, triton.AsyncCompileMode(threads):
        _rehearsed = set()
        try:
            yield
        finally:
            _rehearsed = None


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **named: Any) -> None:
    """Start a kernel; the one place to change how that is done.

    Args:
        kernel: Whose constants follow its other arguments.
        grid: Programs.
        *arguments: Tensors of one device, the first no None; numbers; None.
        **named: All constants, and `launch_options`. Their stages are what the kernel has at most: sizes were measured
            on a card with more shared memory than others have, and where it does not suffice, fewer are tried.
    """
    if _rehearsed is not None:
        _compile_once(kernel, grid, arguments, named)
        return
    try:
        kernel[grid](*arguments, **named)
    except OutOfResources as error:
        stages = named.get("num_stages", _DEFAULT_STAGES)
        if error.name != "shared memory" or stages == 1:
            raise
        launch(kernel, grid, *arguments, **named | {"num_stages": stages - 1})


def _compile_once(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Layers launch the same kinds again and again, and asking the compiler costs the host a millisecond each time."""
    assert _rehearsed is not None
    kind = (kernel, *map(_kind, arguments), *named.items())
    if kind not in _rehearsed:
        _rehearsed.add(kind)
        kernel.run(*arguments, grid=grid, warmup=True, **named)


def _kind(argument: Any) -> Hashable:
    """All that a compiled kernel may depend on: of a tensor its type and whether it begins at a multiple of 16."""
    return (argument.dtype, argument.data_ptr() % 16) if isinstance(argument, Tensor) else argument


def split_width(width: int) -> tuple[int, int]:
    """Cut a row into two powers of two, so that one program holds it whole with few lanes idle.

    Args:
        width: Numbers of a row.

    Returns:
        Widths of the parts, the second 0 if it is not worth it; their sum is at least `width`.
    """
    whole = triton.next_power_of_2(width)
    if whole * 0.85 <= width:
        return whole, 0
    return whole // 2, triton.next_power_of_2(width - whole // 2)


@triton.jit
def wait_for_inputs(EARLY: tl.constexpr) -> None:
    """Wait until the kernel before has ended and its results can be read."""
    if EARLY:
        gdc_wait()


@triton.jit
def let_next_start(EARLY: tl.constexpr) -> None:
    """Allow the next kernel's programs to take the room that this kernel's leave."""
    if EARLY:
        gdc_launch_dependents()


@triton.jit
def is_last(ticket: tl.tensor, count: tl.tensor) -> tl.tensor:
    """Whether this program is the last of `count` to arrive; what the others stored before can then be read."""
    tl.debug_barrier()
    arrived = tl.atomic_add(ticket, 1, sem="acq_rel")
    last = arrived == count - 1
    if last:
        tl.store(ticket, 0)
    return last
