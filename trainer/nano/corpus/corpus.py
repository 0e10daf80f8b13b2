"""Natural text for pages: packed paragraphs and words by language, drawn at random.

A packed folder holds `<language>.txt.xz` (one paragraph a line) and `words-<language>.txt.xz` (one word a line);
trainer/nano/corpus/pack.py makes it.
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import numpy as np

WORDS_PREFIX: Final = "words-"
SUFFIX: Final = ".txt.xz"
ENGLISH_SHARE: Final = 0.7


@dataclass(frozen=True, slots=True)
class Passage:
    """A paragraph and its language (two letters)."""

    text: str
    language: str


class _Lines:
    """The lines of one packed file as one block of bytes, so that forked workers share it."""

    def __init__(self, path: Path) -> None:
        self._data = lzma.decompress(path.read_bytes())
        ends = np.flatnonzero(np.frombuffer(self._data, dtype=np.uint8) == ord("\n"))
        self._ends = ends.astype(np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def size_bytes(self) -> int:
        return len(self._data)

    def line(self, index: int) -> str:
        start = int(self._ends[index - 1]) + 1 if index else 0
        return self._data[start : int(self._ends[index])].decode("utf-8")


class Corpus:
    """Paragraphs and words of one packed folder."""

    def __init__(self, folder: Path | str) -> None:
        """Read all packed files; raises `FileNotFoundError` if the folder has no paragraphs."""
        root = Path(folder)
        paths = {path.name.removesuffix(SUFFIX): path for path in sorted(root.glob(f"*{SUFFIX}"))}
        self._paragraphs = {name: _Lines(path) for name, path in paths.items() if not name.startswith(WORDS_PREFIX)}
        self._paragraphs = {name: lines for name, lines in self._paragraphs.items() if len(lines)}
        if not self._paragraphs:
            raise FileNotFoundError(f"{root}: no packed paragraphs here")
        self._words = {
            name.removeprefix(WORDS_PREFIX): _Lines(path)
            for name, path in paths.items()
            if name.startswith(WORDS_PREFIX)
        }
        self._languages = sorted(self._paragraphs)
        self._weights = self._language_weights()

    @property
    def languages(self) -> list[str]:
        """The languages that have paragraphs, sorted."""
        return list(self._languages)

    def passage(self, rng: Random) -> Passage:
        """Draw a paragraph: English with probability 0.7, the others by size."""
        language = rng.choices(self._languages, self._weights)[0]
        return Passage(self.paragraph(rng, language), language)

    def paragraph(self, rng: Random, language: str) -> str:
        """Draw a paragraph of one of `languages`, on one line."""
        lines = self._paragraphs[language]
        return lines.line(rng.randrange(len(lines)))

    def words(self, rng: Random, count: int, language: str | None = None) -> list[str]:
        """Draw words of one language (None draws it) from its dictionary, or else from paragraphs."""
        language = language or rng.choices(self._languages, self._weights)[0]
        lines = self._words.get(language)
        if lines is not None and len(lines):
            return [lines.line(rng.randrange(len(lines))) for _ in range(count)]
        found: list[str] = []
        while len(found) < count:
            found += self.paragraph(rng, language).split()
        return found[:count]

    def size_bytes(self) -> int:
        """Bytes of all paragraphs in UTF-8."""
        return sum(lines.size_bytes() for lines in self._paragraphs.values())

    def _language_weights(self) -> list[float]:
        sizes = {name: lines.size_bytes() for name, lines in self._paragraphs.items()}
        others = sum(size for name, size in sizes.items() if name != "en")
        if "en" not in sizes or not others:
            return [float(sizes[name]) for name in self._languages]
        share = (1 - ENGLISH_SHARE) / others
        return [ENGLISH_SHARE if name == "en" else sizes[name] * share for name in self._languages]
