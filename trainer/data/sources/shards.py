"""Reading rows unit by unit: what a source's storage falls into (shards, row groups, files) is what parts share out.

Owns sharing, shuffling and passing over; a source on top says which units it has and how to read one.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import TypeVar

from trainer.data.sources.protocol import WHOLE, BrokenRow, Part, Row

Item = TypeVar("Item")
SHUFFLE_ROWS = 512
"""Rows among which a streamed row trades places: as many images are held in memory, about 50 MB of scans."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A stretch of rows that is read as one.

    Attributes:
        place: the source's own key for it.
        first_number: number of its first row, from 1; None where the rows before it are not counted yet.
        num_rows: how many rows it has; None where only reading tells.
    """

    place: int
    first_number: int | None = None
    num_rows: int | None = None


class UnitSource(ABC):
    """The part of a `PageSource` that has to do with order."""

    @property
    @abstractmethod
    def units(self) -> Sequence[Unit]:
        """All units in stored order."""

    @abstractmethod
    def read_unit(self, unit: Unit) -> Iterator[Row | BrokenRow]:
        """The rows of one unit in stored order."""

    @property
    def num_rows(self) -> int | None:
        """See `PageSource`."""
        counts = [unit.num_rows for unit in self.units]
        return None if None in counts else sum(count for count in counts if count is not None)

    def rows(self, part: Part = WHOLE, start: int = 0, seed: int | None = None) -> Iterator[Row | BrokenRow]:
        """See `PageSource`."""
        units = list(self.units)
        if seed is not None:
            Random(seed).shuffle(units)
        # Fewer units than parts: every part reads all and keeps its share of rows, so that no worker stands idle.
        is_strided = len(units) < part.count
        mine = units if is_strided else units[part.index :: part.count]
        if seed is None and not is_strided:
            mine, start = _pass_over(mine, start)
        rows: Iterator[Row | BrokenRow] = (row for unit in mine for row in self.read_unit(unit))
        if is_strided:
            rows = islice(rows, part.index, None, part.count)
        if seed is not None:
            rows = shuffled(rows, Random(f"{seed}/{part.index}/{part.count}"))
        return islice(rows, start, None)


def shuffled(items: Iterable[Item], rng: Random, size: int = SHUFFLE_ROWS) -> Iterator[Item]:
    """Shuffle a stream through a buffer.

    Args:
        items: the stream.
        rng: where chance comes from.
        size: items held back at most.

    Yields:
        Every item once.
    """
    held: list[Item] = []
    for item in items:
        if len(held) < size:
            held.append(item)
            continue
        place = rng.randrange(size)
        yield held[place]
        held[place] = item
    rng.shuffle(held)
    yield from held


def files_fingerprint(files: Iterable[Path], root: Path) -> str:
    """Digest of names, sizes and times of change: cheap for a million files, and new when one is replaced."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _pass_over(units: Sequence[Unit], start: int) -> tuple[list[Unit], int]:
    """Leave out whole units that lie before a row, where their lengths are known."""
    for index, unit in enumerate(units):
        if unit.num_rows is None or start < unit.num_rows:
            return list(units[index:]), start
        start -= unit.num_rows
    return [], 0
