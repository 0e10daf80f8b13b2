"""Pages in a folder: images with texts of the same name, or an index in CSV or JSON lines.

`scan-7.png` goes with `scan-7.txt` (or `scan-7.gt.txt`), or `scan-7.json` with an object whose keys are columns, or
both. A text without an image is a row too: `prepare --convert-to-images` draws it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from shared.images.formats import SUFFIXES, FileFormat
from trainer.data.errors import DataCode, DataError, RowCode, RowError
from trainer.data.sources.protocol import IMAGE_COLUMN, SPLIT_COLUMN, TEXT_COLUMN, BrokenRow, Row
from trainer.data.sources.shards import ShardedSource, SourceShard, files_fingerprint
from trainer.data.sources.splits import split_named

IMAGE_SUFFIXES: Final = tuple(
    suffix for file_format, suffixes in SUFFIXES.items() if file_format is not FileFormat.PDF for suffix in suffixes
)
TEXT_SUFFIXES: Final = (".gt.txt", ".txt", ".json")
INDEX_NAMES: Final = ("index.jsonl", "index.csv", "metadata.jsonl", "metadata.csv")
INDEX_SUFFIXES: Final = (".jsonl", ".csv", ".tsv")
LONGEST_FIELD: Final = 50_000_000
"""Maximum characters of a CSV field; the library's default is shorter than a book's chapter."""
SHARD_ROWS: Final = 64


class FolderSource(ShardedSource):
    """Images and texts of the same name, in order of names, including subfolders."""

    def __init__(self, folder: Path) -> None:
        """Find the files; raises `DataError` if there are no images or texts."""
        self._folder = folder
        self.name = folder.resolve().name
        self._entries = _find_entries(folder)
        if not self._entries:
            raise DataError(
                DataCode.SOURCE_EMPTY,
                f"{folder} holds no images and no texts",
                f"put {', '.join(IMAGE_SUFFIXES)} files there, each with a .txt or .json of the same name",
            )

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Columns of the first rows; rows may have others."""
        found = {key: None for row in self.read_shard(self.shards[0]) if isinstance(row, Row) for key in row.fields}
        return tuple({IMAGE_COLUMN: None, TEXT_COLUMN: None, **found})

    @property
    def image_root(self) -> Path:
        """The folder."""
        return self._folder

    @property
    def shards(self) -> Sequence[SourceShard]:
        """Ranges of the list of files."""
        total = len(self._entries)
        return [SourceShard(start, start + 1, min(SHARD_ROWS, total - start)) for start in range(0, total, SHARD_ROWS)]

    def read_shard(self, shard: SourceShard) -> Iterator[Row | BrokenRow]:
        """See `ShardedSource`."""
        for number, (name, files) in enumerate(self._entries[shard.place : shard.place + SHARD_ROWS], shard.place + 1):
            try:
                yield Row(number, name, self._fields(name, files))
            except RowError as error:
                yield BrokenRow(number, name, error.code, error.reason)

    def fingerprint(self) -> str:
        """See `PageSource`."""
        return files_fingerprint((file for _, files in self._entries for file in files.values()), self._folder)

    def _fields(self, name: str, files: Mapping[str, Path]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        if ".json" in files:
            fields.update(parse_object(_read(files[".json"])))
        for suffix in (".txt", ".gt.txt"):
            if suffix in files:
                fields[TEXT_COLUMN] = _read(files[suffix])
        if IMAGE_COLUMN in files:
            fields[IMAGE_COLUMN] = str(files[IMAGE_COLUMN].relative_to(self._folder))
        split = split_named(name.partition("/")[0]) if "/" in name else None
        return {**({SPLIT_COLUMN: split} if split else {}), **fields}


class IndexSource(ShardedSource):
    """Rows of a CSV, TSV or JSON lines file; images are paths relative to its folder."""

    def __init__(self, index: Path, image_root: Path | None = None) -> None:
        """Read the header of a file whose suffix gives its format.

        `image_root` is the folder that images are relative to, by default the index's. Raises `DataError` without rows.
        """
        self._index = index
        self._root = image_root or index.parent
        self.name = index.name if index.name not in INDEX_NAMES else index.resolve().parent.name
        first = next((row for row in self.read_shard(SourceShard(0)) if isinstance(row, Row)), None)
        if first is None:
            raise DataError(
                DataCode.SOURCE_EMPTY, f"{index} holds no row that can be read", "check that it is UTF-8 with a header"
            )
        self.columns = tuple(first.fields)

    @property
    def image_root(self) -> Path:
        """See `PageSource`."""
        return self._root

    @cached_property
    def _num_rows(self) -> int:
        return sum(1 for _ in self.read_shard(SourceShard(0)))

    @property
    def shards(self) -> Sequence[SourceShard]:
        """The whole file is one shard, as rows are only found by reading."""
        return [SourceShard(0, 1, None)]

    @property
    def num_rows(self) -> int:
        """Counted once, by reading the file."""
        return self._num_rows

    def read_shard(self, shard: SourceShard) -> Iterator[Row | BrokenRow]:
        """See `ShardedSource`."""
        del shard
        # An invalid byte affects only its row: it passes here and is found when the text is checked.
        with self._index.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from self._json_rows(file) if self._index.suffix == ".jsonl" else self._csv_rows(file)

    def fingerprint(self) -> str:
        """See `PageSource`; of the index alone."""
        return files_fingerprint([self._index], self._root)

    def _json_rows(self, file: Iterable[str]) -> Iterator[Row | BrokenRow]:
        number = 0
        for line_number, line in enumerate(file, 1):
            if not line.strip():
                continue
            number += 1
            name = f"{self._index.name} line {line_number}"
            try:
                yield Row(number, name, parse_object(line))
            except RowError as error:
                yield BrokenRow(number, name, error.code, error.reason)

    def _csv_rows(self, file: Iterable[str]) -> Iterator[Row | BrokenRow]:
        csv.field_size_limit(LONGEST_FIELD)
        reader = csv.reader(file, delimiter="\t" if self._index.suffix == ".tsv" else ",", strict=True)
        header: list[str] | None = None
        number = 0
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                # The parser resets at the next line, so a stray quote costs only its row.
                number += 1
                yield BrokenRow(
                    number, f"{self._index.name} line {reader.line_num}", RowCode.ROW_UNREADABLE, str(error)
                )
                continue
            if header is None:
                header = cells
                continue
            if not cells:
                continue
            number += 1
            name = f"{self._index.name} line {reader.line_num}"
            if len(cells) == len(header):
                yield Row(number, name, dict(zip(header, cells, strict=True)))
            else:
                reason = f"it has {len(cells)} fields, the header has {len(header)}"
                yield BrokenRow(number, name, RowCode.ROW_UNREADABLE, reason)


def parse_object(text: str) -> dict[str, Any]:
    """Parse a JSON object; raises `RowError` if the text is not one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(RowCode.ROW_UNREADABLE, f"it is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RowError(RowCode.ROW_UNREADABLE, f"it is a JSON {type(value).__name__}, not an object")
    return value


def find_index(folder: Path) -> Path | None:
    """The index of a folder, if it has one."""
    return next((folder / name for name in INDEX_NAMES if (folder / name).is_file()), None)


def _find_entries(folder: Path) -> list[tuple[str, dict[str, Path]]]:
    """Rows by name, each with its files: `image`, and each existing suffix of `TEXT_SUFFIXES`."""
    texts: dict[str, dict[str, Path]] = {}
    images: list[tuple[str, str, Path]] = []
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in name.split("/")) or not file.is_file():
            continue
        kind = next((suffix for suffix in TEXT_SUFFIXES if name.lower().endswith(suffix)), None)
        if kind:
            texts.setdefault(name[: -len(kind)], {})[kind] = file
        elif file.suffix.lower() in IMAGE_SUFFIXES:
            images.append((name, name[: -len(file.suffix)], file))
    entries = [(name, {IMAGE_COLUMN: file, **texts.get(stem, {})}) for name, stem, file in images]
    drawn = {stem for _, stem, _ in images}
    entries += [
        (next(iter(files.values())).relative_to(folder).as_posix(), files)
        for stem, files in texts.items()
        if stem not in drawn
    ]
    return sorted(entries, key=lambda entry: entry[0])


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror or "" if isinstance(error, OSError) else "it is not UTF-8"
        raise RowError(RowCode.ROW_UNREADABLE, f"{file.name}: {reason}") from error
