"""Reliability as Markdown tables and as an SVG picture, for the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from trainer.calibration.reliability import NUM_BINS, Bin, Reliability, Review

SIDE, LEFT, TOP, GAP = 260, 48, 34, 40
COLOURS: Final = ("#1b6ca8", "#d1495b", "#5b8c5a", "#7a5195", "#c77d0a")
_HEIGHT = TOP + SIDE + 46


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured on one set."""

    name: str
    pages: int
    is_fitted: bool
    """Whether the maps were fitted to it."""
    words: Reliability
    digits: Reliability
    digits_elsewhere: int
    """Digits that are right, but at another place of the truth's order."""
    page_error: float
    """Mean distance, over pages, of the mean confidence of a page's words and the share of them that are right."""
    reviews: tuple[Review, ...]
    """Of words."""


def report(sets: Sequence[Measured], facts: Mapping[str, Any], picture: str) -> str:
    """The document: where the figures come from, tables, and a picture by its file name."""
    lines = [
        "# Reliability of confidences",
        "",
        "<!-- Written by `python -m trainer calibrate`; do not edit by hand. -->",
        "",
        "How often words and digits are right that the model reads with a given confidence. ECE, the expected",
        "calibration error, is the mean distance of confidence and share over ten bins of equal width, weighted by",
        "their cases.",
        "[confidence.md](confidence.md) says how to use confidences.",
        "",
        f"![Reliability curves]({picture})",
        "",
        "| set | pages | words | right | confidence | ECE of words | digits | right | elsewhere | ECE of digits "
        "| error by page |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_row(each) for each in sets),
        "",
        "`error by page` is the mean distance, over pages, of the mean confidence of a page's words and the share of",
        "them that are right. `elsewhere` is the share of digits that are right, but not where an alignment with the",
        "truth has them: it is in another order. All others that are not right were misread, or are not on the page.",
        "",
        "## What a review threshold finds",
        "",
        "| set | threshold | words to review | of the wrong words, among them | of those, wrong |",
        "|---|---|---|---|---|",
        *(
            f"| {each.name} | {review.threshold:g} | {_percent(review.reviewed)} | {_percent(review.found)} "
            f"| {_percent(review.wrong)} |"
            for each in sets
            for review in each.reviews
        ),
        "",
        "## Words by confidence",
        "",
        "| set | confidence | words | mean | right |",
        "|---|---|---|---|---|",
        *(
            f"| {each.name} | {_range(found)} | {found.cases} | {found.confidence:.3f} | {found.right:.3f} |"
            for each in sets
            for found in each.words.bins
        ),
        "",
        "## Where this comes from",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
    ]
    return "\n".join(lines)


def _row(measured: Measured) -> str:
    words, digits = measured.words, measured.digits
    cells = [
        measured.name + (" (fitted to it)" if measured.is_fitted else ""),
        str(measured.pages),
        str(words.cases),
        f"{words.right:.3f}",
        f"{words.confidence:.3f}",
        f"{words.error:.3f}",
        str(digits.cases),
        *(
            (f"{digits.right:.3f}", f"{measured.digits_elsewhere / digits.cases:.3f}", f"{digits.error:.3f}")
            if digits.cases
            else ("-", "-", "-")
        ),
        f"{measured.page_error:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def _range(found: Bin) -> str:
    lower = min(int(found.confidence * NUM_BINS), NUM_BINS - 1)
    return f"{lower / NUM_BINS:g} to {(lower + 1) / NUM_BINS:g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def picture(sets: Sequence[Measured]) -> str:
    """An SVG file: reliability curves of words and of digits, a point's area by its cases."""
    width = 2 * (LEFT + SIDE) + GAP + 16
    height = _HEIGHT + 18 * len(sets)
    said = "; ".join(f"{each.name}: ECE of words {each.words.error:.3f}" for each in sets)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' role="img" font-family="system-ui, sans-serif" font-size="12" fill="#333">',
        f"<title>Reliability of confidences</title><desc>{escape(said)}</desc>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *_panel(LEFT, "Words", [each.words for each in sets]),
        *_panel(2 * LEFT + SIDE + GAP, "Digits", [each.digits for each in sets]),
    ]
    for place, (each, colour) in enumerate(zip(sets, COLOURS, strict=False)):
        y = _HEIGHT + 18 * place
        parts.append(f'<rect x="{LEFT}" y="{y - 9}" width="18" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + 26}" y="{y}">{escape(each.name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(left: int, title: str, curves: Sequence[Reliability]) -> list[str]:
    bottom = TOP + SIDE
    parts = [
        f'<text x="{left + SIDE / 2}" y="20" text-anchor="middle" font-weight="600">{title}</text>',
        f'<line x1="{left}" y1="{bottom}" x2="{left + SIDE}" y2="{TOP}" stroke="#999" stroke-dasharray="4 4"/>',
        f'<text x="{left + SIDE / 2}" y="{bottom + 32}" text-anchor="middle">confidence</text>',
        f'<text transform="translate({left - 32} {TOP + SIDE / 2}) rotate(-90)" text-anchor="middle">right</text>',
    ]
    for tick in range(0, 11, 2):
        share = tick / 10
        x, y = left + share * SIDE, bottom - share * SIDE
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + SIDE}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{share:g}</text>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{share:g}</text>')
    for curve, colour in zip(curves, COLOURS, strict=False):
        places = [(left + each.confidence * SIDE, bottom - each.right * SIDE, each) for each in curve.bins]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{2 + 10 * (each.cases / curve.cases) ** 0.5:.1f}" fill="{colour}"'
            ' fill-opacity="0.75"/>'
            for x, y, each in places
        ]
    return parts
