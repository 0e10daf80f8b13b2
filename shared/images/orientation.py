"""Finds how a page of print has been turned: by 0, 90, 180 or 270 degrees. Knows OpenCV and numpy, no model of OCR.

A small network looks at windows around shapes of print, each three characters wide, in all four turns, and says how
upright they look; the turn in which most of them do wins. `trainer.orientation` is the recipe of its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shared.images.ink import Relief
from shared.images.ink_lines import usual_size
from shared.images.page_ink import Turn

WEIGHTS = Path(__file__).with_name("orientation.npz")
WINDOW_PX = 24
_CHARACTER_PX = 8
"""Longer side of a usual shape in a window."""
MOST_WINDOWS = 160
_FEWEST_WINDOWS = 6
"""Fewer shapes than this, such as a page number, tell nothing."""
_MARGIN = 0.25
"""A page is turned if its windows favour that by so much on average, in nats."""
_EVIDENCE = 6.0
"""And by so much together."""
_EVIDENCE_UPSIDE_DOWN = 12.0
"""By so much where it would be upside down: digits and capitals look alike from both sides."""
_LARGEST_CELL = 6
"""A frame up to so many times a usual shape's size is a cell of a form, and hides how print would look around it."""
_RULE_DARKNESS = 32
"""Of 255, all along a rule."""
_THICKEST_RULE_PX = 4
"""Of a window; thicker ones are strokes of a large letter next to small shapes."""
_LEAST_PX = 4
"""Lower shapes are points and dashes."""
_FIRST_LOOK = 32
"""So many windows are looked at first: most pages are upright, and a few windows tell."""
_CLEAR_MARGIN = 0.8
_CLEAR_EVIDENCE = 24.0
"""By how much upright has to be ahead there, a window and together, for the rest not to be looked at."""
_NO_WINDOWS = np.zeros((0, WINDOW_PX, WINDOW_PX), np.uint8)
TURNS: tuple[Turn, ...] = (0, 90, 180, 270)


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a page has to be turned to be upright."""

    turn_degrees: Turn
    """Clockwise: 0, 90, 180 or 270."""
    margin: float
    """By how much the windows favour it over the second best, in nats a window."""
    windows: int


def find_orientation(relief: Relief) -> Orientation:
    """Find out how a page is turned: 0 where print is too little, or tells too little."""
    first_NHW = _few_windows(relief)
    if len(first_NHW) >= _FEWEST_WINDOWS:
        score_R = np.mean(_log_shares(first_NHW), axis=0)
        margin = float(score_R[0] - score_R[1:].max())
        if margin >= _CLEAR_MARGIN and margin * len(first_NHW) >= _CLEAR_EVIDENCE:
            return Orientation(0, margin, len(first_NHW))
    windows_NHW = cut_windows(relief)
    if len(windows_NHW) < _FEWEST_WINDOWS:
        return Orientation(0, 0.0, len(windows_NHW))
    score_R = np.mean(_log_shares(windows_NHW), axis=0)
    best = int(score_R.argmax())
    ahead = float(score_R[best] - score_R[0])
    enough = _EVIDENCE_UPSIDE_DOWN if TURNS[best] == 180 else _EVIDENCE
    if best and (ahead < _MARGIN or ahead * len(windows_NHW) < enough):
        best = 0
    margin = float(score_R[best] - np.delete(score_R, best).max())
    return Orientation(TURNS[best], margin, len(windows_NHW))


def cut_windows(relief: Relief, most: int = MOST_WINDOWS) -> NDArray[np.uint8]:
    """Windows around shapes of print.

    Args:
        relief: The page's.
        most: How many at most, spread over the page.

    Returns:
        `[N, WINDOW_PX, WINDOW_PX]`, 255 is the darkest print.
    """
    boxes, usual = _choose_shapes(relief, most)
    if not len(boxes):
        return _NO_WINDOWS
    depth_HW, scale = relief.depth_HW, min(_CHARACTER_PX / usual, 4.0)
    size = max(1, round(depth_HW.shape[1] * scale)), max(1, round(depth_HW.shape[0] * scale))
    small_HW: Any = cv2.resize(depth_HW, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    half = WINDOW_PX // 2
    padded_HW = np.pad(small_HW, half)
    centres = (_middles(boxes) * scale).round().astype(int)
    centres = np.minimum(centres, [size[0] - 1, size[1] - 1])
    return _evenly_dark(np.stack([padded_HW[y : y + WINDOW_PX, x : x + WINDOW_PX] for x, y in centres.tolist()]))


def _few_windows(relief: Relief) -> NDArray[np.uint8]:
    """`_FIRST_LOOK` windows at most, in half the time.

    Each is cut out before it is resized, so that they differ a little from those of `cut_windows`, which the weights
    were made for: good enough to see that a page is clearly upright, and for nothing else.
    """
    boxes, usual = _choose_shapes(relief, _FIRST_LOOK)
    if not len(boxes):
        return _NO_WINDOWS
    side = max(1, round(WINDOW_PX * usual / _CHARACTER_PX))
    padded_HW = np.pad(relief.depth_HW, side)
    corners = (_middles(boxes) - side / 2).round().astype(int) + side
    method = cv2.INTER_AREA if side > WINDOW_PX else cv2.INTER_LINEAR
    cut = [padded_HW[y : y + side, x : x + side] for x, y in corners.tolist()]
    return _evenly_dark(np.stack([cv2.resize(each, (WINDOW_PX, WINDOW_PX), interpolation=method) for each in cut]))


def _choose_shapes(relief: Relief, most: int) -> tuple[NDArray[np.int32], float]:
    """Boxes of the shapes to look at, spread over the page, and the usual length of its shapes; none, and 0."""
    boxes = relief.shapes[relief.shapes[:, 3] >= _LEAST_PX]
    if not boxes.size:
        return boxes, 0.0
    long = boxes[:, 2:].max(axis=1)
    usual = usual_size(long)
    around = boxes[(long > 0.45 * usual) & (long < _LARGEST_CELL * usual)]
    boxes = boxes[(long > 0.45 * usual) & (long < 2.5 * usual)]
    if len(boxes):
        boxes = boxes[np.linspace(0, len(boxes) - 1, min(most, len(boxes))).round().astype(int)]
        boxes = boxes[~_in_cells(boxes, around)]
    return boxes, usual


def _middles(boxes: NDArray[np.int32]) -> NDArray[np.float64]:
    return boxes[:, :2] + boxes[:, 2:] / 2


def _evenly_dark(windows_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    darkest = np.maximum(windows_NHW.reshape(len(windows_NHW), -1).max(axis=1), 1)[:, None, None]
    return _without_rules((windows_NHW.astype(np.uint16) * 255 // darkest).astype(np.uint8))


def _without_rules(windows_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Take away what goes through a whole window and is thin: an underlined word looks like one on its head."""
    for axis in (2, 1):
        lightest_N = windows_NHW.min(axis=axis, keepdims=True)
        is_dark_N = lightest_N >= _RULE_DARKNESS
        is_thin_N = is_dark_N.sum(axis=3 - axis, keepdims=True) <= _THICKEST_RULE_PX
        windows_NHW = windows_NHW - lightest_N * (is_dark_N & is_thin_N)
    return windows_NHW


