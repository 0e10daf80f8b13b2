"""Font files of given folders: what each can draw, which face suits a text, and its fallbacks.

Folders are searched without fontconfig, so the same folders give the same pages on every machine.
"""

from __future__ import annotations

import io
import unicodedata
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from fontTools.ttLib import TTCollection, TTFont, TTLibError
from PIL import ImageFont, features

from trainer.data.errors import DataCode, DataError, RowCode, RowError
from trainer.data.render.language import JAPANESE, KOREAN, SIMPLIFIED, TRADITIONAL, han_language

SUFFIXES: Final = (".ttf", ".otf", ".ttc", ".otc")
LOADED: Final = 64
REGULAR: Final = 400
_NAMED_LANGUAGES: Final = {
    "JP": JAPANESE, "KR": KOREAN, "SC": SIMPLIFIED, "CN": SIMPLIFIED, "TC": TRADITIONAL, "TW": TRADITIONAL,
    "HK": TRADITIONAL,
}  # fmt: skip
_CODE_PAGES: Final = {17: JAPANESE, 18: SIMPLIFIED, 19: KOREAN, 20: TRADITIONAL, 21: KOREAN}
"""Bits of OS/2's ulCodePageRange1. Source: OpenType specification 1.9, OS/2."""
BUILT_IN: Final = "pillow-default"
"""Pillow's built-in face: Latin letters, for first tries."""
JOINERS: Final = "\u200c\u200d"
"""Invisible, but they decide how letters join."""


@dataclass(frozen=True, slots=True)
class Face:
    """One face.

    Attributes:
        name: its file's name, with the face's number where the file holds several.
        path: the file; None for the built-in face.
        index: number inside a collection.
        characters: code points that it draws.
        family: the name that its weights and slopes share.
        weight: from 1 to 1000; 400 is regular.
        is_italic: whether it slopes.
        languages: of Han characters that it is made for, of `trainer.data.render.language`; empty if it does not say.
    """

    name: str
    path: Path | None
    index: int
    characters: frozenset[int]
    family: str = ""
    weight: int = REGULAR
    is_italic: bool = False
    languages: frozenset[str] = frozenset()


class FaceSet:
    """All faces of some folders."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Read every font file's character map.

        Args:
            folders: searched recursively; none for the built-in face only.

        Raises:
            DataError: a folder is missing, or there are no fonts.
        """
        self.faces: tuple[Face, ...] = tuple(_find_faces(folders)) if folders else (_built_in(),)
        self._loaded: OrderedDict[tuple[str, int], ImageFont.FreeTypeFont] = OrderedDict()
        self.has_shaper = bool(features.check("raqm"))

    def choose(self, text: str, rng: Random, language: str | None = None) -> list[Face]:
        """Choose faces for a text: its main face, then those for characters it lacks, in order of use.

        Args:
            text: to draw.
            rng: picks among families that cover the text equally well, then among the family's faces: one with
                eighteen weights is as likely as one with a single face.
            language: of its Han characters; None to guess.

        Returns:
            At least one face. Substitutes are those nearest in weight to the main one.

        Raises:
            RowError: no face has a character.
        """
        wanted = {ord(character) for character in text if not is_invisible(character)} | {ord(" ")}
        language = language or han_language(text)
        covered = [len(wanted & face.characters) for face in self.faces]
        best = max(covered)
        able = [face for face, count in zip(self.faces, covered, strict=True) if count == best]
        closest = min(_distance(face, language) for face in able)
        able = [face for face in able if _distance(face, language) == closest]
        family = rng.choice(sorted({face.family for face in able}))
        first = rng.choice([face for face in able if face.family == family])
        chosen, missing = [first], wanted - first.characters

        def likeness(face: Face) -> tuple[int, int, int, bool]:
            likes = -_distance(face, language), -abs(face.weight - first.weight), face.is_italic == first.is_italic
            return (len(missing & face.characters), *likes)

        while missing:
            face = max(self.faces, key=likeness)
            if not missing & face.characters:
                raise RowError(RowCode.GLYPH_MISSING, _missing_message(missing))
            chosen.append(face)
            missing -= face.characters
        return chosen

    def load(self, face: Face, size_px: int) -> ImageFont.FreeTypeFont:
        """Load a face at an em size in pixels; the font is cached and shared."""
        key = (face.name, size_px)
        font = self._loaded.get(key)
        if font is None:
            engine = ImageFont.Layout.RAQM if self.has_shaper else ImageFont.Layout.BASIC
            source = _built_in_data() if face.path is None else str(face.path)
            font = ImageFont.truetype(source, size_px, index=face.index, layout_engine=engine)
            self._loaded[key] = font
            if len(self._loaded) > LOADED:
                self._loaded.popitem(last=False)
        return font

    def check_shaping(self, text: str) -> None:
        """Raise `DataError` if a text's script needs Pillow's full shaper (raqm) and it is not installed."""
        if self.has_shaper:
            return
        needy = next((character for character in text if needs_shaping(character)), None)
        if needy is not None:
            raise DataError(
                DataCode.SHAPING_MISSING,
                f"{describe(needy)} is of a script whose letters join or change order, and Pillow has no Raqm here",
                "install FriBiDi (Debian: apt-get install libfribidi0) with a Pillow wheel from PyPI",
            )


