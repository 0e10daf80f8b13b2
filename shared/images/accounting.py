"""Holds a text against the print on its page: which lines of print it accounts for, and how often it may repeat.

Words are compared by their widths, so nothing is recognised here: a line of print is accounted for if somewhere in the
text as many words follow each other with the same widths. Every word of the text accounts for print once. Knows numpy,
no OpenCV and no model.

Shape letters: L lines of print, N words of a line, S scales, T words of the text.
"""

from __future__ import annotations

import html
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from shared.images.page_ink import InkLine

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 on the page."""

_SCALES = np.array([1.25, 1.45, 1.68, 1.95, 2.25], np.float32)[:, None]
"""Em sizes by heights of characters that are tried for each line: capitals and digits are 0.72 em high, other letters
mostly 0.52 em."""
_TYPICAL_SCALE = 1.68
_MOST_CELLS = 1 << 16
"""Lines, scales and words of the text that are looked at together, so that arrays stay in the processor's cache."""
_SPACE_EM = 0.28
_JOINED = 0.4
"""What it costs that a space was missed or seen where there is none, in em."""
_JOINED_SPACE = 0.6 * _SPACE_EM
"""Where a word was taken for two, the gap in it is narrower than a space."""
_MOST_DIFFERENT = 0.12
"""A line and words of the text whose widths differ by more than this share are not the same."""
_ROWS_DIFFERENT = 0.2
"""Of rows that are alike less is asked."""
_MISREAD_DIFFERENT = 0.2
"""Of words that no other line has, less is asked as well: misread ones have other widths."""
_SAME_TEXT = 0.02
"""And of the same text in other widths, nothing but rounding."""
_LONG_EM = 7.0
"""Lines of some 14 characters and more are found anywhere in the text; shorter ones fit too many places."""
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|^\s*[|:\s-]*-{3,}[|:\s-]*$|^#{1,6}\s|^\s*[-*]\s(?=\S)|\*\*|[|]", re.MULTILINE)
_CELL_END = re.compile(r"</?(?:t[dhr]|table|p|div|li|br|h[1-6])\b[^<>]*>|[|]", re.IGNORECASE)
"""Where print has a gap or a new line, though the text may have neither."""
_LEADER = re.compile(r"[.\-_·…‥–—]+")
"""Dots and dashes have no height, so they are not among the words of print."""
_NARROW, _WIDE = frozenset("iljtfrI.,;:'|!()[]{}`\"-*^°·’‘"), frozenset("mwMW@%—…œæŒÆ")


@dataclass(frozen=True, slots=True)
class Account:
    """What of a page's print a text accounts for."""

    coverage: float
    """Share of the print, by characters, 0 to 1; 1 where there is no print."""
    unread: tuple[Box, ...]
    """Where the rest is, in blocks from top to bottom."""


@dataclass(frozen=True, slots=True)
class BoxedText:
    """A line that was read by itself."""

    box_px: Box
    text: str


def account(text: str, lines: Sequence[InkLine], boxed: Sequence[BoxedText] = ()) -> Account:
    """Find the print that a text accounts for.

    Args:
        text: What was read, plain, in Markdown or with HTML tables.
        lines: The print of the page, or of the part that was read.
        boxed: The lines of the text with their places, if each was read by itself: print has the text of its own place,
            whatever is like it elsewhere, and a passage that comes twice is printed twice. A text that was read as a
            whole may have run in a circle.

    Returns:
        The share that was read, and where the rest is.
    """
    if not lines:
        return Account(1.0, ())
    reading = _Reading(text)
    if not boxed and not _groups(lines):
        reading.drop_repeats()
    unread, sizes = _unread(reading, lines)
    if unread and boxed:
        # The widths of words have told how large the print is, so that lengths can be compared.
        others, rest = _without_own(lines, sizes, boxed)
        left = [lines[index] for index in others]
        unread = [others[index] for index in _unread(_Reading(rest), left)[0]] if left else []
    size_of = {id(lines[index]): float(sizes[index]) for index in unread}
    blocks = _blocks([lines[index] for index in unread])
    kept = [block for block in blocks if _is_worth_telling(block)]
    missing = sum(size_of[id(line)] for block in kept for line in block)
    boxes = sorted((_around(block) for block in kept), key=lambda box: (box[1], box[0]))
    return Account(max(0.0, 1.0 - missing / float(sizes.sum())), tuple(boxes))


