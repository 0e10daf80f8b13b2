"""Cuts the rows of a level page out as strips of one size of print, dark on white, with nothing of their neighbours.

A row's wide gaps are narrowed; a row that is too long for a canvas becomes several strips. Knows OpenCV and numpy, no
model.

Shape letters: H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.images.canvases import EDGE_EM, EM_PX, MARGIN_PX, SIDE_PX, Piece, Strip
from shared.images.histogram import percentile
from shared.images.reading_order import Row
from shared.images.segments import LevelPage, Segment

_GAP_EM = 1.1
"""Gap between two cells of a row, at most."""
_LETTER_GAP_EM = 0.15
"""And between cells of one letter each."""
_LEAST_CELLS, _CELL_PITCH_EM = 4, 2.2
_PAD_EM = 0.12
"""Room above and below a strip's ink."""
_MOST_SCALE = 2.2
_STROKE_EM = 0.45
"""No stroke is thicker."""
_FLOOR = 0.1
"""Of the darkest print: what is fainter is tinted ground or grain."""
_LEAST_INK = 12
_MOST_GAIN = 2.5
_DEPTHS = np.arange(256, dtype=np.float32)
_DARK = 215.0
"""How dark the darkest print of a strip is made, of 255."""


def cut_strips(
    page: LevelPage, blocks: Sequence[Sequence[Row]], em_px: float = EM_PX, *, keeps_neighbours: bool = False
) -> list[Strip]:
    """Cut a page's rows out, in their order.

    Args:
        page: With the segments that the rows are of.
        blocks: From `reading_order`.
        em_px: Size of print on a strip.
        keeps_neighbours: Whether what reaches in from lines around, and rules, stay.

    Returns:
        Strips in reading order.
    """
    index_of = {id(segment): index for index, segment in enumerate(page.segments)}
    strips: list[Strip] = []
    number = 0
    for block, rows in enumerate(blocks):
        for row in rows:
            for pieces, top, bottom, scale in _laid_out(row, index_of, em_px):
                pixels_HW = _draw(page, pieces, top, bottom, scale, em_px, keeps_neighbours)
                boxes = [_parts_of(page, piece) for piece in pieces]
                parts_px = tuple(box for part in boxes for box in part)
                strips.append(Strip(block, number, _around(parts_px), parts_px, pixels_HW, tuple(pieces), top, scale))
            number += 1
    return strips


def _parts_of(page: LevelPage, piece: Piece) -> list[tuple[int, int, int, int]]:
    segment = page.segments[piece.segment]
    parts = [part for part in segment.parts if piece.x1 <= (part[0] + part[2]) / 2 <= piece.x2]
    whole = round(piece.x1), segment.box[1], round(piece.x2), segment.box[3]
    return [page.on_page(part) for part in parts or [whole]]


