"""Order of a line's characters where scripts of two directions meet.

The implicit part of the Unicode bidirectional algorithm (UAX #9: P2-P3, W1-W7, N1-N2, I1-I2, L1-L2), enough for text
without embedding controls. Pillow's shaper has it too, but only for one face at a time; a line of several faces must
be cut and ordered before.

Source: Unicode Standard Annex #9, Unicode Bidirectional Algorithm.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import groupby
from typing import TypeVar

Piece = TypeVar("Piece")


def base_level(text: str) -> int:
    """Base level of a paragraph: 1 if its first strong letter runs right to left, else 0."""
    for character in text:
        kind = unicodedata.bidirectional(character)
        if kind in {"L", "R", "AL"}:
            return int(kind != "L")
    return 0


def levels(line: str, base: int) -> list[int]:
    """Embedding level of each character of a line in logical order; odd levels run right to left."""
    edge = "R" if base else "L"
    kinds = _resolve_neutrals(_resolve_weak([unicodedata.bidirectional(each) or "L" for each in line], edge), edge)
    out = []
    for kind in kinds:
        if base:
            out.append(1 if kind == "R" else 2)
        else:
            out.append({"L": 0, "R": 1}.get(kind, 2))
    end = len(line.rstrip())
    return [*out[:end], *([base] * (len(line) - end))]


def visual_order(pieces: Sequence[tuple[int, Piece]]) -> list[tuple[int, Piece]]:
    """Reorder pieces of a line, each with its level, from logical order to left to right on paper."""
    ordered = list(pieces)
    if not ordered:
        return ordered
    for level in range(max(each for each, _ in ordered), 0, -1):
        start = 0
        for is_in, group in groupby([each >= level for each, _ in ordered]):
            end = start + len(list(group))
            if is_in:
                ordered[start:end] = ordered[start:end][::-1]
            start = end
    return ordered


def _resolve_weak(kinds: list[str], edge: str) -> list[str]:
    before, strong = edge, edge
    for index, original in enumerate(kinds):  # W1-W3
        kind = before if original == "NSM" else original
        if kind in {"L", "R", "AL"}:
            strong = kind
        elif kind == "EN" and strong == "AL":
            kind = "AN"
        kinds[index] = before = kind
    kinds = ["R" if kind == "AL" else kind for kind in kinds]
    for index in range(1, len(kinds) - 1):  # W4
        left, kind, right = kinds[index - 1 : index + 2]
        if left == right and ((kind == "ES" and left == "EN") or (kind == "CS" and left in {"EN", "AN"})):
            kinds[index] = left
    for kind, start, end in _runs(kinds):  # W5-W6
        if kind == "ET":
            touches = kinds[start - 1 : start] == ["EN"] or kinds[end : end + 1] == ["EN"]
            kinds[start:end] = ["EN" if touches else "ON"] * (end - start)
    kinds = ["ON" if kind in {"ES", "CS"} else kind for kind in kinds]
    strong = edge
    for index, kind in enumerate(kinds):  # W7
        if kind in {"L", "R"}:
            strong = kind
        elif kind == "EN" and strong == "L":
            kinds[index] = "L"
    return kinds


def _resolve_neutrals(kinds: list[str], edge: str) -> list[str]:
    settled = {"L", "R", "EN", "AN"}
    sides = ["neutral" if kind not in settled else "L" if kind == "L" else "R" for kind in kinds]
    for side, start, end in _runs(sides):  # N1-N2
        if side == "neutral":
            left = sides[start - 1] if start else edge
            right = sides[end] if end < len(sides) else edge
            kinds[start:end] = [left if left == right else edge] * (end - start)
    return kinds


def _runs(kinds: Sequence[str]) -> list[tuple[str, int, int]]:
    runs, start = [], 0
    for kind, group in groupby(list(kinds)):
        end = start + len(list(group))
        runs.append((kind, start, end))
        start = end
    return runs
