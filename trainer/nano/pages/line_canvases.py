"""Canvases of lines as a reader of lines gets them, with a line of truth for each strip.

A drawn page, or one of a PDF, goes through the finder and the packer that reading uses (`shared.images`), and its marks
say what is on each strip. So what the finder gets wrong is learnt from too: a strip of dirt is an empty line, and a
piece of a word is what is left of it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Protocol

import cv2
import numpy as np
from PIL import Image

from shared.images.canvases import EDGE_EM, EM_PX, LOW_PX, MARGIN_PX, SIDE_PX, Canvas, Piece, Strip, pack
from shared.images.reading_order import reading_order
from shared.images.segments import LevelPage, find_segments
from shared.images.strip_cutting import cut_strips
from trainer.data.render.degrade import degrade
from trainer.nano.fonts.glyphs import Ink

DEGRADED_SHARE: Final = 0.4
"""Pages that are spoilt before their lines are looked for; all canvases are spoilt while nano trains."""
EFFECTS: Final = (
    "blur", "rescale", "bleed", "contrast", "texture", "shadow", "noise", "speckles", "threshold", "inverted", "jpeg",
)  # fmt: skip
"""Those of `degrade` that leave everything in its place."""
NEIGHBOURS_SHARE: Final = 0.15
EM_RANGE_PX: Final = (0.75 * EM_PX, 1.6 * EM_PX)
"""Print is cut out at `EM_PX`, and at up to half more where a reader is unsure (`LARGE_EM_PX`)."""
MOST_LINES: Final = (5, 20)
LOW_SHARE: Final = 0.7
LOW_LINES: Final = (2, 7)
"""On low canvases, which a CPU reads pages by: several short answers side by side take fewer steps than a long one."""
MAX_TRIES: Final = 30
EDGE_REACH_EM: Final = 0.06
ROWS_REACH_EM: Final = 0.35
"""How far above or below a segment the middle of one of its characters may be."""


class MarkedPage(Protocol):
    """A drawn page."""

    @property
    def ink(self) -> Ink:
        """[height, width], 255 is paper."""

    @property
    def text(self) -> str:
        """The truth."""

    @property
    def marks(self) -> Sequence[tuple[float, float, str]]:
        """x, y and character of each of the truth's."""


@dataclass(frozen=True, slots=True)
class CanvasSample:
    """A canvas and what is written on it, as `trainer.nano.pages.render.RenderedPage` has them.

    Attributes:
        ink: [height, width], 255 is paper.
        text: a line for each strip, empty for one without print.
        marks: x, y and character.
    """

    ink: Ink
    text: str
    marks: tuple[tuple[float, float, str], ...]


class LineCanvases:
    """Cuts pages into canvases; each call gives the next one.

    Args:
        draw: gives a page.
        seed: of size, number of lines and degradation.
    """

    def __init__(self, draw: Callable[[], MarkedPage], seed: int) -> None:
        self._draw = draw
        self._rng = Random(seed)
        self._waiting: deque[CanvasSample] = deque()

    def next(self) -> CanvasSample:
        """A canvas.

        Returns:
            The next one of a page, or the first of a new page.

        Raises:
            RuntimeError: no page gave one.
        """
        for _ in range(MAX_TRIES):
            if self._waiting:
                return self._waiting.popleft()
            found = self._cut(self._draw())
            self._rng.shuffle(found)
            self._waiting.extend(found)
        raise RuntimeError(f"none of {MAX_TRIES} pages gave a canvas of lines")

    def _cut(self, page: MarkedPage) -> list[CanvasSample]:
        rng = self._rng
        ink = page.ink
        if rng.random() < DEGRADED_SHARE:
            names = tuple(name for name in EFFECTS if rng.random() < 0.3)
            ink, _ = degrade(ink, np.random.default_rng(rng.getrandbits(32)), names)
        level = find_segments(Image.fromarray(ink).convert("RGB"))
        em_px = math.exp(rng.uniform(*map(math.log, EM_RANGE_PX)))
        keeps_neighbours = rng.random() < NEIGHBOURS_SHARE
        strips = cut_strips(level, reading_order(level.segments, level.rules), em_px, keeps_neighbours=keeps_neighbours)
        truth = _Truth(page.text)
        marks = _Marks(page.marks, level)
        is_low = rng.random() < LOW_SHARE
        most_lines, most_px = (LOW_LINES, LOW_PX) if is_low else (MOST_LINES, SIDE_PX)
        samples = []
        for canvas in pack(strips, em_px, rng.randint(*most_lines), most_px):
            sample = _sample(canvas, level, marks, truth, em_px)
            if sample is not None:
                samples.append(sample)
        return samples


