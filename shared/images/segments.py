"""Finds the lines of print on a page, well enough to cut them out: a reader of lines gets nothing else.

`ink_lines` finds print to hold a text against; here each line is also told from its neighbours, from rules and frames,
and turned level. A line ends at a wide gap, so cells of a table and columns are segments of their own. Knows OpenCV
and numpy, no model.

Shape letters: N shapes, H and W pixels of the level page.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.images.boxes import find_boxes
from shared.images.form_boxes import find_frames, find_ticks
from shared.images.histogram import percentile, percentile_of_few
from shared.images.ink import MAX_SIDE_PX, Relief, relief_of_grey
from shared.images.ink_lines import label_shapes, places_in
from shared.images.rules import bits_of_rules, darker_than, find_rules
from shared.images.tints import without_tints

_DARKER_SHARE = 0.42
"""Of the darkest print around: only this much counts, so that soft edges do not join letters."""
_FAINT_DARKER_SHARE, _FAINT_INK_SHARE = 0.2, 0.1
"""The same, and that of the page's darkest print, for what mends a letter of uneven ink."""
_MENDED_CAPS = (1.5, 2.0)
"""A mended letter is at most so high and wide, in capitals: more is a smudge, or letters that touch."""
_BROKEN, _SHATTERED = 0.75, 0.3
"""A letter is broken where no piece is as high as this share of it; a higher one than those where all are far lower."""
_BARELY, _STROKE = 0.3, 0.5
"""A mended letter is wider than this share of its height, and has a piece as long as that one, which no dot is."""
_CAP_EM = 0.7
"""Height of a capital in em."""
_LEAST_SKEW = math.radians(0.15)
_MOST_SKEW = math.radians(10)
_WORD_REACH = 0.35
_LINE_REACH = 0.62
"""Half the gap that ends a segment, in capitals."""
_WORD_GAP = 0.33
"""A gap wider than this share of a capital is a space."""
_POINT = 0.42
"""Shapes lower than this share of a capital are points, dashes and accents."""
_SMALLEST, _MOST_SMALL = 0.12, 3000
"""Share of a capital from which a shape may be a letter of smaller print, and how many such are looked at."""
_GRAINY = 3.0
"""Standard deviation of a page's noise, of 255, from which it is smoothed."""
_FAINT_SHARE = 0.18
"""Of the page's darkest print: what is fainter is grain."""
_FAINTEST_SHARE = 0.3
"""Of the darkness of most print: what is fainter shines through."""
_EDGE_SHARE, _ALIGNED = 0.012, 3
"""Share of the page's longer side that counts as its edge, where dirt is, and with how many lines a word of few letters
has to be aligned there."""
_UPRIGHT_EM, _UPRIGHT_LETTERS = 1.6, 6
"""Widest letter of a line that runs up or down, and how many it has at least."""
_LEVEL_RULE_PX = 36
"""Level rules are longer."""
_MOST_ALONE = 500
"""With more points on a page they are dirt."""
_POINTS_AT_ONCE, _POINTS_COMPARED = 1000, 64
"""With each other, and with all lines."""
_ALIKE = 1.5
"""Sizes within this ratio may be one, measured on different letters."""
_MOST_SHAPES = 9_000
_BAR_SHARE = 0.75
"""Of the paper's brightness: what is darker may be a bar with light print."""
_SOLID_EDGE = 0.65
"""Of a bar's edge so much is dark; print has gaps."""
_BAR_WIDE_PX = 56
_BAR_PRINT_PX = (15, 41)
"""Heights of light print that bars are looked for with."""
_BLACK_PAGE, _DARK_PAGE = 90, 190
"""Brightness, 0 to 255, of pages whose print must be light, and may be."""
_SURROUNDINGS_PX, _CONTRAST = 31, 30
"""Side of the square whose median counts as paper, on a page of 800 px, and how much print differs from it, of 255."""
_SHARP = 0.3
"""Print's edges are steeper than this share of its depth in a pixel; those of pictures are not."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Print along one line up to the next wide gap, in pixels of the level page."""

    box: tuple[int, int, int, int]
    """x1, y1, x2, y2."""
    em_px: float
    words: tuple[tuple[int, int], ...]
    """Left and right of each word, as far as gaps tell."""
    parts: tuple[tuple[int, int, int, int], ...] = ()
    """Boxes of all that any gap parts, letters too, from left to right."""

    @property
    def middle(self) -> float:
        """Of its height."""
        return (self.box[1] + self.box[3]) / 2

    @property
    def height(self) -> int:
        """Of its ink."""
        return self.box[3] - self.box[1]

    @property
    def width(self) -> int:
        """Of its ink."""
        return self.box[2] - self.box[0]


