"""A plot of a few lines as SVG text; both axes are logarithmic, since the data spans orders of magnitude on both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

COLOURS = ("#1b6ca8", "#d1495b", "#5b8c5a", "#7a5195", "#c77d0a")
WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 36, 46
STEPS = (1, 2, 5)
"""Labelled values of a decade."""


@dataclass(frozen=True, slots=True)
class Line:
    """Points above zero, and what they are called."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes."""

    title: str
    x_name: str
    y_name: str
    lines: Sequence[Line]


def draw(panels: Sequence[Panel]) -> str:
    """An SVG file with panels side by side, each with at least one point."""
    width = WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}"'
        ' font-family="system-ui, sans-serif" font-size="12" fill="#333">',
        f'<rect width="{width}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for place, panel in enumerate(panels):
        parts += [f'<g transform="translate({place * WIDTH} 0)">', *_panel(panel), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel) -> list[str]:
    xs = [x for line in panel.lines for x, _ in line.points]
    ys = [y for line in panel.lines for _, y in line.points]
    across = _Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    up = _Axis(min(ys) / 1.2, max(ys) * 1.2, HEIGHT - BOTTOM, TOP)
    parts = [_text(WIDTH / 2, 18, panel.title, weight="600")]
    for value in sorted(set(xs)):
        parts.append(_rule(across.place(value), TOP, across.place(value), HEIGHT - BOTTOM))
        parts.append(_text(across.place(value), HEIGHT - BOTTOM + 16, f"{value:g}"))
    for value in up.ticks():
        parts.append(_rule(LEFT, up.place(value), WIDTH - RIGHT, up.place(value)))
        parts.append(_text(LEFT - 6, up.place(value) + 4, f"{value:g}", anchor="end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, panel.x_name))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text transform="translate(14 {middle:.1f}) rotate(-90)" text-anchor="middle">{escape(panel.y_name)}</text>'
    )
    for colour, (index, line) in zip(COLOURS, enumerate(panel.lines), strict=False):
        places = [(across.place(x), up.place(y)) for x, y in sorted(line.points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(f'<text x="{LEFT + 10}" y="{TOP + 16 + 16 * index}" fill="{colour}">{escape(line.name)}</text>')
    return parts


@dataclass(frozen=True, slots=True)
class _Axis:
    """Values to places, logarithmic."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        if self.high == self.low:
            return (self.start + self.end) / 2
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = [step * 10.0**decade for decade in decades for step in STEPS]
        return [value for value in values if self.low <= value <= self.high]


def _text(x: float, y: float, text: str, *, anchor: str = "middle", weight: str = "400") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'
