"""Order of a line's characters where scripts of two directions meet.

Levels are those of FriBiDi, the implementation of the Unicode bidirectional algorithm that Pillow's shaper loads as
well. Pillow orders only one face at a time; a line of several faces must be cut and ordered before.

Source: Unicode Standard Annex #9, Unicode Bidirectional Algorithm; FriBiDi 1.0, fribidi-bidi.h.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from itertools import groupby
from typing import Any, Final, TypeVar

from trainer.data.errors import DataCode, DataError

Piece = TypeVar("Piece")
_LEFT_TO_RIGHT, _RIGHT_TO_LEFT = 0x110, 0x111
"""FriBiDi's types of a paragraph: a strong letter, and its direction."""
_LIBRARIES: Final = ("libfribidi.so.0", "libfribidi.0.dylib", "fribidi-0.dll", "fribidi.dll")
_ORDERED: Final = frozenset({"R", "AL", "AN"})
"""Without characters of these kinds a line has one direction."""


def base_level(text: str) -> int:
    """Base level of a paragraph: 1 if its first strong letter runs right to left, else 0."""
    for character in text:
        kind = unicodedata.bidirectional(character)
        if kind in {"L", "R", "AL"}:
            return int(kind != "L")
    return 0


def levels(line: str, base: int) -> list[int]:
    """Embedding level of each character of a line in logical order; odd levels run right to left.

    Raises `DataError` if the line has two directions and there is no FriBiDi.
    """
    if not base and not any(unicodedata.bidirectional(each) in _ORDERED for each in line):
        return [0] * len(line)
    count = len(line)
    characters = (ctypes.c_uint32 * count)(*map(ord, line))
    kinds, brackets = (ctypes.c_uint32 * count)(), (ctypes.c_uint32 * count)()
    found = (ctypes.c_int8 * count)()
    direction = ctypes.c_uint32(_RIGHT_TO_LEFT if base else _LEFT_TO_RIGHT)
    library = _fribidi()
    library.fribidi_get_bidi_types(characters, count, kinds)
    library.fribidi_get_bracket_types(characters, count, kinds, brackets)
    if not library.fribidi_get_par_embedding_levels_ex(kinds, brackets, count, ctypes.byref(direction), found):
        raise MemoryError("FriBiDi has no memory")
    end = len(line.rstrip())
    return [*list(found)[:end], *([base] * (count - end))]


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


@cache
def _fribidi() -> Any:
    """The library; raises `DataError` if this machine has none."""
    for name in (ctypes.util.find_library("fribidi"), *_LIBRARIES):
        with suppress(OSError):
            if name:
                return ctypes.CDLL(name)
    raise DataError(
        DataCode.SHAPING_MISSING,
        "text from right to left cannot be ordered: there is no FriBiDi",
        "install it (Debian: libfribidi0)",
    )
