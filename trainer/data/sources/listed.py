"""Sources that know all of their rows from a list, such as the files of a folder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Generic, TypeVar

from trainer.data.errors import RowError
from trainer.data.sources.protocol import BrokenRow, Row
from trainer.data.sources.shards import ShardedSource, SourceShard, files_fingerprint

Entry = TypeVar("Entry")
SHARD_ROWS: Final = 64


class ListedSource(ShardedSource, Generic[Entry]):
    """Rows of a folder, one for each entry of a list; paths are relative to the folder.

    Attributes:
        name: of the folder.
    """

    def __init__(self, folder: Path, entries: Sequence[Entry]) -> None:
        """Take the rows' entries, in order."""
        self._folder = folder
        self._entries = entries
        self.name = folder.resolve().name

    @property
    def image_root(self) -> Path:
        """The folder."""
        return self._folder

    @property
    def shards(self) -> Sequence[SourceShard]:
        """Ranges of the list."""
        total = len(self._entries)
        return [SourceShard(start, start + 1, min(SHARD_ROWS, total - start)) for start in range(0, total, SHARD_ROWS)]

    def read_shard(self, shard: SourceShard) -> Iterator[Row | BrokenRow]:
        """See `ShardedSource`."""
        for number, entry in enumerate(self._entries[shard.place : shard.place + SHARD_ROWS], shard.place + 1):
            try:
                yield self.row(number, entry)
            except RowError as error:
                yield BrokenRow(number, self.entry_name(entry), error.code, error.reason)

    def fingerprint(self) -> str:
        """See `PageSource`."""
        files = (file for entry in self._entries for file in self.files(entry) if file.exists())
        return files_fingerprint(files, self._folder)

    @abstractmethod
    def row(self, number: int, entry: Entry) -> Row:
        """The row of an entry; raises `RowError` if it cannot be read."""

    @abstractmethod
    def entry_name(self, entry: Entry) -> str:
        """Its name in reports."""

    @abstractmethod
    def files(self, entry: Entry) -> Iterable[Path]:
        """Files that it is made of."""