def _in_cells(boxes_N4: NDArray[np.int32], around_M4: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which boxes hold another one or are held by one."""
    left_N, top_N, width_N, height_N = boxes_N4.T[:, :, None]
    left_M, top_M, width_M, height_M = around_M4.T[:, None]
    right_N, bottom_N, right_M, bottom_M = left_N + width_N, top_N + height_N, left_M + width_M, top_M + height_M
    held_NM = (left_M < left_N) & (right_N < right_M) & (top_M < top_N) & (bottom_N < bottom_M)
    holds_NM = (left_N < left_M) & (right_M < right_N) & (top_N < top_M) & (bottom_M < bottom_N)
    result: NDArray[np.bool_] = (held_NM | holds_NM).any(axis=1)
    return result


def _log_shares(windows_NHW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How much each window favours each turn, `[N, 4]`, as logarithms of shares."""
    layers = _layers()
    (first_IO, bias_O), *rest = layers
    values: NDArray[np.float32] = windows_NHW.reshape(len(windows_NHW), -1).astype(np.float32) / np.float32(255)
    values = (values @ first_IO).reshape(len(windows_NHW), len(TURNS), -1) + bias_O
    for weight_IO, bias_O in rest:
        values = np.maximum(values, 0) @ weight_IO + bias_O
    score_NR = values[..., 0]
    score_NR = score_NR - score_NR.max(axis=1, keepdims=True)
    result: NDArray[np.float32] = score_NR - np.log(np.exp(score_NR).sum(axis=1, keepdims=True))
    return result


@cache
def _layers() -> tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]:
    """Weights and biases. The first layer's weights are there for each turn, so that no window has to be turned."""
    with np.load(WEIGHTS) as file:
        weights = {name: file[name].astype(np.float32) for name in file.files}
    layers = [(weights[f"w{layer}"], weights[f"b{layer}"]) for layer in range(len(weights) // 2)]
    first_HWO = layers[0][0].reshape(WINDOW_PX, WINDOW_PX, -1)
    turned = [np.rot90(first_HWO, turn).reshape(WINDOW_PX * WINDOW_PX, -1) for turn in range(len(TURNS))]
    return (np.concatenate(turned, axis=1), layers[0][1]), *layers[1:]
