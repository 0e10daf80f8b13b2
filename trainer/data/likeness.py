"""Whether two pages are the same one, scanned, rendered or typed twice: by their texts, and by how they look.

A digest of pixels misses a page that was scanned again, and a digest of its text one that was typed again. Texts are
compared by shares of common character groups, images by the signs of their lowest frequencies. Pages whose digits
differ are never the same: forms and series differ in nothing else.

Source: A. Broder, On the Resemblance and Containment of Documents, 1997 (minimum hashes);
C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010 (signs of a cosine transform).
"""

from __future__ import annotations

import hashlib
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.data.sources.splits import DISTINCT_CHARACTERS

NUM_HASHES: Final = 64
"""Of a text; the share of equal ones estimates the share of common groups with a standard error of at most 6 %."""
BAND_HASHES: Final = 4
"""Hashes that must all be equal for two texts to be compared at all: of texts that share 70 %, 99 % are."""
GROUP_CHARACTERS: Final = 5
LONG_CHARACTERS: Final = 100
"""Letters and digits; in shorter texts one word more or less makes another page."""
SAME_TEXT: Final = 0.95
LIKE_TEXT: Final = 0.85
"""Share of common groups that is enough where the images look the same."""
LOOK_SIDE: Final = 16
SAME_LOOK_BITS: Final = 20
"""Of 256."""
_TRANSFORM_PX: Final = 64
_PRIME: Final = (1 << 61) - 1
_NO_TEXT: Final = np.zeros(NUM_HASHES, np.uint32)


@dataclass(frozen=True, slots=True)
class PageLikeness:
    """What is kept of a page to know it again; 330 bytes or so.

    Attributes:
        text: minimum hashes of a long text, `[NUM_HASHES]`; zeros for a short one.
        words: digest of letters and digits.
        digits: digest of digits alone.
        num_characters: letters and digits.
        looks: of the images.
    """

    text: NDArray[np.uint32]
    words: bytes
    digits: bytes
    num_characters: int
    looks: tuple[bytes, ...]

    def is_like(self, other: PageLikeness) -> bool:
        """Whether both are most likely one page."""
        if self.digits != other.digits:
            return False
        looks_same = any(distance(a, b) <= SAME_LOOK_BITS for a in self.looks for b in other.looks)
        if self.words == other.words:
            # Short texts recur on unrelated pages.
            return looks_same or self.num_characters >= DISTINCT_CHARACTERS
        if min(self.num_characters, other.num_characters) < LONG_CHARACTERS:
            return False
        shared = float((self.text == other.text).mean())
        return shared >= SAME_TEXT or (looks_same and shared >= LIKE_TEXT)

    def as_text(self) -> str:
        """For a line of a journal."""
        parts = [self.text.tobytes(), self.words, self.digits, *self.looks]
        return ".".join([str(self.num_characters), *(part.hex() for part in parts)])

    @classmethod
    def from_text(cls, value: str) -> PageLikeness:
        """What `as_text` gave; raises `ValueError` if it is something else."""
        count, *parts = value.split(".")
        hashes, words, digits, *looks = (bytes.fromhex(part) for part in parts)
        text = np.frombuffer(hashes, np.uint32)
        if text.size != NUM_HASHES:
            raise ValueError("not the likeness of a page")
        return cls(text, words, digits, int(count), tuple(looks))


@dataclass(slots=True)
class LikenessRegister:
    """Pages seen so far, each with a label; finds one that a new page is like."""

    _pages: list[tuple[PageLikeness, str]] = field(default_factory=list)
    _places: dict[bytes, list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, page: PageLikeness, label: str) -> None:
        """Remember a page."""
        for key in _keys(page):
            self._places[key].append(len(self._pages))
        self._pages.append((page, label))

    def find(self, page: PageLikeness, but: str | None = None) -> str | None:
        """Label of the first page that this one is like, among those with another label than `but`; None without."""
        for place in sorted({place for key in _keys(page) for place in self._places.get(key, ())}):
            other, label = self._pages[place]
            if label != but and page.is_like(other):
                return label
        return None


def likeness_of(text: str, looks: Sequence[bytes]) -> PageLikeness:
    """What to keep of a page with this text and these looks of images."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    bare = "".join(character for character in folded if character.isalnum())
    digits = "".join(character for character in bare if character.isdigit())
    hashes = _minimum_hashes(bare) if len(bare) >= LONG_CHARACTERS else _NO_TEXT
    return PageLikeness(hashes, _digest(bare), _digest(digits), len(bare), tuple(looks))


def look_of(image: Image.Image) -> bytes:
    """How an image looks: a sign for each of its lowest frequencies, `LOOK_SIDE` squared bits."""
    factors = tuple(max(side // (2 * _TRANSFORM_PX), 1) for side in image.size)
    small = image.reduce((factors[0], factors[1])).convert("L")
    grey = np.asarray(small.resize((_TRANSFORM_PX, _TRANSFORM_PX), Image.Resampling.BOX), np.float32)
    low: Any = cv2.dct(grey)[:LOOK_SIDE, :LOOK_SIDE]
    return np.packbits(low > np.median(low)).tobytes()


def distance(one: bytes, other: bytes) -> int:
    """In how many bits two looks differ."""
    return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()


def _keys(page: PageLikeness) -> Iterable[bytes]:
    """Pages that share one of these are compared."""
    keys = [b"words" + page.words]
    if page.num_characters >= LONG_CHARACTERS:
        keys += [bytes([place]) + band.tobytes() for place, band in enumerate(page.text.reshape(-1, BAND_HASHES))]
    return keys


def _minimum_hashes(bare: str) -> NDArray[np.uint32]:
    groups = {bare[start : start + GROUP_CHARACTERS] for start in range(len(bare) - GROUP_CHARACTERS + 1)}
    hashes_G = np.array([zlib.crc32(group.encode()) for group in groups], np.uint64)
    factors_H, offsets_H = _permutations()
    # Wraps at 64 bits; the upper half is as good as random for odd factors.
    mixed_HG = factors_H[:, None] * hashes_G[None, :] + offsets_H[:, None]
    return (mixed_HG >> np.uint64(32)).min(axis=1).astype(np.uint32)


@cache
def _permutations() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    random = np.random.default_rng(_PRIME)
    factors = random.integers(0, 1 << 63, NUM_HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return factors, random.integers(0, 1 << 63, NUM_HASHES, dtype=np.uint64)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8]
