"""Charts as inline SVG: curves over steps, and rates with their intervals.

Colours are the page's variables, so that one picture fits light and dark. Each has a title and a description for
those who cannot see it. Does not know training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 40
WIDE, ROW_PX, LABEL_PX, VALUE_PX = 1080, 30, 300, 90


@dataclass(frozen=True, slots=True)
class Line:
    """Points and their style: `kind` is a class of the style sheet."""

    name: str
    kind: str
    points: Sequence[tuple[float, float]]
    has_dots: bool = False
    has_line: bool = True


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its interval, on a row of its own."""

    name: str
    kind: str
    value: float
    low: float
    high: float


def curves(
    identity: str,
    title: str,
    lines: Sequence[Line],
    form: Callable[[float], str],
    axis_form: Callable[[float], str],
    level: Line | None = None,
    across_name: str = "step",
) -> str:
    """An `svg` element of lines over steps, from zero up.

    Args:
        identity: id of the picture, unique in the page.
        title: what it shows.
        lines: each with at least one point.
        form: formats values.
        axis_form: formats round values at the axis.
        level: a value to compare with, drawn across; the steps of its points are ignored.
        across_name: what a step is.

    Returns:
        An `svg` element.
    """
    steps = [step for line in lines for step, _ in line.points]
    values = [value for line in (*lines, *([level] if level else [])) for _, value in line.points]
    across = _Axis(min(*steps, 0), max(steps), LEFT, WIDTH - RIGHT)
    top = max(values)
    up = _Axis(0, top * 1.06 if top > 0 else 1, HEIGHT - BOTTOM, TOP)
    parts = []
    for value in up.ticks():
        parts.append(_rule(LEFT, up.place(value), WIDTH - RIGHT, up.place(value)))
        parts.append(_text(LEFT - 8, up.place(value) + 4, axis_form(value), "end"))
    parts += [_text(across.place(value), HEIGHT - BOTTOM + 18, f"{value:g}") for value in across.ticks()]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, across_name))
    if level is not None:
        height = up.place(level.points[0][1])
        parts.append(
            f'<line class="{level.kind}" x1="{LEFT}" y1="{height:.1f}" x2="{WIDTH - RIGHT}" y2="{height:.1f}"/>'
        )
    for line in lines:
        places = [(across.place(step), up.place(value)) for step, value in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        if line.has_line:
            parts.append(f'<polyline class="{line.kind}" points="{path}"/>')
        if line.has_dots or len(places) == 1:
            parts += [f'<circle class="{line.kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in places]
    last = "; ".join(
        f"{line.name}: {form(line.points[0][1])} at {across_name} {line.points[0][0]:g}, "
        f"{form(line.points[-1][1])} at {across_name} {line.points[-1][0]:g}"
        for line in lines
    )
    return _svg(identity, title, last, WIDTH, HEIGHT, parts)


def intervals(
    identity: str,
    title: str,
    rows: Sequence[Interval],
    form: Callable[[float], str],
    axis_form: Callable[[float], str],
) -> str:
    """An `svg` element of values as dots with their intervals as lines, one row each; arguments as for `curves`."""
    width, height = WIDE, ROW_PX * len(rows) + BOTTOM
    axis = _Axis(0, max(max(row.high for row in rows) * 1.02, 1e-9), LABEL_PX, width - VALUE_PX)
    bottom = ROW_PX * len(rows)
    parts = []
    for value in axis.ticks():
        parts.append(_rule(axis.place(value), 4, axis.place(value), bottom))
        parts.append(_text(axis.place(value), bottom + 18, axis_form(value)))
    for place, row in enumerate(rows):
        middle = ROW_PX * place + ROW_PX / 2
        low, high, at = axis.place(row.low), axis.place(row.high), axis.place(row.value)
        parts.append(_text(LABEL_PX - 10, middle + 4, row.name, "end"))
        parts.append(f'<line class="{row.kind}" x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}"/>')
        parts.append(f'<circle class="{row.kind}" cx="{at:.1f}" cy="{middle}" r="5"/>')
        parts.append(_text(width - VALUE_PX + 10, middle + 4, form(row.value), "start"))
    said = "; ".join(f"{row.name}: {form(row.value)}, from {form(row.low)} to {form(row.high)}" for row in rows)
    return _svg(identity, title, said, width, height, parts)


@dataclass(frozen=True, slots=True)
class _Axis:
    """A linear scale from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values for an axis, at most that many."""
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        rough = span / most
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * each for each in (1, 2, 5, 10) if size * each >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [round(step * number, 12) for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _svg(identity: str, title: str, description: str, width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg role="img" aria-labelledby="{identity}-t {identity}-d" viewBox="0 0 {width} {height}">'
        f'<title id="{identity}-t">{escape(title)}</title><desc id="{identity}-d">{escape(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="rule" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
