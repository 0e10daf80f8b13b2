"""Timing of training steps, and the search for the longest that fits: what `training.py` does with each way.

Knows steps (`training_modes`) and memory, not how a model is loaded.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.training_modes import Trained, make_step

WARM_STEPS, TIMED_STEPS = 3, 7


def time_steps(trained: Trained, batch: int, text_tokens: int) -> dict[str, Any]:
    """Time training steps.

    Args:
        trained: The model.
        batch: Samples a step.
        text_tokens: Length of each answer.

    Returns:
        The median step in ms, the first one in s (what compiles is in it), the peak of allocated memory since loading,
        and the first loss, which says that every way computes the same.
    """
    step = make_step(trained, batch, text_tokens)
    reset_peak(trained.device)
    seconds, first_loss = [], 0.0
    for number in range(WARM_STEPS + TIMED_STEPS):
        synchronise(trained.device)
        start_s = time.perf_counter()
        loss = step()
        synchronise(trained.device)
        seconds.append(time.perf_counter() - start_s)
        first_loss = float(loss) if number == 0 else first_loss
    timed = sorted(seconds[WARM_STEPS:])
    return {
        "batch": batch,
        "text_tokens": text_tokens,
        "step_ms": round(timed[len(timed) // 2] * 1e3, 1),
        "peak_gib": round(peak_bytes(trained.device) / 2**30, 2),
        "first_step_s": round(seconds[0], 2),
        "first_loss": round(first_loss, 4),
    }


def longest_context(trained: Trained, limit_tokens: int, give_up_s: float) -> dict[str, Any]:
    """Search for the longest answer that a step of one sample has memory for.

    Args:
        trained: The model, in a process whose memory is limited already.
        limit_tokens: Where the search ends at the latest.
        give_up_s: Seconds after which it ends with what is known.

    Returns:
        The longest length that worked, the shortest that did not (None: none was met), to about 6 %.
    """
    start_s = time.monotonic()
    works, fails, tries = 0, None, 0
    length = 1024
    while time.monotonic() - start_s < give_up_s:
        tries += 1
        if _fits(trained, length):
            works = length
        else:
            fails = length
        if works >= limit_tokens or (fails is not None and fails - works <= max(works // 16, 256)):
            break
        length = min(2 * works, limit_tokens) if fails is None else (works + fails) // 2 // 64 * 64
    return {"batch": 1, "longest_text_tokens": works, "too_long_text_tokens": fails, "tries": tries}


def limit_memory(device: torch.device, memory_gib: float) -> None:
    """Let this process allocate no more than that."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(memory_gib * 2**30 / total, 1.0), index)


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Most memory that was allocated at once; 0 on a CPU, where nobody counts."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _fits(trained: Trained, text_tokens: int) -> bool:
    try:
        loss = make_step(trained, 1, text_tokens)()
        synchronise(trained.device)
    except torch.OutOfMemoryError:
        fits = False
    else:
        fits = bool(loss.isfinite())
    trained.model.zero_grad(set_to_none=True)
    if trained.device.type == "cuda":
        torch.cuda.empty_cache()
    return fits
