"""The cases on which engines are compared, and the images that they read.

Owns names, sizes and lengths, so that rows of different engines can be compared. Knows no engine. Images are noise:
speed depends on their size alone, and a row says how many tokens were written, whatever they mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

DISTINCT_IMAGES = 16
"""Requests of one case share this many images."""

SMALL_PX = (640, 640)
PAGE_PX = (1240, 1754)
"""Width and height; A4 at 150 dots per inch."""


@dataclass(frozen=True, slots=True)
class Case:
    """So many requests at once, each for one image and so many tokens."""

    name: str
    requests: int
    size_px: tuple[int, int]
    new_tokens: int

    @property
    def images(self) -> list[Image.Image]:
        """One image for each request; the same at every call."""
        distinct = noise_images(self.size_px)
        return [distinct[index % len(distinct)] for index in range(self.requests)]


CASES = (
    Case("warm", 8, SMALL_PX, 16),
    Case("warm-page", 8, PAGE_PX, 16),
    Case("ttft", 1, SMALL_PX, 1),
    Case("ttft", 1, SMALL_PX, 1),
    Case("latency", 1, SMALL_PX, 257),
    Case("latency", 1, SMALL_PX, 257),
    Case("ttft-page", 1, PAGE_PX, 1),
    Case("latency-page", 1, PAGE_PX, 257),
    Case("throughput", 256, SMALL_PX, 512),
    Case("prefill", 256, SMALL_PX, 1),
    Case("throughput-page", 128, PAGE_PX, 512),
    Case("prefill-page", 128, PAGE_PX, 1),
)
"""In the order in which they run. Of a case that runs twice, to see the first run's costs, the better one counts."""


def choose_cases(names: Iterable[str], max_requests: int | None, max_tokens: int | None) -> list[Case]:
    """Cases by name (none: all), cut down for slow devices; rows say what was really asked.

    Raises:
        ValueError: A name that no case has.
    """
    wanted = list(names)
    unknown = set(wanted) - {case.name for case in CASES}
    if unknown:
        raise ValueError(f"unknown case {', '.join(sorted(unknown))}")
    return [
        replace(
            case,
            requests=min(case.requests, max_requests or case.requests),
            new_tokens=min(case.new_tokens, max_tokens or case.new_tokens),
        )
        for case in CASES
        if not wanted or case.name in wanted
    ]


def noise_images(size_px: tuple[int, int], count: int = DISTINCT_IMAGES) -> list[Image.Image]:
    """Images of random colours, the same at every call."""
    random = np.random.default_rng(0)
    width, height = size_px
    return [Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)) for _ in range(count)]


def row_of(
    engine: str, case: Case, *, prompt_tokens: int, generated_tokens: int, wall_s: float, **more: Any
) -> dict[str, Any]:
    """The figures of one run, under the keys that all engines share; `wall_s` is from first image to last answer."""
    return {
        "engine": engine,
        "case": case.name,
        "requests": case.requests,
        "prompt_tokens": prompt_tokens,
        "new_tokens": case.new_tokens,
        "wall_s": round(wall_s, 5),
        "pages_per_s": round(case.requests / wall_s, 3),
        "tokens_per_s": round(generated_tokens / wall_s, 1),
        **more,
    }
