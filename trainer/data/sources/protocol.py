"""What every source of pages offers: rows, numbered, in parts, in order or shuffled.

A source knows how its rows are stored. It knows neither which columns matter nor whether an image can be decoded
(`trainer.data.sources.columns` and `.images` do), so one broken row never ends the reading of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainer.data.errors import RowCode

IMAGE_COLUMN = "image"
IMAGES_COLUMN = "images"
TEXT_COLUMN = "text"
SPLIT_COLUMN = "split"
"""Column that sources add where the place of a row (a file's name, a named split) says which split it is of."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it is stored.

    Attributes:
        number: its place in the source, from 1; what a report names.
        name: where it stands, for people: a file, a key, or the number again.
        fields: values by column. An image is bytes, a mapping with `bytes` and `path`, or a path; several are a list.
    """

    number: int
    name: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """A row that is left out, and why."""

    number: int
    name: str
    code: RowCode
    reason: str

    def __str__(self) -> str:
        return f"row {self.number} ({self.name}): {self.reason} [{self.code}]"


@dataclass(frozen=True, slots=True)
class Part:
    """One of `count` disjoint parts that together are the whole source.

    A loader with several workers on several ranks takes `Part.of(rank, ranks, worker, workers)`.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"there is no part {self.index} of {self.count}")

    @classmethod
    def of(cls, rank: int, ranks: int, worker: int = 0, workers: int = 1) -> Part:
        """The part of a worker of a rank."""
        return cls(rank * workers + worker, ranks * workers)


WHOLE = Part()


class PageSource(Protocol):
    """Rows from anywhere."""

    @property
    def name(self) -> str:
        """What a report calls it; holds no folder of this machine beyond the last."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that rows have."""

    @property
    def num_rows(self) -> int | None:
        """How many rows there are; None where only reading them tells."""

    @property
    def image_root(self) -> Path | None:
        """Folder that paths of images are relative to and may not leave; None where paths are refused."""

    def rows(self, part: Part = WHOLE, start: int = 0, seed: int | None = None) -> Iterator[Row | BrokenRow]:
        """Read rows.

        Args:
            part: which rows; the parts of one count share none.
            start: rows of that part to pass over first, broken ones counted.
            seed: shuffles, the same way for the same seed; None keeps the stored order. Give each epoch its own.

        Returns:
            Rows, and in the place of rows that cannot be read, why.
        """

    def fingerprint(self) -> str:
        """Hex digest that changes when the source's files do; of names, sizes and times where contents are many."""
