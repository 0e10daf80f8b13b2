"""Rules on a page, as lines of tables, frames and underlines are.

Level and upright strokes that are too long for letters and too thin for pictures; stems of large letters are told from
them. Knows OpenCV and numpy.

Shape letters: N shapes, H and W pixels of the level page.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.images.ink import Relief
from shared.images.ink_lines import label_shapes, places_in

_RULE_CAPS, _LEVEL_CAPS = 2.6, 4.0
"""An upright and a level stroke longer than so many capitals is a rule, not a letter's."""
_BARE_SHARE = 0.22
"""Less than about this share of a rule's edge has ink beyond; of a long one, on one side at least."""
_UNDERLINE_SHARE = 0.6
"""And on the other no more than under letters."""
_STRIKE_CAPS, _STRIKE_THICK, _STRIKE_SHARE = 5.0, 0.22, (0.12, 0.65)
"""A line through text is at least so long and at most so thick, in capitals, and has letters along such a share of each
side."""
_STEM_SHARE, _LETTERS_NEAR = 1.35, 2
"""A stem's letter is at most so much higher, and has so many letters of its size near."""
_LONGEST_WORD_CAPS = 10
_FOOT_CAPS = 0.3
"""Height of a stroke that stays where it meets an underline."""
_FAINT_RULE_SHARE = 0.1
RULE_THICK_PX = 7
_SAMPLED_PX = 8


def darker_than(depth_HW: NDArray[np.uint8], least: float) -> NDArray[np.uint8]:
    """Where print is darker than this: 1, elsewhere 0."""
    _, result = cv2.threshold(depth_HW, math.floor(least), 1, cv2.THRESH_BINARY)
    return result  # type: ignore[return-value]


