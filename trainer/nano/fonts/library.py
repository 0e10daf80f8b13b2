"""Font faces for pages: a packed folder (made by trainer/nano/fonts/pack.py), its index and a cache of loaded sizes."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Final

from PIL import ImageFont

INDEX_NAME: Final = "fonts.json"
KINDS: Final = ("serif", "sans", "mono", "typewriter", "hand")
# Weight of each kind: most documents use serif and sans faces.
KIND_WEIGHTS: Final = {"serif": 0.37, "sans": 0.37, "mono": 0.12, "typewriter": 0.08, "hand": 0.06}
STYLE_WEIGHTS: Final = {"regular": 0.6, "bold": 0.18, "italic": 0.15, "bold-italic": 0.07}
CACHED_SIZES: Final = 256


@dataclass(frozen=True, slots=True)
class FontFace:
    """One face of the packed folder.

    Attributes:
        file: file name inside the folder.
        family: family name.
        style: regular, bold, italic or bold-italic.
        kind: one of `KINDS`.
        characters: what the face can draw, each character once.
    """

    file: str
    family: str
    style: str
    kind: str
    characters: str


def write_index(folder: Path, faces: list[FontFace]) -> None:
    """Write the index of a packed folder."""
    rows = [asdict(face) for face in faces]
    (folder / INDEX_NAME).write_text(json.dumps(rows, ensure_ascii=False, indent=0), encoding="utf-8")


class FontLibrary:
    """The faces of one packed folder, picked by weight and cached."""

    def __init__(self, folder: Path | str) -> None:
        """Read `fonts.json`; raises `FileNotFoundError` without it, or `ValueError` if it lists no face."""
        self.folder = Path(folder)
        rows = json.loads((self.folder / INDEX_NAME).read_text(encoding="utf-8"))
        self.faces = [FontFace(**row) for row in rows]
        if not self.faces:
            raise ValueError(f"{self.folder}: the font index is empty")
        self._drawable = {face.file: frozenset(face.characters) | {" "} for face in self.faces}
        self._families: dict[str, dict[str, list[FontFace]]] = {}
        for face in self.faces:
            self._families.setdefault(face.kind, {}).setdefault(face.family, []).append(face)
        self._loaded: OrderedDict[tuple[str, int, bool], ImageFont.FreeTypeFont] = OrderedDict()

    def can_draw(self, face: FontFace, text: str) -> bool:
        """Whether the face has every character of the text, except line breaks."""
        return self._drawable[face.file].issuperset(text.replace("\n", ""))

    def missing(self, face: FontFace, text: str) -> set[str]:
        """Characters of a text that the face lacks."""
        return set(text) - self._drawable[face.file] - {"\n"}

    def pick(self, rng: Random, text: str = "", kind: str | None = None) -> FontFace:
        """Pick a face: first its kind, then its family, then its style.

        Args:
            rng: random generator.
            text: must be drawable; after a few attempts the last face is returned even if it is not.
            kind: one of `KINDS` to prefer, if the library has it.

        Returns:
            The face.
        """
        face = self.faces[0]
        for _ in range(12):
            face = self._pick_once(rng, kind)
            if not text or self.can_draw(face, text):
                break
        return face

    def companions(self, face: FontFace) -> list[FontFace]:
        """The other faces of a face's family, in index order."""
        return [other for other in self._families[face.kind][face.family] if other.file != face.file]

    def load(self, face: FontFace, size_px: int, *, shaped: bool = False) -> ImageFont.FreeTypeFont:
        """Load a face at an em size in pixels; the font is cached and shared.

        `shaped` uses the full shaper (kerning pairs, ligatures) if Pillow has it, which is slower.
        """
        key = (face.file, size_px, shaped)
        font = self._loaded.get(key)
        if font is None:
            engine = ImageFont.Layout.RAQM if shaped else ImageFont.Layout.BASIC
            font = ImageFont.truetype(str(self.folder / face.file), size_px, layout_engine=engine)
            self._loaded[key] = font
            if len(self._loaded) > CACHED_SIZES:
                self._loaded.popitem(last=False)
        else:
            self._loaded.move_to_end(key)
        return font

    def _pick_once(self, rng: Random, kind: str | None) -> FontFace:
        if kind not in self._families:
            kinds = sorted(self._families)
            kind = rng.choices(kinds, [KIND_WEIGHTS[name] for name in kinds])[0]
        families = self._families[kind]
        faces = families[rng.choice(sorted(families))]
        return rng.choices(faces, [STYLE_WEIGHTS[face.style] for face in faces])[0]
