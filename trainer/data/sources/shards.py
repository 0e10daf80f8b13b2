"""Reading rows shard by shard: what a source's storage falls into (shards, row groups, files) is what parts share out.

Owns sharing, shuffling and passing over; a source on top says which shards it has and how to read one.
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
class SourceShard:
    """A stretch of rows that is read as one.

    Attributes:
        place: the source's own key for it.
        first_number: number of its first row, from 1; None where the rows before it are not counted yet.
        num_rows: how many rows it has; None where only reading tells.
    """

    place: int
    first_number: int | None = None
    num_rows: int | None = None


class ShardedSource(ABC):
    """The part of a `PageSource` that has to do with order."""

    @property
    @abstractmethod
    def shards(self) -> Sequence[SourceShard]:
        """All shards in stored order."""

    @abstractmethod
    def read_shard(self, shard: SourceShard) -> Iterator[Row | BrokenRow]:
        """The rows of one shard in stored order."""

    @property
    def num_rows(self) -> int | None:
        """See `PageSource`."""
        counts = [shard.num_rows for shard in self.shards]
        return None if None in counts else sum(count for count in counts if count is not None)

    def rows(self, part: Part = WHOLE, start: int = 0, seed: int | None = None) -> Iterator[Row | BrokenRow]:
        """See `PageSource`."""
        shards = list(self.shards)
        if seed is not None:
            Random(seed).shuffle(shards)
        # Fewer shards than parts: every part reads all and keeps its share of rows, so that no worker stands idle.
        is_strided = len(shards) < part.count
        mine = shards if is_strided else shards[part.index :: part.count]
        if seed is None and not is_strided:
            mine, start = _pass_over(mine, start)
        rows: Iterator[Row | BrokenRow] = (row for shard in mine for row in self.read_shard(shard))
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


def _pass_over(shards: Sequence[SourceShard], start: int) -> tuple[list[SourceShard], int]:
    """Leave out whole shards that lie before a row, where their lengths are known."""
    for index, shard in enumerate(shards):
        if shard.num_rows is None or start < shard.num_rows:
            return list(shards[index:]), start
        start -= shard.num_rows
    return [], 0
