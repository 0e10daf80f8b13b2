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

SUFFIXES: Final = (".ttf", ".otf", ".ttc", ".otc")
LOADED: Final = 64
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
    """

    name: str
    path: Path | None
    index: int
    characters: frozenset[int]


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

    def choose(self, text: str, rng: Random) -> list[Face]:
        """Choose faces for a text: its main face, then those for characters it lacks, in order of use.

        `rng` picks among faces that cover the text equally well. Raises `RowError` if no face has a character.
        """
        wanted = {ord(character) for character in text if not is_invisible(character)} | {ord(" ")}
        covered = [len(wanted & face.characters) for face in self.faces]
        best = max(covered)
        first = rng.choice([face for face, count in zip(self.faces, covered, strict=True) if count == best])
        chosen, missing = [first], wanted - first.characters
        while missing:
            face = max(self.faces, key=lambda each: len(missing & each.characters))
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
    return Face(f"{file.name}#{index}" if index else file.name, file, index, characters)


def _built_in_data() -> io.BytesIO:
    data = getattr(ImageFont.load_default(20), "path", None)
    if not isinstance(data, io.BytesIO):
        raise DataError(DataCode.FONTS_MISSING, "this Pillow has no built-in face", "give a folder of fonts to --fonts")
    return io.BytesIO(data.getvalue())


def _built_in() -> Face:
    with TTFont(_built_in_data(), lazy=True) as font:
        return Face(BUILT_IN, None, 0, frozenset(font.getBestCmap() or {}))
