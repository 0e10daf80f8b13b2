"""Reading rows shard by shard: tar files, row groups or ranges of a list, which are divided among parts.

Owns dividing, shuffling and skipping; a source says which shards it has and how to read one.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import TypeVar

from trainer.data.sources.protocol import WHOLE, BrokenRow, Part, Row

Item = TypeVar("Item")
SHUFFLE_ROWS = 512
"""Size of the shuffle buffer of a stream; its images are held in memory, about 50 MB of scans."""


@dataclass(frozen=True, slots=True)
class SourceShard:
    """Rows that are read together.

    Attributes:
        place: the source's own key for it.
        first_number: number of its first row, from 1; None if the rows before it have not been counted.
        num_rows: number of its rows; None if only known after reading.
    """

    place: int
    first_number: int | None = None
    num_rows: int | None = None


class ShardedSource(ABC):
    """Order, sharing and skipping for a `PageSource` that is stored in shards.

    Attributes:
        passed_over: see `PageSource`.
    """

    passed_over: Mapping[str, int] = MappingProxyType({})

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
        # Fewer shards than parts: every part reads all and keeps its share of rows, so that no worker is idle.
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
    """Shuffle a stream through a buffer of at most `size` items."""
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
    """Digest of names, sizes and modification times: cheap for a million files, and changed when one is replaced."""
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        try:
            status = file.stat()
            state = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:
            # A link to nothing, or a file that has just gone: a row to name when it is read.
            state = "missing"
        digest.update(f"{name}\0{state}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _pass_over(shards: Sequence[SourceShard], start: int) -> tuple[list[SourceShard], int]:
    """Skip whole shards before a row, if their lengths are known."""
    for index, shard in enumerate(shards):
        if shard.num_rows is None or start < shard.num_rows:
            return list(shards[index:]), start
        start -= shard.num_rows
    return [], 0