@dataclass(frozen=True, slots=True)
class LevelPage:
    """A page turned level, and its segments.

    Shapes:
        grey_HW: the page, light print on dark grounds inverted, 255 is paper
        owner_hw: which segment, from 1, each of the finder's pixels belongs to; 0 is paper, -1 a rule
    """

    grey_HW: NDArray[np.uint8]
    owner_hw: NDArray[np.int32]
    segments: tuple[Segment, ...]
    scale: float
    """Pixels of the page for each of the finder's."""
    turn: NDArray[np.float64] | None
    """Affine matrix from the level page to the page as it came; None where it was level."""
    rules: tuple[tuple[int, int, int, int], ...] = ()
    """x1, y1, x2, y2 of rules, level and upright ones apart, in pixels of the level page."""

    def on_page(self, box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
        """A box on the page as it came, around the turned one."""
        x1, y1, x2, y2 = box
        if self.turn is not None:
            corners = np.array([[x1, y1, 1], [x2, y1, 1], [x1, y2, 1], [x2, y2, 1]], np.float64)
            # Of a line turned a little only its ends are off, so its height is that of its middle.
            middle = self.turn @ np.array([(x1 + x2) / 2, (y1 + y2) / 2, 1])
            xy = corners @ self.turn.T
            slope = abs(self.turn[0, 1]) * (x2 - x1) / 2
            x1, x2 = float(xy[:, 0].min()), float(xy[:, 0].max())
            half = (y2 - y1) / 2 + min(slope, (y2 - y1) / 4)
            y1, y2 = float(middle[1]) - half, float(middle[1]) + half
        height, width = self.grey_HW.shape
        left, top = min(max(round(x1), 0), width - 1), min(max(round(y1), 0), height - 1)
        return left, top, min(max(round(x2), left + 1), width), min(max(round(y2), top + 1), height)


def find_segments(page: Image.Image) -> LevelPage:
    """Find a page's segments of lines.

    Args:
        page: Upright, mode RGB or L.

    Returns:
        The level page; its segments are in no order.
    """
    grey_HW = _ink_grey(page)
    small_hw, scale = _made_small(grey_HW)
    bars_hw = _bars(small_hw)
    if bars_hw is not None:
        ground_HW: Any = cv2.resize(bars_hw, page.size, interpolation=cv2.INTER_NEAREST)
        grey_HW = _inverted(grey_HW, ground_HW)
        small_hw, scale = _made_small(grey_HW)
    relief = _relief(small_hw, scale)
    mask_hw = _mask(relief)
    shapes_N5 = _shapes(mask_hw)
    angle = skew_of(shapes_N5)
    turn = None
    if abs(angle) > _LEAST_SKEW:
        grey_HW, turn = _levelled(grey_HW, angle)
        small_hw, scale = _made_small(grey_HW)
        relief = _relief(small_hw, scale)
        mask_hw = _mask(relief)
        shapes_N5 = _shapes(mask_hw)
    cap = _cap_of(shapes_N5[:, 3])
    rules_hw, upright_hw = find_rules(relief, mask_hw, cap)
    owner_hw, segments = _segments(relief, mask_hw, cap, rules_hw, upright_hw)
    return LevelPage(grey_HW, owner_hw, segments, scale, turn, _parts_of_rules(rules_hw, upright_hw, scale))


def _parts_of_rules(
    rules_hw: NDArray[np.uint8], upright_hw: NDArray[np.uint8], scale: float
) -> tuple[tuple[int, int, int, int], ...]:
    """Boxes of level and of upright rules in pixels of the page; those that cross them do not part them."""
    if not rules_hw.any():
        return ()
    level_hw: Any = cv2.morphologyEx(rules_hw, cv2.MORPH_OPEN, np.ones((1, _LEVEL_RULE_PX), np.uint8))
    result: list[tuple[int, int, int, int]] = []
    for mask_hw in (level_hw, upright_hw):
        # Most pages have none, or few.
        left, top, width, height = cv2.boundingRect(mask_hw)
        if not width:
            continue
        _, _, stats = label_shapes(np.ascontiguousarray(mask_hw[top : top + height, left : left + width]))
        for x, y, w, h, _ in stats[1:].tolist():
            x1, y1, x2, y2 = left + x, top + y, left + x + w, top + y + h
            result.append((round(x1 * scale), round(y1 * scale), round(x2 * scale), round(y2 * scale)))
    return tuple(result)


def _relief(small_hw: NDArray[np.uint8], scale: float) -> Relief:
    """Print apart from paper; grain is smoothed first, since lines are looked for where it is darkest around."""
    relief = relief_of_grey(small_hw, scale)
    if relief.noise < _GRAINY:
        return relief
    smooth: Any = cv2.GaussianBlur(cv2.medianBlur(small_hw, 3), (3, 3), 0)
    relief = relief_of_grey(smooth, scale)
    dark = percentile(relief.depth_HW, 99.5)
    return replace(relief, threshold=max(relief.threshold, 0.33 * dark))


def _inverted(grey_HW: NDArray[np.uint8], ground_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Light print on a ground of this brightness as dark print on white; 0 is no ground."""
    ground = ground_HW.astype(np.float32)
    lighter = np.clip((grey_HW - ground) * (255.0 / np.maximum(255.0 - ground, 1.0)), 0, 255)
    result: NDArray[np.uint8] = np.where(ground_HW > 0, 255 - lighter, grey_HW).astype(np.uint8)
    return result


def _ink_grey(page: Image.Image) -> NDArray[np.uint8]:
    """Grey paper with dark ink; coloured ink is darker than its brightness, but a yellow marker is not black."""
    pixels: Any = np.asarray(without_tints(page))
    if page.mode == "L":
        grey_HW = pixels
    else:
        grey_HW = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        red, green, blue = cv2.split(pixels)
        if cv2.norm(red, blue, cv2.NORM_INF) > 8:
            grey_HW = cv2.addWeighted(cv2.min(cv2.min(red, green), blue), 0.5, grey_HW, 0.5, 0)
    if _is_light_on_dark(grey_HW):
        grey_HW = 255 - grey_HW
    result: NDArray[np.uint8] = grey_HW
    return result


def _is_light_on_dark(grey_HW: NDArray[np.uint8]) -> bool:
    """Whether print is lighter than its paper, as on a negative or a slide."""
    step = max(1, max(grey_HW.shape) // 800)
    small = np.ascontiguousarray(grey_HW[::step, ::step])
    middle = percentile(small, 60)
    if not _BLACK_PAGE < middle < _DARK_PAGE:
        return middle <= _BLACK_PAGE
    # The median around print is paper, even where the gaps between letters are as narrow as their strokes.
    paper: Any = cv2.medianBlur(small, _SURROUNDINGS_PX)
    dark, light = (int((cv2.subtract(*pair) > _CONTRAST).sum()) for pair in ((paper, small), (small, paper)))
    return light > 1.3 * dark


def _made_small(grey_HW: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], float]:
    """The page as large as lines are looked for, and its pixels for each of these."""
    height, width = grey_HW.shape
    longest = min(max(height, width), 3 * min(height, width))
    scale = max(1.0, longest / MAX_SIDE_PX)
    if scale == 1.0:
        return grey_HW, 1.0
    size = max(1, round(width / scale)), max(1, round(height / scale))
    small: Any = cv2.resize(grey_HW, size, interpolation=cv2.INTER_AREA)
    return small, height / size[1]


def _bars(small_hw: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """The brightness, at least 1, of dark bars with light print on them, as of a table's head; None without any."""
    paper = percentile(np.ascontiguousarray(small_hw[::4, ::4]), 80)
    dark_hw: Any = (small_hw < np.uint8(math.ceil(_BAR_SHARE * paper))).view(np.uint8)
    # Print has no solid ground of this height and width, a bar has above and below its print.
    solid_hw: Any = cv2.morphologyEx(dark_hw, cv2.MORPH_OPEN, np.ones((2, 28), np.uint8))
    if not solid_hw.any():
        return None
    found_hw = np.zeros_like(dark_hw)
    for high in _BAR_PRINT_PX:
        joined_hw: Any = cv2.morphologyEx(solid_hw, cv2.MORPH_CLOSE, np.ones((high, 9), np.uint8))
        joined_hw = cv2.morphologyEx(joined_hw, cv2.MORPH_OPEN, np.ones((9, 24), np.uint8))
        left, top, width, height = cv2.boundingRect(joined_hw)
        if not width:
            continue
        _, labels_hw, stats, _ = cv2.connectedComponentsWithStats(
            joined_hw[top : top + height, left : left + width], connectivity=4
        )
        inner_hw: Any = cv2.erode(joined_hw, np.ones((5, 5), np.uint8))
        for number, (x, y, w, h, area) in enumerate(stats.tolist()):
            if not number or h > 0.25 * small_hw.shape[0] or w < _BAR_WIDE_PX:
                continue
            own = labels_hw[y : y + h, x : x + w] == number
            place = slice(top + y, top + y + h), slice(left + x, left + x + w)
            dark, edge = dark_hw[place] > 0, own & (inner_hw[place] == 0)
            light = float((own & ~dark).sum()) / area
            if not 0.01 < light < 0.45 or float((edge & dark).sum()) < _SOLID_EDGE * float(edge.sum()):
                continue
            ground = max(1, int(np.median(small_hw[place][own & dark])))
            # Dark print on a tinted ground needs nothing.
            darker = float((own & (small_hw[place] < 0.6 * ground)).sum()) / area
            lighter = float((own & (small_hw[place] > 0.5 * (ground + paper))).sum()) / area
            if lighter > 1.5 * darker:
                found_hw[place][own] = ground
    if not found_hw.any():
        return None
    # Its outermost rows too, or they would be a frame.
    grown_hw: Any = cv2.dilate(found_hw, np.ones((7, 7), np.uint8))
    result: NDArray[np.uint8] = np.where((found_hw == 0) & (dark_hw > 0), grown_hw, found_hw)
    return result


def _mask(relief: Relief) -> NDArray[np.uint8]:
    depth_HW = relief.depth_HW
    # Soft edges join letters, so print counts where it is dark for what is around it.
    least = max(relief.threshold, _FAINT_SHARE * relief.darkest)
    return darker_than(depth_HW, least) & _dark_for(depth_HW, _DARKER_SHARE, _darkest_around(depth_HW))


def _darkest_around(depth_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = depth_HW.shape
    around: Any = cv2.dilate(cv2.dilate(depth_HW, np.ones((5, 5), np.uint8))[::4, ::4], np.ones((7, 7), np.uint8))
    result: NDArray[np.uint8] = cv2.resize(around, (width, height), interpolation=cv2.INTER_LINEAR)
    return result


def _dark_for(depth_HW: NDArray[np.uint8], share: float, around_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Where print is darker than this share of the darkest around: 1, elsewhere 0."""
    least: Any = cv2.LUT(around_HW, np.floor(share * np.arange(256)).astype(np.uint8))
    result: NDArray[np.uint8] = (depth_HW > least).view(np.uint8)
    return result


def _mended(
    mask_HW: NDArray[np.uint8],
    pieces_HW: NDArray[np.int32],
    pieces: NDArray[np.int32],
    relief: Relief,
    rules_HW: NDArray[np.uint8],
    cap: float,
) -> NDArray[np.uint8]:
    """The mask with letters made whole whose ink is uneven, as needles, worn heads and old thermal paper print them.

    Its pieces are labelled and measured already.
    """
    depth_HW = relief.depth_HW
    least = max(relief.threshold, _FAINT_INK_SHARE * relief.darkest)
    faint_HW = darker_than(depth_HW, least) & _dark_for(depth_HW, _FAINT_DARKER_SHARE, _darkest_around(depth_HW))
    faint_HW = faint_HW & ~rules_HW | mask_HW
    count, wholes_HW, stats = label_shapes(faint_HW)
    inked = places_in(mask_HW)
    # Which whole each piece is of; all of a piece's pixels are of the same.
    whole_of = np.zeros(len(pieces), np.int64)
    whole_of[pieces_HW.ravel()[inked]] = wholes_HW.ravel()[inked]
    highest, longest = np.zeros(count, np.int64), np.zeros(count, np.int64)
    np.maximum.at(highest, whole_of[1:], pieces[1:, 3])
    np.maximum.at(longest, whole_of[1:], pieces[1:, 2:4].max(axis=1))
    _, _, w, h, _ = stats.T
    # Where all letters are broken, only the whole ones tell their size.
    cap = max(cap, min(_cap_of(h[1:]), 2 * cap))
    most_high, most_wide = (share * cap for share in _MENDED_CAPS)
    is_letter = (h <= most_high) & (w <= most_wide) & (highest < _BROKEN * h)
    is_letter |= (h <= 3 * most_high) & (w <= 1.5 * h) & (highest < _SHATTERED * h)
    # Dotted rules, and where they cross, are no letters.
    is_letter &= (w > _BARELY * h) & (longest >= _STROKE * h)
    is_broken = is_letter & (highest > 0)
    is_broken[0] = False
    result = mask_HW.copy()
    faint = places_in(faint_HW)
    result.ravel()[faint[is_broken[wholes_HW.ravel()[faint]]]] = 1
    return result


def _shapes(mask_HW: NDArray[np.uint8]) -> NDArray[np.int32]:
    _, _, stats = label_shapes(mask_HW)
    return stats[1:]


def _cap_of(heights: NDArray[Any]) -> float:
    """Height of a capital, from heights of shapes."""
    whole = heights[heights >= 5]
    if not whole.size:
        return 10.0
    low = whole[whole >= np.percentile(whole, 20)]
    return float(max(np.percentile(low, 70), 6.0))


def skew_of(shapes_N5: NDArray[np.int32]) -> float:
    """Angle in radians by which lines fall to the right, from where shapes stand."""
    _, _, w, h, _ = shapes_N5.T
    cap = _cap_of(h)
    kept = (h > 0.45 * cap) & (h < 2 * cap) & (w < 6 * cap)
    if kept.sum() < 12:
        return 0.0
    left, top, w, h, _ = shapes_N5[kept].T
    x, y = left + w / 2, (top + h).astype(np.float64)
    if np.ptp(x) < 12 * cap:
        return 0.0
    best, best_score = 0.0, -1.0
    for step, around, reach in ((0.25, 0.0, math.degrees(_MOST_SKEW)), (0.05, None, 0.25)):
        middle = math.degrees(best) if around is None else around
        for degrees in np.arange(middle - reach, middle + reach + 1e-6, step):
            angle = math.radians(float(degrees))
            level = y - x * math.tan(angle)
            bins = np.bincount(((level - level.min()) / 2).astype(np.int64))
            score = float((bins.astype(np.float64) ** 2).sum())
            # Level unless another angle is clearly better.
            score *= 1.0 - 0.002 * abs(float(degrees))
            if score > best_score:
                best, best_score = angle, score
    if abs(best) >= _MOST_SKEW - math.radians(0.3):
        return 0.0
    return best


def _levelled(grey_HW: NDArray[np.uint8], angle: float) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The page turned so that its lines are level, and the matrix back."""
    height, width = grey_HW.shape
    matrix: Any = cv2.getRotationMatrix2D((width / 2, height / 2), math.degrees(angle), 1.0)
    turned: Any = cv2.warpAffine(
        grey_HW, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    back: Any = cv2.invertAffineTransform(matrix)
    return turned, back


def _part_touching(mask_HW: NDArray[np.uint8], shapes_N5: NDArray[np.int32], cap: float) -> bool:
    """Cut shapes in two that reach over two lines; whether there are any."""
    has_cut = False
    left, top, w, h, _ = shapes_N5.T
    tall = np.flatnonzero((h > 1.55 * cap) & (h < 4.5 * cap) & (w < 12 * cap))
    normal = (h > 0.4 * cap) & (h < 1.5 * cap)
    nx1, nx2, nc = left[normal], (left + w)[normal], (top + h / 2)[normal]
    nh = h[normal]
    for index in tall.tolist():
        x, y, width, height = left[index], top[index], w[index], h[index]
        near = (nx2 > x - 2.5 * cap) & (nx1 < x + width + 2.5 * cap) & (nc > y) & (nc < y + height)
        near &= nh < 0.66 * height
        place = (nc[near] - y) / height
        above, below = int((place < 0.4).sum()), int((place > 0.6).sum())
        if above < 1 or below < 1 or above + below < 0.75 * place.size:
            continue
        part = mask_HW[y + round(0.3 * height) : y + round(0.7 * height) + 1, x : x + width]
        row = int(part.sum(axis=1).argmin()) + y + round(0.3 * height)
        mask_HW[row, x : x + width] = 0
        has_cut = True
    return has_cut


def _shapes_of_print(
    stats: NDArray[np.int32], size: tuple[int, ...], cap: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which shapes may be print, by their size and fill, and which the page's edges cut."""
    height, width = size
    left, top, w, h, area = stats.T
    long, short = np.maximum(w, h), np.minimum(w, h)
    fill = area / np.maximum(w * h, 1)
    is_shape = (area >= 2) & (h <= max(0.12 * max(size), 60))
    is_shape &= ~((fill < 0.1) & (short > 30))
    is_shape &= ~((fill > 0.8) & (short > 1.6 * cap) & (long > 3 * cap))
    is_shape &= ~((long > 12 * short) & (long > 2 * cap))
    is_cut = (left <= 0) | (top <= 0) | (left + w >= width) | (top + h >= height)
    is_shape &= ~(is_cut & ((h > 1.6 * cap) | (w > 6 * cap)))
    is_shape[0] = False
    return is_shape, is_cut


def _segments(
    relief: Relief,
    mask_HW: NDArray[np.uint8],
    cap: float,
    rules_HW: NDArray[np.uint8],
    upright_HW: NDArray[np.uint8],
) -> tuple[NDArray[np.int32], tuple[Segment, ...]]:
    scale = relief.scale
    mask_HW = mask_HW & ~rules_HW
    _, pieces_HW, pieces = label_shapes(mask_HW)
    if _part_touching(mask_HW, pieces[1:], cap):
        _, pieces_HW, pieces = label_shapes(mask_HW)
    mask_HW = _mended(mask_HW, pieces_HW, pieces, relief, rules_HW, cap)
    _, labels_HW, stats = label_shapes(mask_HW)
    cap = max(cap, _cap_of(stats[1:, 3]))
    owner_of, area = np.zeros(len(stats), np.int32), stats[:, 4]
    is_shape, is_cut = _shapes_of_print(stats, mask_HW.shape, cap)
    is_box = find_boxes(labels_HW, stats, ~is_cut, cap) | find_ticks(stats, is_shape, rules_HW)
    owner_of[is_box] = -1
    is_shape &= ~is_box
    if is_box.any():
        # Boxes are higher than print, which would count as points.
        cap = _cap_of(stats[is_shape, 3])
    is_shape &= ~find_frames(stats, is_shape, cap)
    is_shape &= ~bits_of_rules(stats, is_shape, cap)
    kept = np.flatnonzero(is_shape)
    if kept.size > _MOST_SHAPES:
        # Grain: what is smaller than a letter is left out.
        kept = np.sort(kept[np.argsort(-area[kept], kind="stable")[:_MOST_SHAPES]])
    if not kept.size:
        return _owners(owner_of, labels_HW, mask_HW, rules_HW), ()
    boxes_N4 = stats[kept][:, :4]
    line_of = _join(boxes_N4, cap, upright_HW)
    steepness_HW: Any = cv2.morphologyEx(relief.depth_HW, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    is_hole = _holes(boxes_N4, area[kept], line_of)
    segments: list[Segment] = []
    depths: list[float] = []
    members_of: list[NDArray[np.int64]] = []
    for _, members in _members(line_of):
        if is_hole[members].all():
            continue
        place = _around(boxes_N4[members])
        depth = percentile(relief.depth_HW[place], 95)
        # Print has sharp edges.
        if percentile(steepness_HW[place], 92) <= _SHARP * depth:
            continue
        made = _segment(boxes_N4[members], area[kept][members], cap, scale)
        if made is not None:
            segments.append(made)
            depths.append(depth)
            members_of.append(kept[members])
    is_print = _is_print(segments, depths, mask_HW.shape, cap, scale) & ~_is_upright(segments)
    segments = [segment for segment, is_kept in zip(segments, is_print, strict=True) if is_kept]
    for number, members in enumerate(
        (members for members, is_kept in zip(members_of, is_print, strict=True) if is_kept), 1
    ):
        owner_of[members] = number
    return _owners(owner_of, labels_HW, mask_HW, rules_HW), _evened(segments)


def _holes(boxes_N4: NDArray[np.int32], area_N: NDArray[np.int32], line_of: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which shapes are solid discs with no print right of them, as bullets have."""
    left, top, w, h = boxes_N4.T
    is_disc = (np.abs(w - h) <= 0.06 * np.maximum(w, h) + 1) & (area_N > 0.68 * w * h) & (h >= 4)
    result = np.zeros(len(boxes_N4), np.bool_)
    for index in np.flatnonzero(is_disc).tolist():
        gap = left - left[index] - w[index]
        middle = top[index] + h[index] / 2
        follows = (gap > 0) & (gap < 4 * w[index]) & (top < middle) & (top + h > middle) & (line_of > 0) & ~is_disc
        result[index] = not follows.any()
    return result


def _evened(segments: list[Segment]) -> tuple[Segment, ...]:
    """The same with sizes like those around: a word without capitals seems smaller than it is."""
    if not segments:
        return ()
    em = np.array([segment.em_px for segment in segments])
    middle = np.array([segment.middle for segment in segments])
    weight = np.array([min(len(segment.words), 12) + 1.0 for segment in segments])
    result = []
    for index, segment in enumerate(segments):
        ratio = em / em[index]
        near = np.flatnonzero(
            (ratio > 1 / _ALIKE) & (ratio < _ALIKE) & (np.abs(middle - middle[index]) < 5 * em[index])
        )
        order = near[np.argsort(em[near])]
        half = np.searchsorted(np.cumsum(weight[order]), weight[order].sum() / 2)
        result.append(replace(segment, em_px=float(em[order[half]])))
    return tuple(result)


def _around(boxes_M4: NDArray[np.int32]) -> tuple[slice, slice]:
    """Rows and columns of boxes."""
    x, y = boxes_M4[:, 0].min(), boxes_M4[:, 1].min()
    return slice(y, (boxes_M4[:, 1] + boxes_M4[:, 3]).max()), slice(x, (boxes_M4[:, 0] + boxes_M4[:, 2]).max())


def _is_print(
    segments: list[Segment], depths: list[float], size: tuple[int, ...], cap: float, scale: float
) -> NDArray[np.bool_]:
    """Which segments are neither show-through nor dirt."""
    if not segments:
        return np.zeros(0, np.bool_)
    weights = np.array([len(segment.words) * segment.width for segment in segments], np.float64)
    order = np.argsort(depths)
    half = np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)
    usual = depths[int(order[half])]
    height, width = size[0] * scale, size[1] * scale
    cap *= scale
    x1, y1, x2, y2 = np.array([segment.box for segment in segments], np.float64).T
    at_edge = np.minimum.reduce([x1, y1, width - x2, height - y2]) < _EDGE_SHARE * max(width, height)
    odd = (y2 - y1 <= 0.5 * cap) | (y2 - y1 >= 2.2 * cap)
    dubious = at_edge & (odd | (x2 - x1 < 3 * cap)) & (len(segments) > 8)
    # Text can be this close to the edge too: it has many letters, or is aligned with other lines on the left.
    sure = np.sort(x1[~dubious])
    for index in np.flatnonzero(dubious).tolist():
        parts = segments[index].parts
        near = np.searchsorted(sure, (x1[index] - 0.5 * cap, x1[index] + 0.5 * cap))
        is_aligned = near[1] - near[0] >= _ALIGNED
        dubious[index] = not (_has_letters(parts) or (is_aligned and _is_letter_like(parts, cap)))
    return (np.array(depths) > _FAINTEST_SHARE * usual) & ~dubious


def _has_letters(parts: Sequence[tuple[int, int, int, int]]) -> bool:
    """Whether there are at least four parts, most of them of similar height and on one baseline, as letters are."""
    if len(parts) < 4:
        return False
    _, y1, _, y2 = np.array(parts, np.float64).T
    high, bottom = np.median(y2 - y1), np.median(y2)
    alike = (y2 - y1 > 0.55 * high) & (y2 - y1 < 1.8 * high) & (np.abs(y2 - bottom) < 0.35 * high)
    return bool(alike.sum() >= max(4, 0.6 * len(parts)))


def _is_letter_like(parts: Sequence[tuple[int, int, int, int]], cap: float) -> bool:
    """Whether the largest of the parts has the size of a letter or of a few that touch."""
    high = max(y2 - y1 for _, y1, _, y2 in parts)
    wide = max(x2 - x1 for x1, _, x2, _ in parts)
    return 0.25 * cap < high < 4 * cap and wide < 6 * cap


def _is_upright(segments: list[Segment]) -> NDArray[np.bool_]:
    """Which segments are letters of a line that runs up or down the page: each below the other, closer than lines."""
    result = np.zeros(len(segments), np.bool_)
    em = float(np.median([segment.em_px for segment in segments])) if segments else 0.0
    narrow = [
        index
        for index, segment in enumerate(segments)
        if len(segment.parts) <= 2 and len(segment.words) == 1 and segment.width < _UPRIGHT_EM * em
    ]
    narrow.sort(key=lambda index: segments[index].box[1])
    x1, y1, x2, y2 = np.array([segments[index].box for index in narrow], np.float64).reshape(-1, 4).T
    before: dict[int, int] = {}
    for place in range(len(narrow)):
        width = x2[place] - x1[place]
        shared = np.minimum(x2, x2[place]) - np.maximum(x1, x1[place])
        gap = y1 - y2[place]
        follows = (shared > 0.6 * np.minimum(x2 - x1, width)) & (gap > -0.2 * width) & (gap < 0.7 * width)
        follows[: place + 1] = False
        if follows.any():
            nearest = int(np.flatnonzero(follows)[np.argmin(gap[follows])])
            before.setdefault(nearest, place)
    chains: dict[int, list[int]] = {}
    root: dict[int, int] = {}
    for place in range(len(narrow)):
        root[place] = root[before[place]] if place in before else place
        chains.setdefault(root[place], []).append(place)
    for chain in chains.values():
        gaps = y1[chain[1:]] - y2[chain[:-1]]
        if len(chain) >= _UPRIGHT_LETTERS and np.median(gaps) < 0.25 * np.median((x2 - x1)[chain]):
            result[[narrow[place] for place in chain]] = True
    return result


def _owners(
    owner_of: NDArray[np.int32], labels_HW: NDArray[np.int32], mask_HW: NDArray[np.uint8], rules_HW: NDArray[np.uint8]
) -> NDArray[np.int32]:
    """Replace each pixel's label by its owner, in place."""
    places = places_in(mask_HW)
    labels_HW.ravel()[places] = owner_of[labels_HW.ravel()[places]]
    labels_HW[rules_HW.view(np.bool_)] = -1
    return labels_HW


def _join(boxes_N4: NDArray[np.int32], cap: float, upright_HW: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Number of the line, from 1, of each shape; 0 for shapes of none. No line crosses an upright rule."""
    h = boxes_N4[:, 3]
    is_point = (h < _POINT * cap) & ~_small_letters(boxes_N4, cap)
    words_of = _strips(boxes_N4[~is_point], np.maximum(h[~is_point] * _WORD_REACH, 2), upright_HW)
    sizes = h[~is_point].astype(np.float64)
    # Of each word the height of its higher letters; letters of a word are alike.
    order = np.lexsort((sizes, words_of))
    ends = np.searchsorted(words_of[order], np.arange(1, int(words_of.max(initial=0)) + 2))
    size_of_word = np.zeros(len(ends) + 1)
    for number, (start, end) in enumerate(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)):
        if end > start:
            size_of_word[number] = sizes[order[start + int(0.75 * (end - start - 1))]]
    word_size = np.maximum(size_of_word[words_of], sizes)
    # A line's size: letters standing alone are as large as what is around them.
    line_of = np.zeros(len(boxes_N4), np.int32)
    line_of[~is_point] = _strips(boxes_N4[~is_point], np.maximum(word_size * _LINE_REACH, 0.5 * cap), upright_HW)
    return _attach_small(boxes_N4, line_of, cap)


def _small_letters(boxes_N4: NDArray[np.int32], cap: float) -> NDArray[np.bool_]:
    """Which shapes as low as points are letters of small print: they have others of their size in line."""
    left, top, w, h = boxes_N4.T
    result = np.zeros(len(boxes_N4), np.bool_)
    low = np.flatnonzero((h < _POINT * cap) & (h >= np.maximum(_SMALLEST * cap, 4)))
    order = np.argsort(top, kind="stable")
    alike_of: dict[int, NDArray[np.int64]] = {}
    for index in low[:_MOST_SMALL].tolist():
        start, end = np.searchsorted(top[order], (top[index] - h[index], top[index] + h[index]))
        near = order[start:end]
        gap = np.maximum(left[near] - left[index] - w[index], left[index] - left[near] - w[near])
        shared = np.minimum(top[near] + h[near], top[index] + h[index]) - np.maximum(top[near], top[index])
        alike = (h[near] > 0.62 * h[index]) & (h[near] < 1.62 * h[index])
        alike_of[index] = near[alike & (gap < 2 * h[index]) & (2 * shared >= h[index])]
        widths = w[alike_of[index]]
        # The dots of leaders are as wide as each other.
        result[index] = widths.size > 2 and widths.max() > 1.4 * widths.min() + 1
    # The last letters of a word have fewer others near.
    for _ in range(2):
        found = [index for index, others in alike_of.items() if others.size > 1 and result[others].any()]
        result[found] = True
    return result


def _strips(
    boxes_N4: NDArray[np.int32], reach_N: NDArray[np.float64], upright_HW: NDArray[np.uint8]
) -> NDArray[np.int32]:
    """Joins shapes whose middles, drawn out to both sides by their reach, touch."""
    size = upright_HW.shape
    strip_HW = np.zeros(size, np.uint8)
    reach = np.round(reach_N).astype(np.int64)
    left, top, w, h = boxes_N4.T
    x1, x2 = np.maximum(left - reach, 0), np.minimum(left + w + reach, size[1])
    y1, y2 = top + h // 4, top + h - h // 4
    for a, b, c, d in zip(x1.tolist(), x2.tolist(), y1.tolist(), y2.tolist(), strict=True):
        strip_HW[c:d, a:b] = 1
    strip_HW[upright_HW.view(np.bool_)] = 0
    # A letter that a rule touches keeps its middle.
    strip_HW[top + h // 2, left + w // 2] = 1
    _, labels_HW = cv2.connectedComponentsWithAlgorithm(strip_HW, 4, cv2.CV_32S, cv2.CCL_WU)
    result: NDArray[np.int32] = labels_HW[np.minimum(top + h // 2, size[0] - 1), np.minimum(left + w // 2, size[1] - 1)]
    return result


def _attach_small(boxes_N4: NDArray[np.int32], line_of: NDArray[np.int32], cap: float) -> NDArray[np.int32]:
    """Give points, accents and what is left of letters to the line that they are part of."""
    count = int(line_of.max(initial=0))
    if not count:
        return line_of
    left, top, w, h = boxes_N4.T
    bounds = np.zeros((count + 1, 4))
    size = np.zeros(count + 1)
    for label, members in _members(line_of):
        bounds[label] = (
            left[members].min(), top[members].min(), (left + w)[members].max(), (top + h)[members].max(),
        )  # fmt: skip
        size[label] = percentile_of_few(h[members], 75)
    # Whole lines of small shapes that lie in a larger line, such as the dots of its letters. What no line is large
    # enough for is not compared with each.
    largest = float(size.max())
    length, height = bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1]
    may_lie = (size > 0) & (largest > 1.4 * size) & (length < 3.0 * largest) & (height < 0.65 * largest)
    for label in np.argsort(size).tolist():
        if not may_lie[label]:
            continue
        bx1, by1, bx2, by2 = bounds[label]
        middle_x, middle_y = (bx1 + bx2) / 2, (by1 + by2) / 2
        around = (
            (bounds[:, 0] - 0.95 * size <= middle_x) & (middle_x <= bounds[:, 2] + 0.95 * size)
            & (bounds[:, 1] - 0.3 * size <= middle_y) & (middle_y <= bounds[:, 3] + 0.25 * size)
            & (size > 1.4 * size[label]) & (bx2 - bx1 < 3.0 * size) & (by2 - by1 < 0.65 * size)
        )  # fmt: skip
        around[0] = False
        if around.any():
            target = int(np.flatnonzero(around)[0])
            line_of[line_of == label] = target
            size[label] = 0
            bounds[label] = (-1e9, -1e9, -1e9, -1e9)
    is_leader = _leaders(boxes_N4, line_of, cap)
    free = np.flatnonzero((line_of == 0) & ~is_leader)
    for start in range(0, free.size, _POINTS_COMPARED):
        part = free[start : start + _POINTS_COMPARED]
        x1, x2, y = left[part, None], (left + w)[part, None], (top + h / 2)[part, None]
        gap_x = np.maximum(np.maximum(bounds[:, 0] - x2, x1 - bounds[:, 2]), 0)
        gap_y = np.maximum(np.maximum(bounds[:, 1] - y, y - bounds[:, 3]), 0)
        near = (gap_x < 0.95 * size) & (gap_y < 0.45 * size) & (size > 0)
        nearest = np.where(near, gap_x + 0.5 * gap_y, np.inf).argmin(axis=1)
        line_of[part] = np.where(near.any(axis=1), nearest, 0)
    return _alone(boxes_N4, line_of, is_leader, bounds, size)


def _members(line_of: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each line's label, rising from 1, and its shapes."""
    order = np.argsort(line_of, kind="stable")
    labels, starts = np.unique(line_of[order], return_index=True)
    for label, members in zip(labels.tolist(), np.split(order, starts[1:]), strict=True):
        if label:
            yield label, members


def _leaders(boxes_N4: NDArray[np.int32], line_of: NDArray[np.int32], cap: float) -> NDArray[np.bool_]:
    """Which points are of dotted lines: at least five alike on one height, close together."""
    result = np.zeros(len(boxes_N4), np.bool_)
    free = np.flatnonzero(line_of == 0)
    if free.size < 5:
        return result
    left, top, w, h = boxes_N4[free].T.astype(np.float64)
    x, y = left + w / 2, top + h / 2
    order = np.argsort(y)
    for start in range(0, free.size, _POINTS_AT_ONCE):
        part = order[start : start + _POINTS_AT_ONCE]
        low, high = np.searchsorted(y[order], (y[part[0]] - 0.2 * cap, y[part[-1]] + 0.2 * cap))
        # A page of dirt has as many on each height.
        around = order[low : min(int(high), int(low) + 4 * _POINTS_AT_ONCE)]
        near = (np.abs(y[part, None] - y[around]) < 0.2 * cap) & (np.abs(x[part, None] - x[around]) < 4.5 * cap)
        near &= (np.abs(h[part, None] - h[around]) <= 2) & (np.abs(w[part, None] - w[around]) <= 0.3 * cap)
        result[free[part[near.sum(axis=1) >= 5]]] = True
    return result


def _alone(
    boxes_N4: NDArray[np.int32],
    line_of: NDArray[np.int32],
    is_leader: NDArray[np.bool_],
    bounds: NDArray[np.float64],
    size: NDArray[np.float64],
) -> NDArray[np.int32]:
    """Make dashes and bullets that stand alone on the height of a line segments; leaders are left out."""
    left, top, w, h = boxes_N4.T
    free = np.flatnonzero((line_of == 0) & ~is_leader)
    if free.size > _MOST_ALONE:
        return line_of
    y = top + h / 2
    number = len(size)
    for index in free.tolist():
        on_height = (bounds[:, 1] < y[index]) & (y[index] < bounds[:, 3]) & (size > 0)
        gap_x = np.maximum(np.maximum(bounds[:, 0] - (left[index] + w[index]), left[index] - bounds[:, 2]), 0)
        near = np.flatnonzero(on_height & (gap_x < 25 * size))
        if not near.size:
            continue
        cap = float(size[near[np.argmin(gap_x[near])]])
        is_dash = w[index] > max(0.3 * cap, 1.6 * h[index]) and h[index] < 0.3 * cap
        is_bullet = min(w[index], h[index]) > 0.28 * cap and bool(
            (on_height & (bounds[:, 0] > left[index]) & (bounds[:, 0] - left[index] < 3.5 * size)).any()
        )
        # The two points of a colon.
        pair = free[(np.abs(left[free] - left[index]) < 0.3 * cap) & (np.abs(y[free] - y[index]) > 0.15 * cap)
                    & (np.abs(y[free] - y[index]) < cap)]  # fmt: skip
        if pair.size == 1 and line_of[pair[0]] == 0 and max(w[index], h[index]) < 0.45 * cap:
            line_of[index] = line_of[pair[0]] = number
            number += 1
            continue
        if line_of[index]:
            continue
        like = free[(np.abs(y[free] - y[index]) < 0.2 * cap) & (np.abs(left[free] - left[index]) < 1.6 * cap)]
        if (is_dash or is_bullet) and like.size <= 2 and w[index] < 2 * cap:
            line_of[index] = number
            number += 1
    return line_of


def _segment(boxes_M4: NDArray[np.int32], area_M: NDArray[np.int32], page_cap: float, scale: float) -> Segment | None:
    """A segment of shapes; None for dust."""
    left, top, w, h = boxes_M4.T
    whole = h >= min(4, int(h.max()))
    cap = percentile_of_few(h[whole], 80)
    if cap < _POINT * page_cap:
        # A dash or a colon says nothing of the size of print.
        cap = page_cap
    x1, y1, x2, y2 = left.min(), top.min(), (left + w).max(), (top + h).max()
    # A single speck, or a lone stroke.
    if int(area_M.sum()) < 3 or (len(boxes_M4) == 1 and max(int(w[0]), int(h[0])) < 3):
        return None
    # What is left of an upright rule.
    if len(boxes_M4) == 1 and w[0] < 0.25 * h[0] and h[0] > 1.35 * page_cap:
        return None
    space = max(1.5, _WORD_GAP * cap)
    # As plain numbers, which are faster one by one.
    corners = np.stack((left, top, left + w, top + h), axis=1)[np.argsort(left)].tolist()
    parts = _joined(corners, 1)
    words = _joined(parts, space)
    return Segment(
        (round(x1 * scale), round(y1 * scale), round(x2 * scale), round(y2 * scale)),
        cap / _CAP_EM * scale,
        tuple((round(a * scale), round(b * scale)) for a, _, b, _ in words),
        tuple((round(a * scale), round(b * scale), round(c * scale), round(d * scale)) for a, b, c, d in parts),
    )


def _joined(boxes: Sequence[Sequence[int]], gap: float) -> list[tuple[int, int, int, int]]:
    """Boxes, from left to right, joined with those before where no wider gap parts them."""
    result: list[tuple[int, int, int, int]] = []
    for x1, y1, x2, y2 in boxes:
        if result and x1 - result[-1][2] <= gap:
            last = result[-1]
            result[-1] = (last[0], min(last[1], y1), max(last[2], x2), max(last[3], y2))
        else:
            result.append((x1, y1, x2, y2))
    return result