def _around(boxes: Sequence[tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def _laid_out(row: Row, index_of: dict[int, int], em_px: float) -> list[tuple[list[Piece], float, float, float]]:
    """Pieces of each strip of a row, with its top, bottom and scale."""
    room = SIDE_PX - 2 * MARGIN_PX - 2 * EDGE_EM * em_px
    strips: list[tuple[list[Piece], float, float, float]] = []
    pieces: list[Piece] = []
    members: list[Segment] = []
    scale = 1.0

    def close() -> None:
        if pieces:
            top = min(segment.box[1] for segment in members)
            bottom = max(segment.box[3] for segment in members)
            pad = _PAD_EM * em_px / scale
            strips.append((list(pieces), top - pad, bottom + pad, scale))
            pieces.clear()
            members.clear()

    cells = {index: index_of[before] for index, before in _letter_cells(row).items()}
    for segment in row:
        own = min(em_px / segment.em_px, _MOST_SCALE)
        # Print of another size begins a strip of its own.
        if pieces and segment.width > 2 * segment.em_px and not 0.72 < own / scale < 1.39:
            close()
        if not pieces:
            scale = own
        for first, last in _chunks(segment, room / scale):
            x1, x2 = segment.words[first][0], segment.words[last - 1][1]
            width = (x2 - x1) * scale
            at = 0.0
            if pieces:
                before = pieces[-1]
                gap = (x1 - before.x2) * scale if before.segment != index_of[id(segment)] else 0.0
                is_word = id(segment) in cells and pieces[-1].segment == cells[id(segment)]
                widest = (_LETTER_GAP_EM if is_word else _GAP_EM) * em_px
                at = before.at_px + (before.x2 - before.x1) * scale + min(max(gap, 0.0), widest)
                if at + width > room or before.segment == index_of[id(segment)]:
                    close()
                    scale, at = own, 0.0
                    width = (x2 - x1) * scale
            if not pieces and width > room:
                scale = room / (x2 - x1)
            pieces.append(Piece(index_of[id(segment)], first, last, x1, x2, at))
            if segment not in members:
                members.append(segment)
    close()
    return strips


def _letter_cells(row: Row) -> dict[int, int]:
    """Segments of a comb or of boxes for one letter each, and the segment before each in the same word, by identity."""
    result: dict[int, int] = {}
    run: list[Segment] = []
    for segment in [*row, None]:
        if segment is not None and segment.width < 1.1 * segment.em_px:
            pitches = [b.box[0] + b.box[2] - a.box[0] - a.box[2] for a, b in pairwise([*run, segment])]
            limit = 2 * _CELL_PITCH_EM * segment.em_px
            if not pitches or (pitches[-1] < limit and abs(pitches[-1] - pitches[0]) < 0.35 * pitches[0]):
                run.append(segment)
                continue
        if len(run) >= _LEAST_CELLS:
            result.update((id(after), id(before)) for before, after in pairwise(run))
        run = [segment] if segment is not None and segment.width < 1.1 * segment.em_px else []
    return result


def _chunks(segment: Segment, room: float) -> list[tuple[int, int]]:
    """Words of a segment in as many parts as it takes to fit, cut at its gaps, about equally long."""
    words = segment.words
    count = math.ceil(segment.width / room)
    cuts = [0]
    for number in range(1, count):
        wanted = segment.box[0] + segment.width * number / count
        free = range(cuts[-1] + 1, len(words))
        if not free:
            break
        # A wide gap is worth a few pixels of difference.
        cuts.append(
            min(
                free,
                key=lambda i: abs((words[i - 1][1] + words[i][0]) / 2 - wanted) - 2.0 * (words[i][0] - words[i - 1][1]),
            )
        )
    chunks = [(a, b) for a, b in zip(cuts, [*cuts[1:], len(words)], strict=True) if b > a]
    # An uneven cut may still be too long.
    result: list[tuple[int, int]] = []
    for first, last in chunks:
        start = first
        for word in range(first + 1, last + 1):
            if word < last and words[word][1] - words[start][0] > room:
                result.append((start, word))
                start = word
        result.append((start, last))
    return result


def _draw(
    page: LevelPage,
    pieces: Sequence[Piece],
    top: float,
    bottom: float,
    scale: float,
    em_px: float,
    keeps_neighbours: bool,
) -> NDArray[np.uint8]:
    width = math.ceil(pieces[-1].at_px + (pieces[-1].x2 - pieces[-1].x1) * scale + 2 * EDGE_EM * em_px)
    height = max(4, math.ceil((bottom - top) * scale))
    strip_HW = np.full((height, max(width, 4)), 255, np.uint8)
    for piece in pieces:
        drawn = _crop(page, piece, (top, bottom), scale, em_px, keeps_neighbours)
        at = round(piece.at_px)
        part = drawn[:height, : max(0, strip_HW.shape[1] - at)]
        strip_HW[: part.shape[0], at : at + part.shape[1]] = part
    return strip_HW


def _crop(
    page: LevelPage,
    piece: Piece,
    top_bottom: tuple[float, float],
    scale: float,
    em_px: float,
    keeps_neighbours: bool,
) -> NDArray[np.uint8]:
    """A piece's own ink on white, its paper levelled and its contrast raised."""
    grey = page.grey_HW
    pad = EDGE_EM * em_px / scale
    x1, x2 = max(int(piece.x1 - pad), 0), min(math.ceil(piece.x2 + pad), grey.shape[1])
    y1, y2 = max(int(top_bottom[0]), 0), min(math.ceil(top_bottom[1]), grey.shape[0])
    size = max(1, round((x2 - x1) * scale)), max(1, round((y2 - y1) * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    small: Any = cv2.resize(grey[y1:y2, x1:x2], size, interpolation=how)
    # What is not print: the brightest around, over a stroke's width and more.
    kernel = np.ones((max(3, round(_STROKE_EM * em_px)) | 1,) * 2, np.uint8)
    paper: Any = cv2.morphologyEx(small, cv2.MORPH_CLOSE, kernel, borderType=cv2.BORDER_REPLICATE)
    depth: Any = cv2.subtract(cv2.blur(paper, (9, 9)), small)
    inked = depth[depth > _LEAST_INK]
    darkest = percentile(inked, 85, np.float32) if inked.size else 255.0
    floor = _FLOOR * darkest
    gain = min(max(_DARK / max(darkest - floor, 1.0), 1.0), _MOST_GAIN)
    # What each depth becomes.
    levels = np.maximum(255.0 - np.maximum(_DEPTHS - floor, 0.0) * gain, 0.0).astype(np.uint8)
    result: Any = cv2.LUT(depth, levels)
    if not keeps_neighbours:
        _paint_over_others(result, page, piece.segment + 1, (x1, y1, x2, y2))
    return result


def _paint_over_others(
    strip_HW: NDArray[np.uint8], page: LevelPage, owner: int, box: tuple[int, int, int, int]
) -> None:
    """Lay paper over what belongs to other segments, and over rules."""
    x1, y1, x2, y2 = (side / page.scale for side in box)
    part = page.owner_hw[int(y1) : max(math.ceil(y2), int(y1) + 1), int(x1) : max(math.ceil(x2), int(x1) + 1)]
    others: Any = ((part != 0) & (part != owner)).astype(np.uint8)
    if not others.any():
        return
    own: Any = (part == owner).astype(np.uint8)
    own = cv2.dilate(own, np.ones((2, 2), np.uint8))
    others = cv2.dilate(others, np.ones((3, 3), np.uint8)) & ~own
    height, width = strip_HW.shape
    strip_HW[cv2.resize(others, (width, height), interpolation=cv2.INTER_NEAREST) > 0] = 255
