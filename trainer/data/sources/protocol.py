"""The interface of every source of pages: numbered rows, in parts, in order or shuffled.

A source knows how its rows are stored. It knows neither which columns matter nor whether an image can be decoded
(`trainer.data.sources.columns` and `.images` do), so a broken row never stops the reading of the others.
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
PROMPT_COLUMN = "prompt"
"""What a chat asks for; kept in a prepared set, and not trained on."""
SPLIT_COLUMN = "split"
"""Column that sources add if a file's name or a named split says which split a row belongs to."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it is stored.

    Attributes:
        number: its position in the source, from 1, shown in reports.
        name: where to find it, for people: a file, a key, or the number again.
        fields: values by column. An image is bytes, a mapping with `bytes` and `path`, or a path; several are a list.
        folder: below the source's image root; paths of this row are relative to it.
        group: rows of one group, such as the lines of a page, belong to one split; empty where content alone decides.
    """

    number: int
    name: str
    fields: Mapping[str, Any]
    folder: str = ""
    group: str = ""


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
    """One of `count` disjoint parts that make up the whole source.

    A loader with several workers on several ranks uses `Part.of(rank, ranks, worker, workers)`.
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
        """Name in reports, with no more of a local path than its last folder."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the rows."""

    @property
    def num_rows(self) -> int | None:
        """Number of rows; None if it is only known after reading."""

    @property
    def image_root(self) -> Path | None:
        """Folder that image paths are relative to and may not leave; None refuses paths."""

    @property
    def passed_over(self) -> Mapping[str, int]:
        """What is there and is no row, by kind: files of other kinds, samples without a correction."""

    def rows(self, part: Part = WHOLE, start: int = 0, seed: int | None = None) -> Iterator[Row | BrokenRow]:
        """Read rows.

        Args:
            part: which rows; parts of one count are disjoint.
            start: rows of that part to skip first, broken ones included.
            seed: shuffles, the same way for the same seed; None keeps the stored order. Use another one for each epoch.

        Returns:
            Rows, or for a row that cannot be read, why.
        """

    def fingerprint(self) -> str:
        """Hex digest that changes when the source's files do; of names, sizes and times if contents are too large."""