def find_rules(relief: Relief, mask_HW: NDArray[np.uint8], cap: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Find rules, faint ones too.

    Args:
        relief: The page's.
        mask_HW: Its print and rules.
        cap: Height of a capital.

    Returns:
        Pixels of rules, and of the upright of these.
    """
    # Some are fainter than print and broken where print is near; others lie on a tinted ground, which joins faint ones.
    least = max(relief.threshold, _FAINT_RULE_SHARE * relief.darkest)
    faint_HW = darker_than(relief.depth_HW, least) | mask_HW
    rules_HW, upright_HW = _rules(mask_HW, cap)
    faint_rules_HW, faint_upright_HW = _rules(faint_HW, cap)
    return rules_HW | faint_rules_HW, upright_HW | faint_upright_HW


def _rules(mask_HW: NDArray[np.uint8], cap: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pixels of straight strokes that are too long for letters and too thin for pictures, and the upright of these."""
    found: Any = _level_rules(mask_HW, max(36, round(_LEVEL_CAPS * cap)), cap, may_strike=True)
    found = cv2.dilate(found, np.ones((3, 1), np.uint8))
    upright: Any = _level_rules(_turned(mask_HW), max(24, round(_RULE_CAPS * cap)), cap, may_strike=False)
    upright = _turned(upright)
    upright &= ~_stems(upright, mask_HW)
    # Their soft edges too, or they would be strokes.
    upright = cv2.dilate(upright, np.ones((1, 3), np.uint8))
    return (found & ~_crossing(mask_HW, found, upright, cap) | upright) & mask_HW, upright & mask_HW


def _crossing(
    mask_HW: NDArray[np.uint8], found_HW: NDArray[np.uint8], upright_HW: NDArray[np.uint8], cap: float
) -> NDArray[np.uint8]:
    """Pixels of level rules below a letter's stroke: without them underlined letters would lose their feet."""
    result = np.zeros_like(found_HW)
    if not found_HW.any():
        return result
    reached_HW: Any = mask_HW & ~found_HW & ~upright_HW
    # A rule's own rough edge is lower than this.
    reached_HW = cv2.morphologyEx(reached_HW, cv2.MORPH_OPEN, np.ones((max(3, round(_FOOT_CAPS * cap)), 1), np.uint8))
    width = found_HW.shape[1]
    places = places_in(reached_HW[:-1] & found_HW[1:]) + width
    for _ in range(RULE_THICK_PX + 2):
        result.ravel()[places] = 1
        places = places[places < found_HW.size - width] + width
        places = places[found_HW.ravel()[places] > 0]
    return result


def _stems(upright_HW: NDArray[np.uint8], mask_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Which upright strokes are of large letters: shapes no higher than the stroke, among letters of that height."""
    result = np.zeros_like(mask_HW)
    if not upright_HW.any():
        return result
    count, strokes_HW, strokes = label_shapes(upright_HW)
    _, shapes_HW, shapes = label_shapes(mask_HW)
    left, top, w, h, _ = shapes.T
    is_letter = (w > 0.35 * h) & (w < 1.6 * h)
    is_letter[0] = False
    for number in range(1, count):
        x, y, width, height, _ = strokes[number].tolist()
        inside = shapes_HW[y : y + height, x : x + width][strokes_HW[y : y + height, x : x + width] == number]
        own = int(np.bincount(inside[inside > 0], minlength=1).argmax()) if (inside > 0).any() else 0
        if not own or h[own] > _STEM_SHARE * height or w[own] > 1.6 * h[own]:
            continue
        near = is_letter & (h > 0.55 * height) & (h < 1.6 * height)
        near &= (left < x + 3 * height) & (left + w > x - 3 * height)
        near &= (np.minimum(top + h, y + height) - np.maximum(top, y)) > 0.5 * height
        near[own] = False
        if near.sum() >= _LETTERS_NEAR:
            place = slice(y, y + height), slice(x, x + width)
            result[place] |= (strokes_HW[place] == number).astype(np.uint8)
    return result


def _level_rules(mask_HW: NDArray[np.uint8], long: int, cap: float, *, may_strike: bool) -> NDArray[np.uint8]:
    """Rules of at least this length, and lines through text between its letters if `may_strike`."""
    # A scanned rule is not quite straight: gaps of a pixel in it are closed first.
    thick_HW: Any = cv2.dilate(mask_HW, np.ones((3, 1), np.uint8))
    # Few rows have long strokes, and those that have show them in every eighth column, too. What the page's edge cuts
    # may be shorter, and on the right end between two of these columns.
    sampled_HW: Any = np.ascontiguousarray(thick_HW[:, ::_SAMPLED_PX])
    sampled_HW = cv2.erode(sampled_HW, np.ones((1, long // _SAMPLED_PX), np.uint8))
    rows = np.flatnonzero(sampled_HW.any(axis=1) | (thick_HW[:, -1] > 0))
    opened_HW, result = np.zeros_like(mask_HW), np.zeros_like(mask_HW)
    if rows.size:
        opened_HW[rows] = cv2.morphologyEx(thick_HW[rows], cv2.MORPH_OPEN, np.ones((1, long), np.uint8))
    # Few pixels are of rules, so all else is done for these alone.
    places = places_in(opened_HW)
    if not places.size:
        return result
    width = mask_HW.shape[1]
    top, bottom = int(places[0]) // width, int(places[-1]) // width + 1
    count, labels_HW, stats = label_shapes(opened_HW[top:bottom])
    _, _, w, h, area = stats.T
    thickness = area / np.maximum(w, 1) - 2
    is_rule = (thickness <= max(4.0, 0.35 * cap)) & (h <= np.maximum(RULE_THICK_PX + 2, 0.02 * w + 6))
    # Letters that touch make long strokes too, but there is ink above and below these.
    labels = labels_HW.ravel()[places - top * width]
    above, below = (_share_inked(places, labels, count, opened_HW, mask_HW, step) for step in (-1, 1))
    is_bare = np.maximum(above, below) < 1.4 * _BARE_SHARE
    # No word is as long as this, and gaps between words end what is joined.
    is_long = w > _LONGEST_WORD_CAPS * cap
    is_bare |= is_long & (np.minimum(above, below) < _BARE_SHARE) & (np.maximum(above, below) < _UNDERLINE_SHARE)
    # Only a line through text has letters on both sides and joins its words.
    is_strike = is_rule & (w > _STRIKE_CAPS * cap) & (thickness <= max(3.0, _STRIKE_THICK * cap)) & may_strike
    is_strike &= (np.minimum(above, below) > _STRIKE_SHARE[0]) & (np.maximum(above, below) < _STRIKE_SHARE[1])
    result.ravel()[places[(is_rule & (is_bare | is_strike))[labels]]] = 1
    for x, y, width, height, _ in stats[is_strike].tolist():
        _keep_letters(result, mask_HW, (x, top + y, x + width, top + y + height))
    return result


def _keep_letters(rules_HW: NDArray[np.uint8], mask_HW: NDArray[np.uint8], box: tuple[int, int, int, int]) -> None:
    """Take a line through text out of the rules where it crosses letters, which would fall apart without it."""
    x1, y1, x2, y2 = box
    rows = slice(max(y1 - 1, 0), y2 + 1)
    letters_hw = mask_HW[rows, x1:x2] & ~rules_HW[rows, x1:x2]
    rules_HW[y1:y2, x1:x2][:, letters_hw.any(axis=0)] = 0


def _share_inked(
    places: NDArray[np.int64],
    labels: NDArray[np.int32],
    count: int,
    opened_HW: NDArray[np.uint8],
    mask_HW: NDArray[np.uint8],
    step: int,
) -> NDArray[np.float64]:
    """Of each shape, how much of its edge has ink a little beyond, above with a step of -1 and below with 1."""
    width = mask_HW.shape[1]
    is_edge = np.take(opened_HW, places + step * width, mode="wrap") == 0
    labels = labels[is_edge]
    inked = np.bincount(labels, np.take(mask_HW, places[is_edge] + 2 * step * width, mode="wrap"), count)
    result: NDArray[np.float64] = inked / np.maximum(np.bincount(labels, minlength=count), 1)
    return result


def _turned(mask_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows as columns."""
    result: Any = cv2.transpose(mask_HW)
    return result


def bits_of_rules(stats: NDArray[np.int32], is_shape: NDArray[np.bool_], cap: float) -> NDArray[np.bool_]:
    """Which shapes are upright strokes with no letter of their height near."""
    left, top, w, h, area = stats.T
    result = np.zeros(len(stats), np.bool_)
    is_letter = is_shape & (w > 0.35 * h)
    for index in np.flatnonzero(is_shape & (h > 1.4 * cap) & (w < 0.3 * h) & (area > 0.7 * w * h)).tolist():
        near = is_letter & (h > 0.65 * h[index]) & (h < 1.6 * h[index])
        near &= (left < left[index] + 4 * h[index]) & (left + w > left[index] - 4 * h[index])
        near &= (top < top[index] + h[index]) & (top + h > top[index])
        result[index] = not near.any()
    return result
