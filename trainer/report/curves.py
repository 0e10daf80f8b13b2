"""A training run's log as curves: losses and error rates by step. Knows the log's format, not how it is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.training.events import read_events

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Curves:
    """Points `(step, value)`; empty if the log has none."""

    loss: Points = ()
    learning_rate: Points = ()
    cer: Points = ()
    """Of held-out pages, as a share."""
    forgetting_cer: Points = ()
    """Of general pages that must not get worse."""
    base_cer: float | None = None
    """Of the held-out pages before the first step."""


def read_curves(path: Path) -> Curves:
    """Read curves from a run's log, which need not exist: one JSON event a line.

    A line that was cut by a kill is skipped. After a resume, later values of a step replace earlier ones.
    """
    series: dict[str, dict[float, float]] = {"loss": {}, "learning_rate": {}, "cer": {}, "forgetting_cer": {}}
    base_cer = None
    for event in read_events(path):
        step = _number(event.get("step"))
        if event.get("event") == "base":
            base_cer = _number(event.get("cer"))
        if step is None:
            continue
        if event.get("event") == "start":
            # Steps after a checkpoint are repeated.
            for points in series.values():
                for later in [each for each in points if each > step]:
                    del points[later]
        for name, points in series.items():
            value = _number(event.get(name))
            if value is not None:
                points[step] = value
    found = {name: tuple(sorted(points.items())) for name, points in series.items()}
    return Curves(**found, base_cer=base_cer)


def thinned(points: Points, most: int = 300) -> Points:
    """At most `most` points by step: means of neighbours where there are more."""
    size = -(-len(points) // most) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple(
        (sum(step for step, _ in group) / len(group), sum(value for _, value in group) / len(group)) for group in groups
    )


def _number(value: object) -> float | None:
    """A finite number; log files may hold NaN."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < float("inf") else None  # type: ignore[arg-type] # a number here