class _Truth:
    """Where words end in a page's text."""

    def __init__(self, text: str) -> None:
        words = text.split()
        self._compact = "".join(words)
        ends = np.cumsum([len(word) for word in words])
        self._starts = frozenset([0, *ends.tolist()])

    def spaced(self, characters: str) -> str | None:
        """Characters of a line with the spaces that they have in the text; None if they are not in it in this order."""
        best: str | None = None
        at = self._compact.find(characters)
        while at >= 0:
            end = at + len(characters)
            cuts = [place for place in range(at + 1, end) if place in self._starts]
            best = " ".join(self._compact[a:b] for a, b in zip([at, *cuts], [*cuts, end], strict=True))
            if at in self._starts and end in self._starts:
                return best
            at = self._compact.find(characters, at + 1)
        return best


class _Marks:
    """A page's characters by segment."""

    def __init__(self, marks: Sequence[tuple[float, float, str]], level: LevelPage) -> None:
        xy = np.array([(x, y) for x, y, _ in marks], np.float64).reshape(-1, 2)
        if level.turn is not None and len(xy):
            forth: Any = cv2.invertAffineTransform(level.turn)
            xy = xy @ forth[:, :2].T + forth[:, 2]
        self._xy = xy
        self._characters = [character for _, _, character in marks]
        self._owner = np.full(len(xy), -1)
        far = np.full(len(xy), np.inf)
        for index, segment in enumerate(level.segments):
            x1, y1, x2, y2 = segment.box
            reach = ROWS_REACH_EM * segment.em_px
            inside = (xy[:, 0] > x1 - reach) & (xy[:, 0] < x2 + reach)
            inside &= (xy[:, 1] > y1 - reach) & (xy[:, 1] < y2 + reach)
            distance = np.abs(xy[:, 1] - segment.middle) + np.maximum(np.maximum(x1 - xy[:, 0], xy[:, 0] - x2), 0)
            closer = inside & (distance < far)
            self._owner[closer], far[closer] = index, distance[closer]

    def of_piece(self, piece: Piece, level: LevelPage) -> list[tuple[float, float, str]]:
        """Characters of a piece, from left to right."""
        words = level.segments[piece.segment].words
        low = -np.inf if piece.first_word == 0 else (words[piece.first_word - 1][1] + words[piece.first_word][0]) / 2
        high = (
            np.inf if piece.last_word == len(words) else (words[piece.last_word - 1][1] + words[piece.last_word][0]) / 2
        )
        # What a strip does not show is not asked for, such as a period that the finder missed.
        reach = EDGE_REACH_EM * level.segments[piece.segment].em_px
        low, high = max(low, piece.x1 - reach), min(high, piece.x2 + reach)
        x = self._xy[:, 0]
        chosen = np.flatnonzero((self._owner == piece.segment) & (x >= low) & (x < high))
        order = chosen[np.argsort(x[chosen], kind="stable")]
        return [(float(self._xy[i, 0]), float(self._xy[i, 1]), self._characters[i]) for i in order]


def _sample(canvas: Canvas, level: LevelPage, marks: _Marks, truth: _Truth, em_px: float) -> CanvasSample | None:
    """A canvas with its truth; None if that cannot be told."""
    lines: list[str] = []
    placed: list[tuple[float, float, str]] = []
    for strip, top in zip(canvas.strips, canvas.tops_px, strict=True):
        found = [marks.of_piece(piece, level) for piece in strip.pieces]
        line = _line(found, truth)
        if line is None:
            return None
        lines.append(line)
        for piece, characters in zip(strip.pieces, found, strict=True):
            placed += [_on_canvas(mark, piece, strip, top, em_px) for mark in characters]
    if not placed:
        return None
    height, width = canvas.pixels_HW.shape
    placed = [(x, y, c) for x, y, c in placed if 0 <= x < width and 0 <= y < height]
    return CanvasSample(canvas.pixels_HW, "\n".join(lines), tuple(placed))


def _line(found: Sequence[Sequence[tuple[float, float, str]]], truth: _Truth) -> str | None:
    pieces = ["".join(character for _, _, character in characters) for characters in found]
    whole = truth.spaced("".join(pieces))
    if whole is not None:
        return whole
    parts = [truth.spaced(piece) for piece in pieces if piece]
    return None if None in parts else " ".join(filter(None, parts))


def _on_canvas(
    mark: tuple[float, float, str], piece: Piece, strip: Strip, top: int, em_px: float
) -> tuple[float, float, str]:
    x, y, character = mark
    left = MARGIN_PX + EDGE_EM * em_px + piece.at_px
    return left + (x - piece.x1) * strip.scale, top + (y - strip.top) * strip.scale, character
