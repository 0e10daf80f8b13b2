"""Breaks text into lines and draws a line with several faces, in any script that Pillow's shaper knows.

A line's truth is the string that was drawn, in logical order.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from PIL import ImageDraw, ImageFont

from trainer.data.render.bidi import base_level, levels, visual_order
from trainer.data.render.faces import JOINERS, Face, FaceSet, is_invisible

_NO_START: Final = frozenset(
    "、。，．・：；？！）］｝〉》」』】〕〗｠»〞〟々〻ヽヾゝゞ゛゜ー〜～゠…‥’”%),.:;?!]}％‰℃°′″￠｡､｣･ｰ"
    "ぁぃぅぇぉっゃゅょゎゕゖァィゥェォッャュョヮヵヶㇰㇱㇲㇳㇴㇵㇶㇷㇸㇹㇺㇻㇼㇽㇾㇿｧｨｩｪｫｬｭｮｯ"
    "ะาำๅๆฯ"
)
"""Characters that may not start a line: closing marks, small kana, marks after a number, Thai vowels after their
consonant. Source: JIS X 4051:2004 (line breaking), classes cl-02 to cl-07, cl-09 to cl-11 and cl-13 of JLREQ."""
_IDEOGRAPHIC: Final = ((0x2E80, 0x9FFF), (0xF900, 0xFAFF), (0xFF00, 0xFFEF), (0x20000, 0x3FFFF))
_NO_END: Final = frozenset("（［｛〈《「『【〔〖｟«〝‘“([{￥＄￡＃№เแโใไ")
"""Characters that may not end one, including Thai vowels written before their consonant."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Part of a line in one face and one direction."""

    text: str
    font: ImageFont.FreeTypeFont
    is_rtl: bool


class LineSetter:
    """Faces of one document at one size."""

    def __init__(self, faces: FaceSet, chosen: Sequence[Face], size_px: int) -> None:
        """Load the main face and its fallbacks at an em size in pixels."""
        self._faces = [(face, faces.load(face, size_px)) for face in chosen]
        self._has_shaper = faces.has_shaper
        self._plain: dict[str, bool] = {}
        metrics = [font.getmetrics() for _, font in self._faces]
        self.ascent = max(above for above, _ in metrics)
        self.descent = max(below for _, below in metrics)

    def width(self, text: str, base: int) -> float:
        """Advance width of a line in pixels."""
        return sum(self._segment_width(segment) for segment in self.segments(text, base))

    def draw(self, canvas: ImageDraw.ImageDraw, x: float, baseline: int, text: str, base: int) -> None:
        """Draw a line.

        Args:
            canvas: where to draw.
            x: left edge, pixels.
            baseline: row of the baseline, pixels.
            text: in logical order.
            base: bidi level of its paragraph.
        """
        for segment in self.segments(text, base):
            canvas.text(
                (x, baseline), segment.text, font=segment.font, fill=0, anchor="ls", direction=self._direction(segment)
            )
            x += self._segment_width(segment)

    def segments(self, text: str, base: int) -> list[Segment]:
        """Cut a line where face or direction changes; segments in visual order."""
        # Most lines are one piece, and a line is measured many times while it is broken.
        if not base and all(map(self._is_plain, text)):
            return [Segment(text, self._faces[0][1], is_rtl=False)]
        keys = list(zip(levels(text, base), self._face_numbers(text), strict=True))
        pieces: list[tuple[int, Segment]] = []
        start = 0
        for (level, number), group in groupby(keys):
            end = start + len(list(group))
            pieces.append((level, Segment(text[start:end], self._faces[number][1], bool(level % 2))))
            start = end
        return [segment for _, segment in visual_order(pieces)]

    def break_paragraph(self, text: str, room_px: int) -> Iterator[str]:
        """Break a paragraph into lines no wider than `room_px`, unless a single cluster is; white space collapses."""
        base = base_level(text)
        line = ""
        for word in text.split():
            joined = f"{line} {word}" if line else word
            if self.width(joined, base) <= room_px:
                line = joined
                continue
            # A word in a script without spaces starts on the current line; any other moves to the next one if it fits.
            is_dense = any(is_ideographic(character) for character in word)
            if line and not is_dense:
                yield line
                line = ""
            pieces = clusters(word)
            line = f"{line} " if line else ""
            while pieces:
                count = self._fitting(line, pieces, room_px, base)
                if not count and line.strip():
                    yield line.rstrip()
                    line = ""
                    continue
                count = count or 1
                line += "".join(pieces[:count])
                pieces = pieces[count:]
                if pieces:
                    yield line
                    line = ""
        if line:
            yield line

    def _fitting(self, line: str, pieces: list[str], room_px: int, base: int) -> int:
        """How many clusters fit after a line, reduced to where a break is allowed."""
        low, high = 0, len(pieces)
        while low < high:
            middle = (low + high + 1) // 2
            if self.width(line + "".join(pieces[:middle]), base) <= room_px:
                low = middle
            else:
                high = middle - 1
        if low == len(pieces):
            return low
        best = low
        while best > 0 and (pieces[best][0] in _NO_START or pieces[best - 1][0] in _NO_END):
            best -= 1
        return best if best or line.strip() else low

    def _is_plain(self, character: str) -> bool:
        """Whether the first face has it and it always runs left to right."""
        known = self._plain.get(character)
        if known is None:
            is_drawn = ord(character) in self._faces[0][0].characters
            known = is_drawn and unicodedata.bidirectional(character) not in {"R", "AL", "AN"}
            self._plain[character] = known
        return known

    def _face_numbers(self, text: str) -> list[int]:
        """Which face draws each letter; others keep the previous face if possible."""
        numbers: list[int] = []
        for character in text:
            before = numbers[-1] if numbers else 0
            able = [number for number, (face, _) in enumerate(self._faces) if ord(character) in face.characters]
            is_letter = unicodedata.category(character).startswith("L")
            numbers.append(before if not able or (not is_letter and before in able) else able[0])
        return numbers

    def _segment_width(self, segment: Segment) -> float:
        return float(segment.font.getlength(segment.text, direction=self._direction(segment)))

    def _direction(self, segment: Segment) -> str | None:
        return ("rtl" if segment.is_rtl else "ltr") if self._has_shaper else None


def clusters(word: str) -> list[str]:
    """Cut a word into clusters: a letter with its marks, joiners and what they join."""
    found: list[str] = []
    for character in word:
        is_mark = unicodedata.category(character) in {"Mn", "Me", "Mc"} or is_invisible(character)
        if found and (is_mark or found[-1][-1] in JOINERS):
            found[-1] += character
        else:
            found.append(character)
    return found


def is_ideographic(character: str) -> bool:
    """Whether a script is written without spaces, so that a line may break between any two characters."""
    return any(first <= ord(character) <= last for first, last in _IDEOGRAPHIC)
