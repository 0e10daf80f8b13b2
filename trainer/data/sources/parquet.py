"""Parquet files: one, or a folder of them, images as bytes or as paths.

Row groups are read in small batches, so a file of any size takes the memory of a few rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.errors import DataCode, DataError, RowCode
from trainer.data.sources.files import list_files, require_inside
from trainer.data.sources.protocol import SPLIT_COLUMN, BrokenRow, Row
from trainer.data.sources.shards import ShardedSource, SourceShard, files_fingerprint
from trainer.data.sources.splits import split_named, split_of_folders

BATCH_ROWS: Final = 16
_SPLIT_FILE: Final = re.compile(r"([a-z]+)(?:[-_.]\d.*)?\.parquet", re.IGNORECASE)


class ParquetSource(ShardedSource):
    """Row groups of Parquet files in the order of their names."""

    def __init__(self, path: Path, image_root: Path | None = None, split: str | None = None) -> None:
        """Read the files' footers.

        Args:
            path: a file, or a folder that is searched recursively.
            image_root: folder that image paths are relative to; None for that of the files.
            split: skip files named for another split.

        Raises:
            DataError: a footer cannot be read, the files' columns differ, or there are no rows.
        """
        self._root = path if path.is_dir() else path.parent
        self._images = image_root or self._root
        self.name = path.resolve().name
        files = list_files(path).with_suffix(".parquet") if path.is_dir() else [path]
        if path.is_dir():
            require_inside(path, files)
        self._files = [file for file in files if split is None or self._split_of(file) in {None, split}]
        self._places: list[tuple[Path, int]] = []
        self._shards: list[SourceShard] = []
        names: list[str] | None = None
        number = 1
        for file in self._files:
            metadata, schema = _footer(file)
            if names is not None and sorted(schema.names) != sorted(names):
                raise DataError(
                    DataCode.SOURCE_UNREADABLE,
                    f"{file} has the columns {', '.join(schema.names)}, {self._files[0].name} has {', '.join(names)}",
                    "prepare sets of different columns one by one",
                )
            names = names or schema.names
            for group in range(metadata.num_row_groups):
                count = metadata.row_group(group).num_rows
                self._shards.append(SourceShard(len(self._places), number, count))
                self._places.append((file, group))
                number += count
        if number == 1:
            raise DataError(
                DataCode.SOURCE_EMPTY, f"{path} holds no rows", "give a folder with *.parquet files, or another split"
            )
        has_split = any(self._split_of(file) for file in self._files) and SPLIT_COLUMN not in (names or [])
        self.columns = (*(names or []), *([SPLIT_COLUMN] if has_split else []))

    @property
    def image_root(self) -> Path:
        """See `PageSource`."""
        return self._images

    @property
    def shards(self) -> Sequence[SourceShard]:
        """Row groups."""
        return self._shards

    def read_shard(self, shard: SourceShard) -> Iterator[Row | BrokenRow]:
        """See `ShardedSource`."""
        file, group = self._places[shard.place]
        place = file.relative_to(self._root).as_posix()
        split = self._split_of(file) if SPLIT_COLUMN in self.columns else None
        number = shard.first_number or 1
        end = number + (shard.num_rows or 0)
        try:
            with pq.ParquetFile(file) as opened:
                for batch in opened.iter_batches(BATCH_ROWS, row_groups=[group]):
                    for fields in batch.to_pylist():
                        yield Row(number, f"{place} row {number}", _with_split(fields, split))
                        number += 1
        except (OSError, pa.ArrowException, UnicodeDecodeError):
            # The faulty row of the batch is unknown, so the rest of the group is lost.
            for lost in range(number, end):
                yield BrokenRow(lost, place, RowCode.ROW_UNREADABLE, f"row group {group} of the file is damaged")

    def fingerprint(self) -> str:
        """See `PageSource`."""
        return files_fingerprint(self._files, self._root)

    def _split_of(self, file: Path) -> str | None:
        """The split that a file is named for, as in `train-00000-of-00004.parquet`, or one of its folders."""
        match = _SPLIT_FILE.fullmatch(file.name)
        named = split_named(match[1]) if match else None
        return named or split_of_folders(file.relative_to(self._root).as_posix())


def _with_split(fields: dict[str, Any], split: str | None) -> dict[str, Any]:
    return fields if split is None else {SPLIT_COLUMN: split, **fields}


def _footer(file: Path) -> tuple[Any, Any]:
    try:
        with pq.ParquetFile(file) as opened:
            return opened.metadata, opened.schema_arrow
    except (OSError, pa.ArrowException) as error:
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else "it is damaged or not a Parquet file"
        )
        raise DataError(
            DataCode.SOURCE_UNREADABLE, f"{file} cannot be read: {reason}", "fetch or write it again, or move it away"
        ) from error