def _unread(reading: _Reading, lines: Sequence[InkLine]) -> tuple[list[int], NDArray[np.float64]]:
    """Lines of print that a text does not account for, and the widths of all of them in em, `[L]`."""
    found = _match(reading, lines, np.array([_ems(line) for line in lines]))
    sizes = _sizes(reading, lines, found)
    return _spread_rest(reading, lines, sizes, found), sizes


def _without_own(
    lines: Sequence[InkLine], sizes: NDArray[np.float64], boxed: Sequence[BoxedText]
) -> tuple[list[int], str]:
    """Lines of print that do not have the text of their own place, and the texts that are no line's.

    A text is that of its place if it is about as long as the print there: circles to tick and frames are print that
    needs no text, and a line of which a part was left out is too short.

    Args:
        lines: The print.
        sizes: Widths of the lines in em, `[L]`.
        boxed: The lines of the text.

    Returns:
        Numbers of the lines of print, and the texts, one a line.
    """
    line_L4 = np.array([line.box_px for line in lines], np.float64)
    answered_L = np.zeros(len(lines))
    rest: list[str] = []
    for each in boxed:
        share_L = _shares_within(line_L4, each.box_px)
        if _Reading(each.text).ems.sum() >= _OWN_LENGTH * float(share_L @ sizes):
            answered_L += share_L
        else:
            rest.append(each.text)
    return np.flatnonzero(answered_L < _OWN_SHARE).tolist(), "\n".join(rest)


def _shares_within(line_L4: NDArray[np.float64], box_px: Box) -> NDArray[np.float64]:
    """Share of each line's width that a box in the same row covers, 0 to 1."""
    x1, y1, x2, y2 = box_px
    left_L, top_L, right_L, bottom_L = line_L4.T
    middle_L = (top_L + bottom_L) / 2
    in_row_L = ((y1 <= middle_L) & (middle_L <= y2)) | ((top_L <= (y1 + y2) / 2) & ((y1 + y2) / 2 <= bottom_L))
    across_L = np.minimum(right_L, x2) - np.maximum(left_L, x1)
    return np.where(in_row_L, np.clip(across_L / np.maximum(right_L - left_L, 1.0), 0.0, 1.0), 0.0)


_OWN_LENGTH = 0.75
"""A text is not shorter than this share of the print in its box."""
_OWN_SHARE = 0.5
"""Of a line's width, that has to be in boxes with a text of their own."""