def _distance(face: Face, language: str | None) -> int:
    """0 for a face made for a language, 2 for one made for others, 1 for one that does not say."""
    if language is None or not face.languages:
        return int(language is not None)
    return 0 if language in face.languages else 2


def is_invisible(character: str) -> bool:
    """Characters that need no glyph: white space, joiners and variation selectors."""
    return character.isspace() or character in JOINERS or 0xFE00 <= ord(character) <= 0xFE0F


def needs_shaping(character: str) -> bool:
    """Whether a text needs shaping: right to left, marks, Indic and Thai clusters."""
    code = ord(character)
    return (
        unicodedata.bidirectional(character) in {"R", "AL", "AN"}
        or unicodedata.category(character) in {"Mn", "Mc"}
        or 0x0900 <= code <= 0x109F
        or 0x1780 <= code <= 0x17FF
    )


def describe(character: str) -> str:
    """Code point and name."""
    return f"U+{ord(character):04X} {unicodedata.name(character, 'without a name')}"


def _missing_message(missing: Iterable[int]) -> str:
    codes = sorted(missing)
    more = f" and {len(codes) - 3} more" if len(codes) > 3 else ""
    named = ", ".join(describe(chr(code)) for code in codes[:3])
    return f"no font has {named}{more}: give a folder with one to --fonts"


def _find_faces(folders: Sequence[Path]) -> list[Face]:
    faces: list[Face] = []
    for folder in folders:
        if not folder.is_dir():
            raise DataError(DataCode.FONTS_MISSING, f"there is no folder {folder}", "check what --fonts names")
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        for file in files:
            faces += _faces_of(file)
    if not faces:
        raise DataError(
            DataCode.FONTS_MISSING,
            f"{', '.join(map(str, folders))} hold no font that can be read",
            f"give folders with {', '.join(SUFFIXES)} files, such as /usr/share/fonts",
        )
    return faces


def _faces_of(file: Path) -> list[Face]:
    """Faces of a file; none if it is broken or has no character map."""
    try:
        with file.open("rb") as stream:
            if file.suffix.lower() in {".ttc", ".otc"}:
                return [_face(file, index, font) for index, font in enumerate(TTCollection(stream, lazy=True).fonts)]
            return [_face(file, 0, TTFont(stream, lazy=True))]
    except (TTLibError, OSError, KeyError, ValueError, AssertionError):
        return []


def _face(file: Path, index: int, font: TTFont) -> Face:
    characters = frozenset(font.getBestCmap() or {})
    name = f"{file.name}#{index}" if index else file.name
    table = font.get("OS/2")
    family = _family(font) or file.stem
    return Face(
        name,
        file,
        index,
        characters,
        family,
        int(getattr(table, "usWeightClass", REGULAR)),
        bool(getattr(table, "fsSelection", 0) & 1),
        _languages(family, int(getattr(table, "ulCodePageRange1", 0))),
    )


def _family(font: TTFont) -> str:
    """The typographic family, which includes weights, else the older one of at most four styles."""
    names = font.get("name")
    return str((names and (names.getDebugName(16) or names.getDebugName(1))) or "")


def _languages(family: str, code_pages: int) -> frozenset[str]:
    """By the family's name, as `Noto Sans CJK JP`, else by the code pages that the face says it supports."""
    named = next((_NAMED_LANGUAGES[word] for word in family.split() if word in _NAMED_LANGUAGES), None)
    if named is not None:
        return frozenset({named})
    return frozenset(language for bit, language in _CODE_PAGES.items() if code_pages >> bit & 1)


def _built_in_data() -> io.BytesIO:
    data = getattr(ImageFont.load_default(20), "path", None)
    if not isinstance(data, io.BytesIO):
        raise DataError(DataCode.FONTS_MISSING, "this Pillow has no built-in face", "give a folder of fonts to --fonts")
    return io.BytesIO(data.getvalue())


def _built_in() -> Face:
    with TTFont(_built_in_data(), lazy=True) as font:
        return Face(BUILT_IN, None, 0, frozenset(font.getBestCmap() or {}))
