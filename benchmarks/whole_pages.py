"""Pages through an engine in this process: read them, and see how long others stand still meanwhile. Any device."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from service.engine.engine import TorchEngine
from service.engine.protocol import SamplingParams, SequenceFailure, SequenceRequest, SequenceResult
from shared.deepseek_ocr.forms import PageImage, PreparedPage
from shared.deepseek_ocr.geometry import GeometryConfig, plan_views

DISTINCT_IMAGES = 16


def sync() -> None:
    """Wait for the device, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def images_of(size: tuple[int, int], geometry: GeometryConfig, count: int) -> list[PageImage]:
    """Pages of noise as the service sends them to a GPU, at most 16 of them different."""
    noise = np.random.default_rng(0)
    plan = plan_views(*size, geometry.default_mode, geometry)
    different = [
        PageImage(plan, noise.integers(0, 256, (size[1], size[0], 3), np.uint8))
        for _ in range(min(count, DISTINCT_IMAGES))
    ]
    return [different[index % len(different)] for index in range(count)]


def submit(engine: TorchEngine, pages: Sequence[PreparedPage], tokens: int, name: str) -> None:
    """Hand pages over, for the base model."""
    for index, page in enumerate(pages):
        engine.submit(SequenceRequest(f"{name}-{index}", page, "", SamplingParams(tokens), engine.info.model_id))


def read(engine: TorchEngine, pages: Sequence[PreparedPage], tokens: int, name: str) -> tuple[float, int, float]:
    """Read pages that arrive together, each to its last token.

    Args:
        engine: A warm one, with nothing to do.
        pages: In either form.
        tokens: Of each answer.
        name: What the sequences' ids begin with.

    Returns:
        Seconds in all, steps, and seconds that the slowest page took from its first token to its last.

    Raises:
        SystemExit: A page failed.
    """
    sync()
    steps, began_s = engine.stats().steps, time.perf_counter()
    submit(engine, pages, tokens, name)
    results: list[SequenceResult] = []
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, SequenceFailure):
                raise SystemExit(f"{event.sequence_id}: {event.detail}")
            if isinstance(event, SequenceResult):
                results.append(event)
    wall_s = time.perf_counter() - began_s
    assert [result.completion_tokens for result in results] == [tokens] * len(pages)
    return wall_s, engine.stats().steps - steps, max(result.timings.generate_s for result in results)


def longest_gap_s(
    engine: TorchEngine,
    running: Sequence[PreparedPage],
    coming: Sequence[PreparedPage],
    *,
    tokens: int,
    head_start: int,
) -> float:
    """The longest time between two steps while pages run and others are begun.

    Args:
        engine: A warm one, with nothing to do.
        running: Pages whose tokens are awaited.
        coming: Pages that arrive later, of one token.
        tokens: Of each running page; enough to outlast the others.
        head_start: Steps before the others arrive.

    Returns:
        Seconds.
    """
    submit(engine, running, tokens, "running")
    for _ in range(head_start):
        engine.step()
    submit(engine, coming, 1, "coming")
    longest_s, last_s, left = 0.0, time.perf_counter(), len(coming)
    while engine.has_work:
        events = engine.step()
        now_s = time.perf_counter()
        if left:
            longest_s = max(longest_s, now_s - last_s)
        left -= sum(isinstance(each, SequenceResult) and each.sequence_id.startswith("coming") for each in events)
        last_s = now_s
    return longest_s