def repeats(unit: str, before: str, lines: Sequence[InkLine]) -> int:
    """How many times a text that repeats can be on the page.

    Rows that are the same have words of the same widths, so print counts if it is like the text and has its like on the
    page. What is like it in the text before has its print already.

    Args:
        unit: What is repeated, once.
        before: The text before the first time.
        lines: The page's print.

    Returns:
        As often as there is print; 0 if there is none, or if the text has neither letters nor digits.
    """
    once = _Reading(unit)
    num_words = len(once.ems)
    if not any(character.isalnum() for character in unit):
        return 0
    written = [_as_print(line) for line in before.split("\n") if line.strip()]
    longest = max((len(line.words_px) for line in (*lines, *written)), default=0)
    cyclic = _Reading(" ".join([unit] * (2 + longest // num_words + 1)))
    groups = [_words_like(cyclic, num_words, group) for group in _groups(lines)]
    # Any word is like words of one other width at another size of print, so a single word has one group.
    shown = max(groups, default=0) if num_words == 1 else sum(groups)
    return max(0, round((shown - _words_like(cyclic, num_words, written, _SAME_TEXT)) / num_words))


def _words_like(
    cyclic: _Reading, period: int, lines: Sequence[InkLine], most_different: float = _ROWS_DIFFERENT
) -> int:
    """Words of a text, which repeats after so many of them, that lines have."""
    matches = [_find(cyclic, line, most_different) for line in lines if _may_repeat(line, period)]
    return sum(match.end - match.start for match in matches if match is not None)


def _may_repeat(line: InkLine, period: int) -> bool:
    """Whether a line's words repeat after so many of them, as far as it is longer than that."""
    widths = np.array(line.words_px, np.float64)
    return bool(_are_same(widths[:-period], widths[period:], line.body_px).all())


def _are_same(one: NDArray[np.float64], other: NDArray[np.float64], body_px: float) -> NDArray[np.bool_]:
    """Which words have one width, apart from pixels and noise."""
    return np.abs(one - other) <= np.maximum(_SAME_BODY * body_px, _SAME_SHARE * one)


def _groups(lines: Sequence[InkLine]) -> list[list[InkLine]]:
    """Lines whose words have the same widths, at least three in a group."""
    by_words: dict[int, list[InkLine]] = defaultdict(list)
    for line in lines:
        by_words[len(line.words_px)].append(line)
    groups: list[list[InkLine]] = []
    for rest in by_words.values():
        while len(rest) >= _FEWEST_LIKE:
            first = np.array(rest[len(rest) // 2].words_px, np.float64)
            widths_NW = np.array([line.words_px for line in rest], np.float64)
            is_same_N = np.asarray(_are_same(widths_NW, first, rest[0].body_px).all(axis=1))
            group = [line for line, is_same in zip(rest, is_same_N, strict=True) if is_same]
            rest = [line for line, is_same in zip(rest, is_same_N, strict=True) if not is_same]  # noqa: PLW2901
            if len(group) >= _FEWEST_LIKE:
                groups.append(group)
    return groups


def _as_print(text: str) -> InkLine:
    """A line of text as if it were printed."""
    ems = _Reading(text).ems
    return InkLine((0, 0, 1, 1), tuple(max(1, round(100 * em)) for em in ems) or (1,), 100 / _TYPICAL_SCALE)


_SAME_BODY, _SAME_SHARE = 0.35, 0.04
"""Words of one width differ by less, in heights of a character and as a share, from pixels and noise."""
_FEWEST_LIKE = 3
_PASSAGE = 12
"""Words of a passage."""
_GRAM = 4
"""So many words in a row that come twice are a repeat."""


@dataclass(frozen=True, slots=True)
class _Match:
    start: int
    end: int
    cost: float


class _Reading:
    """The words of a text, and which of them have been used."""

    def __init__(self, text: str) -> None:
        plain = html.unescape(_TAG.sub(" ", _CELL_END.sub("\n", text)))
        lines = [[word for word in line.split() if _LEADER.fullmatch(word) is None] for line in plain.split("\n")]
        self._words = [word for line in lines for word in line]
        self._breaks = {0, *accumulate(map(len, lines))}
        """Before which words, and after the last one, a line or a cell of the text ends."""
        self.ems = np.array([_width(word) for word in self._words], np.float64)
        self.is_free = np.ones(len(self.ems), np.bool_)

    @property
    def is_repeat(self) -> NDArray[np.bool_]:
        """Which words say again what other words, that a line has, say already."""
        grams = [tuple(self._words[place : place + _GRAM]) for place in range(len(self._words) - _GRAM + 1)]
        has_line = {gram for place, gram in enumerate(grams) if not self.is_free[place : place + _GRAM].any()}
        result = np.zeros(len(self._words), np.bool_)
        for place, gram in enumerate(grams):
            if gram in has_line:
                result[place : place + _GRAM] = True
        return result

    def drop_repeats(self) -> None:
        """Leave out words that say a passage again: a page without rows that are alike has it once."""
        seen: set[tuple[str, ...]] = set()
        for place in range(len(self._words) - _PASSAGE + 1):
            passage = tuple(self._words[place : place + _PASSAGE])
            if passage in seen:
                self.is_free[place : place + _PASSAGE] = False
                self.ems[place : place + _PASSAGE] = 0.0
            seen.add(passage)

    def is_whole(self, match: _Match) -> bool:
        """Whether the words are all of a line, or of several, as the text has them."""
        return match.start in self._breaks and match.end in self._breaks

    def use(self, match: _Match) -> None:
        """Let a line have its words."""
        self.is_free[match.start : match.end] = False


def _width(word: str) -> float:
    """Width of a word in em, as common faces have it."""
    width = 0.0
    for character in word:
        if character in _NARROW:
            width += 0.31
        elif character in _WIDE:
            width += 0.86
        elif character.isupper():
            width += 0.68
        elif ord(character) >= 0x2E80:
            width += 1.0
        else:
            width += 0.53
    return width


def _ems(line: InkLine) -> float:
    """Width of a line's words in em."""
    return sum(line.words_px) / (line.body_px * _TYPICAL_SCALE)


def _find(reading: _Reading, line: InkLine, most_different: float = _MOST_DIFFERENT) -> _Match | None:
    """The words of a text whose widths are most like a line's; None if none are like it."""
    return _find_all(reading, [line], most_different)[0]


def _find_all(
    reading: _Reading, lines: Sequence[InkLine], most_different: float = _MOST_DIFFERENT
) -> list[_Match | None]:
    """For each line, as if it were the only one, the words of a text whose widths are most like its own.

    Each word of a line is one word of the text, a part of one, or several that touch.
    """
    found: list[_Match | None] = [None] * len(lines)
    if not len(reading.ems):
        return found
    # The longest first, so that those which still have words are at the front of each step.
    order = sorted(range(len(lines)), key=lambda index: -len(lines[index].words_px))
    at_once = max(1, _MOST_CELLS // (len(_SCALES) * len(reading.ems)))
    for first in range(0, len(order), at_once):
        part = order[first : first + at_once]
        alignment = _Alignment(reading, [lines[index] for index in part])
        for index, match in zip(part, alignment.best(most_different), strict=True):
            found[index] = match
    return found


class _Alignment:
    """Where lines, the longest first, may be in a text: dynamic programming over words, for all lines together."""

    def __init__(self, reading: _Reading, lines: Sequence[InkLine]) -> None:
        self._ems_T = reading.ems.astype(np.float32)
        self._is_free_T = reading.is_free.copy()
        self._words = [line.words_px for line in lines]
        self._size_LS1 = np.array([line.body_px for line in lines], np.float32)[:, None, None] * _SCALES
        blocked_T = np.where(reading.is_free, 0.0, np.inf).astype(np.float32)
        self._costs = self._place(blocked_T)
        """[n][l, s, e]: of the first n words of line l, the last of which ends before word e of the text."""

    def _place(self, blocked_T: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """What the cheapest placing of each line's first words costs: none of them, one, and so on."""
        counts, size_LS1, ems_T = [len(words) for words in self._words], self._size_LS1, self._ems_T
        width_LN = np.zeros((len(counts), counts[0]), np.float32)
        for row, words in enumerate(self._words):
            width_LN[row, : counts[row]] = words
        two_LST = size_LS1 * (ems_T[:-1] + ems_T[1:] + np.float32(_SPACE_EM))
        one_LST = size_LS1 * ems_T
        joined_LST = np.float32(_JOINED) * size_LS1 + blocked_T
        joined_two_LST = joined_LST[..., :-1] + blocked_T[1:]
        costs = [np.zeros((*one_LST.shape[:2], len(ems_T) + 1), np.float32)]
        active = len(counts)
        for number in range(counts[0]):
            while counts[active - 1] <= number:
                active -= 1
            before, word_L11 = costs[-1][:active], width_LN[:active, number, None, None]
            cost = np.full(before.shape, np.inf, np.float32)
            offered = np.abs(word_L11 - one_LST[:active])
            offered += blocked_T
            np.add(offered, before[..., :-1], out=cost[..., 1:])
            offered = np.abs(word_L11 - two_LST[:active])
            offered += joined_two_LST[:active]
            offered += before[..., :-2]
            np.minimum(cost[..., 2:], offered, out=cost[..., 2:])
            if number:
                space_LS1 = np.float32(_JOINED_SPACE) * size_LS1[:active]
                offered = np.abs(width_LN[:active, number - 1, None, None] + word_L11 + space_LS1 - one_LST[:active])
                offered += joined_LST[:active]
                offered += costs[-2][:active, :, :-1]
                np.minimum(cost[..., 1:], offered, out=cost[..., 1:])
            costs.append(cost)
        return costs

    def best(self, most_different: float) -> list[_Match | None]:
        """The cheapest place of each line; None where widths differ by more than a share."""
        found: list[_Match | None] = []
        for line, words in enumerate(self._words):
            cost_SE = self._costs[len(words)][line]
            scale, end = divmod(int(cost_SE.argmin()), cost_SE.shape[1])
            share = float(cost_SE[scale, end]) / sum(words)
            is_like = share <= most_different
            found.append(_Match(self._begin(line, scale, end), end, share) if is_like else None)
        return found

    def _begin(self, line: int, scale: int, end: int) -> int:
        """Where the words begin whose cheapest place ends there."""
        words, size = self._words[line], float(self._size_LS1[line, scale, 0])
        number = len(words)
        while number:
            word, em = words[number - 1], float(self._ems_T[end - 1])
            one = float(self._costs[number - 1][line, scale, end - 1]) + abs(word - size * em)
            two = part = math.inf
            if end > 1 and self._is_free_T[end - 2]:
                both = float(self._ems_T[end - 2]) + em + _SPACE_EM
                two = float(self._costs[number - 1][line, scale, end - 2]) + abs(word - size * both) + _JOINED * size
            if number > 1:
                whole = words[number - 2] + word + _JOINED_SPACE * size
                part = float(self._costs[number - 2][line, scale, end - 1]) + abs(whole - size * em) + _JOINED * size
            cheapest = min(one, two, part)
            end -= 2 if cheapest == two else 1
            number -= 2 if cheapest == part else 1
        return end


def _match(reading: _Reading, lines: Sequence[InkLine], sizes: NDArray[np.float64]) -> dict[int, _Match]:
    """Give lines their words: those first whose words are a line of the text too; lines that were misread last."""
    found: dict[int, _Match] = {}
    for most_different in (_MOST_DIFFERENT, _MISREAD_DIFFERENT):
        left = [index for index in range(len(lines)) if index not in found]
        matches = _find_all(reading, [lines[index] for index in left], most_different)
        order = [(index, match) for index, match in zip(left, matches, strict=True) if match is not None]
        order.sort(
            key=lambda place: (
                not reading.is_whole(place[1]),
                sizes[place[0]] < _LONG_EM,
                place[1].cost - 0.01 * len(lines[place[0]].words_px),
            )
        )
        for index, first in order:
            match: _Match | None = first
            if not reading.is_free[first.start : first.end].all():
                match = _find(reading, lines[index], most_different)
            if match is not None:
                reading.use(match)
                found[index] = match
    return found


def _sizes(reading: _Reading, lines: Sequence[InkLine], found: dict[int, _Match]) -> NDArray[np.float64]:
    """Widths of lines in em: of those that have words by these, of others by the lines near them.

    The height of characters alone does not tell: it is that of capitals in one line and of small letters in the next.
    """
    sizes = np.array([_ems(line) for line in lines])
    if not found:
        return sizes
    known = np.array(sorted(found))
    read_em = np.array([reading.ems[found[index].start : found[index].end].sum() for index in known])
    width_N = np.array([sum(line.words_px) for line in lines], np.float64)
    em_px = width_N[known] / np.maximum(read_em, 0.1)
    box_N4, body_N = np.array([line.box_px for line in lines]), np.array([line.body_px for line in lines])
    # Short words say little of their size.
    is_long = read_em >= _FEWEST_EM
    for index in range(len(lines)):
        is_like = is_long & (np.abs(np.log(body_N[known] / body_N[index])) < _LIKE_BODY)
        if index in found or not is_like.any():
            continue
        far_N = _distances(box_N4, index)[known[is_like]]
        near = np.argsort(far_N, kind="stable")[:_NEIGHBOURS]
        sizes[index] = width_N[index] / float(np.median(em_px[is_like][near]))
    sizes[known] = np.where(is_long, read_em, sizes[known])
    return sizes


def _spread_rest(
    reading: _Reading, lines: Sequence[InkLine], sizes: NDArray[np.float64], found: dict[int, _Match]
) -> list[int]:
    """Lines without words after the rest of the text went to them: words that were misread have other widths.

    Words that no line has go to the lines nearest to those that have theirs.
    """
    open_lines = {index for index in range(len(lines)) if index not in found}
    used = float(reading.ems[~reading.is_free].sum())
    per_em = float(sizes[list(found)].sum()) / used if used else 1.0
    room = float(reading.ems[reading.is_free & ~reading.is_repeat].sum()) * min(max(per_em, 0.7), 1.4)
    box_N4 = np.array([line.box_px for line in lines])
    far_N = np.full(len(lines), np.inf)
    for index in found:
        far_N = np.minimum(far_N, _distances(box_N4, index))
    if not found:
        far_N = box_N4[:, 1].astype(np.float64)
    while open_lines:
        nearest = min(open_lines, key=lambda index: far_N[index])
        if room < 0.5 * sizes[nearest]:
            break
        room -= float(sizes[nearest])
        open_lines.remove(nearest)
        far_N = np.minimum(far_N, _distances(box_N4, nearest))
    return sorted(open_lines)


def _distances(box_N4: NDArray[np.int64], index: int) -> NDArray[np.float64]:
    """How far lines are from one of them."""
    x1, y1, x2, y2 = box_N4[index]
    across_N = np.maximum(box_N4[:, 0] - x2, x1 - box_N4[:, 2])
    down_N = np.maximum(box_N4[:, 1] - y2, y1 - box_N4[:, 3])
    return np.maximum(across_N, 0) + 2.0 * np.maximum(down_N, 0)


def _blocks(lines: Sequence[InkLine]) -> list[list[InkLine]]:
    """Lines that are next to each other, as blocks."""
    blocks: list[list[InkLine]] = []
    for line in lines:
        near = [block for block in blocks if any(_touch(line, other) for other in block)]
        blocks = [block for block in blocks if block not in near]
        blocks.append([*(each for block in near for each in block), line])
    return blocks


def _touch(one: InkLine, other: InkLine) -> bool:
    reach = 2.5 * max(one.body_px, other.body_px)
    a, b = one.box_px, other.box_px
    return a[0] < b[2] + reach and b[0] < a[2] + reach and a[1] < b[3] + reach and b[1] < a[3] + reach


_NEIGHBOURS = 7
"""Lines by which the size of print is told."""
_LIKE_BODY = 0.6
"""Logarithm of the ratio of two heights of characters in print of one size, at most."""
_FEWEST_EM = 4.0
"""An unread block must have some 8 characters, else it may be a stain or a picture's edge."""


def _is_worth_telling(block: Sequence[InkLine]) -> bool:
    return sum(_ems(line) for line in block) >= _FEWEST_EM


def _around(lines: Sequence[InkLine]) -> Box:
    boxes = np.array([line.box_px for line in lines])
    x1, y1 = boxes[:, :2].min(axis=0)
    x2, y2 = boxes[:, 2:].max(axis=0)
    return int(x1), int(y1), int(x2), int(y2)
