"""Which split a sample belongs to: the source's own, or one by a digest of its content, never a random one.

The same content goes to the same split on every machine and in every order, so a set can grow without pages moving
from training to the test split. Does not know files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from shared.contract.text import normalise

TRAIN: Final = "train"
VALIDATION: Final = "validation"
TEST: Final = "test"
SPLITS: Final = (TRAIN, VALIDATION, TEST)
_OTHER_NAMES: Final = {
    "train": TRAIN, "training": TRAIN, "validation": VALIDATION, "valid": VALIDATION, "val": VALIDATION,
    "dev": VALIDATION, "eval": VALIDATION, "test": TEST, "testing": TEST,
}  # fmt: skip
_HIVE: Final = "split="
"""Begins a folder's name where data are partitioned as Hive does it."""
DISTINCT_CHARACTERS: Final = 40
"""Shorter texts (a date, "Total") recur on unrelated pages; only longer ones identify a page."""


@dataclass(frozen=True, slots=True)
class SplitShares:
    """Shares of the content that are held out; the rest is for training.

    Attributes:
        validation: for checks during training.
        test: never seen by training.
        salt: another word gives another partition.
    """

    validation: float = 0.1
    test: float = 0.0
    salt: str = ""

    def __post_init__(self) -> None:
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise ValueError(f"shares of {self.validation} and {self.test} leave nothing to train on, or are negative")

    def place_of(self, key: bytes) -> float:
        """Position of a content key between 0 and 1."""
        digest = hashlib.sha256(self.salt.encode() + key).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    def split_of(self, key: bytes) -> str:
        """The split of a content key: the lowest positions are the test's, the next validation's."""
        place = self.place_of(key)
        if place < self.test:
            return TEST
        return VALIDATION if place < self.test + self.validation else TRAIN

    def wanted(self) -> tuple[str, ...]:
        """Splits that must not be empty."""
        shares = {TRAIN: 1.0, VALIDATION: self.validation, TEST: self.test}
        return tuple(name for name, share in shares.items() if share > 0)


@dataclass(slots=True)
class SplitRegister:
    """Content seen so far, by split; finds content that would be in two splits.

    16 bytes of digest for each image and each distinct text are kept, so a million pages take about 200 MB.
    """

    _seen: dict[bytes, str] = field(default_factory=dict)

    def clash(self, keys: tuple[bytes, ...], split: str) -> str | None:
        """The other split that already has one of these contents; None after adding them to this one."""
        for key in keys:
            other = self._seen.get(key[:16])
            if other is not None and other != split:
                return other
        self._seen.update((key[:16], split) for key in keys)
        return None


def text_key(text: str) -> bytes | None:
    """Digest of a text that is long enough to be unique; None for a shorter one."""
    normal = normalise(text)
    return hashlib.sha256(f"text\0{normal}".encode()).digest() if len(normal) >= DISTINCT_CHARACTERS else None


def text_digest(text: str) -> bytes:
    """Short digest of a text of any length, to tell whether two are the same."""
    return hashlib.sha256(normalise(text).encode()).digest()[:8]


def group_key(group: str) -> bytes | None:
    """Key of a group of rows that belong together; None without a group."""
    return hashlib.sha256(f"group\0{group}".encode()).digest() if group else None


def image_key(pixels_sha256: str) -> bytes:
    """Key of an image's pixels."""
    return hashlib.sha256(f"image\0{pixels_sha256}".encode()).digest()


def of_split(names: Sequence[str], split: str | None) -> list[str]:
    """The names of parts that are named for this split (None for all) or for no split."""
    return [name for name in names if split is None or split_named(name) in {None, split}]


def split_named(name: str) -> str | None:
    """The split that a folder, file or column value names; None where it names none."""
    return _OTHER_NAMES.get(re.split(r"[-_.]", name.strip().lower().removeprefix(_HIVE), maxsplit=1)[0])


def split_of_folders(name: str) -> str | None:
    """The split that the innermost folder of a path names, such as `data/train/0.png` or `split=train/a.parquet`.

    The path is relative to the source, with slashes; its last part is a file's name, which does not count.
    """
    return next((split for part in reversed(name.split("/")[:-1]) if (split := split_named(part))), None)
