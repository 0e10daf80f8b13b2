"""Files that name images: CSV, TSV, JSON lines or a JSON list; one, or one in each of several folders.

Images are paths relative to their index's folder, as Hugging Face's `imagefolder` has them in `train/metadata.jsonl`.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from trainer.data.errors import DataCode, DataError, RowCode, RowError
from trainer.data.sources.files import require_inside
from trainer.data.sources.protocol import SPLIT_COLUMN, BrokenRow, Row
from trainer.data.sources.shards import ShardedSource, SourceShard, files_fingerprint
from trainer.data.sources.splits import split_of_folders

INDEX_NAMES: Final = ("index.jsonl", "index.csv", "metadata.jsonl", "metadata.csv")
TABLE_SUFFIXES: Final = (".csv", ".tsv")
LINE_SUFFIXES: Final = (".jsonl", ".ndjson")
INDEX_SUFFIXES: Final = (*LINE_SUFFIXES, *TABLE_SUFFIXES, ".json")
DELIMITERS: Final = (",", ";", "\t", "|")
"""Tried on the header where none is given: spreadsheets write semicolons where the comma is the decimal sign."""
LONGEST_FIELD: Final = 50_000_000
"""Maximum characters of a CSV field; the library's default is shorter than a book's chapter."""
_UTF_16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

_JSON_NAMES: Final = {list: "list", str: "string", bool: "boolean", type(None): "null"}


@dataclass(frozen=True, slots=True)
class TableFormat:
    """How an index is written; None for what its suffix and its first line say.

    Attributes:
        delimiter: between the fields of a CSV file.
        encoding: of the file; UTF-8, or UTF-16 with a byte order mark, by default.
    """

    delimiter: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise DataError(
                DataCode.OPTIONS_CONFLICT, f"the delimiter {self.delimiter!r} is not one character", "give one"
            )
        try:
            codecs.lookup(self.encoding or "utf-8")
        except LookupError as error:
            raise DataError(
                DataCode.OPTIONS_CONFLICT,
                f"there is no encoding {self.encoding!r}",
                "name one that Python knows, such as cp1252 or utf-16",
            ) from error


class IndexSource(ShardedSource):
    """Rows of one or several indices.

    Attributes:
        name: of the index, or of the folder that it is the index of.
        columns: of the first row of each.
    """

    def __init__(
        self,
        indices: Path | Sequence[Path],
        image_root: Path | None = None,
        table: TableFormat | None = None,
        folder: Path | None = None,
    ) -> None:
        """Read the first rows.

        Args:
            indices: files whose suffixes give their formats.
            image_root: folder that images are relative to; None for their index's.
            table: how they are written.
            folder: that the indices are of; None for the first one's.

        Raises:
            DataError: an index has no rows, or is a link out of the folder.
        """
        self._indices = [indices] if isinstance(indices, Path) else list(indices)
        self._folder = folder or self._indices[0].parent
        self._given_root = image_root
        self._table = table or TableFormat()
        if folder is not None:
            require_inside(folder, self._indices)
        is_usual = folder is not None or self._indices[0].name in INDEX_NAMES
        self.name = self._folder.resolve().name if is_usual else self._indices[0].name
        columns: dict[str, None] = {}
        for place in range(len(self._indices)):
            columns.update(dict.fromkeys(self._first_row(place).fields))
        self.columns = tuple(columns)

    @property
    def image_root(self) -> Path:
        """See `PageSource`."""
        return self._given_root or self._folder

    @property
    def shards(self) -> Sequence[SourceShard]:
        """Each file is one shard, as rows are only found by reading."""
        return [SourceShard(place, 1, None) for place in range(len(self._indices))]

    @cached_property
    def _num_rows(self) -> int:
        return sum(1 for shard in self.shards for _ in self.read_shard(shard))

    @property
    def num_rows(self) -> int:
        """Counted once, by reading the files."""
        return self._num_rows

    def read_shard(self, shard: SourceShard) -> Iterator[Row | BrokenRow]:
        """See `ShardedSource`; rows are numbered within their index."""
        index = self._indices[shard.place]
        place = index.relative_to(self._folder).as_posix()
        folder = place.rpartition("/")[0] if self._given_root is None else ""
        split = split_of_folders(place)
        extra = {SPLIT_COLUMN: split} if split else {}
        for number, (line, fields) in enumerate(self._rows(index), 1):
            name = f"{place} {'item' if index.suffix.lower() == '.json' else 'line'} {line}"
            if isinstance(fields, RowError):
                yield BrokenRow(number, name, fields.code, fields.reason)
            else:
                yield Row(number, name, {**extra, **fields}, folder)

    def fingerprint(self) -> str:
        """See `PageSource`; of the indices alone."""
        return files_fingerprint(self._indices, self.image_root)

    def _first_row(self, place: int) -> Row:
        index = self._indices[place]
        fault = "it has no rows"
        for row in self.read_shard(SourceShard(place)):
            if isinstance(row, Row):
                return row
            fault = row.reason if fault == "it has no rows" else fault
        raise DataError(
            DataCode.SOURCE_EMPTY,
            f"{index} holds no row that can be read: {fault}",
            "give UTF-8 with a header or one JSON object a line; see --delimiter and --encoding",
        )

    def _rows(self, index: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
        """Number of the line or item, and its values or why there are none."""
        suffix = index.suffix.lower()
        encoding = self._table.encoding or _encoding_of(index)
        # An invalid byte affects only its row: it passes here and is found when the text is checked.
        with index.open(encoding=encoding, errors="surrogateescape", newline="") as file:
            if suffix == ".json":
                yield from _json_items(file.read())
            elif suffix in LINE_SUFFIXES:
                yield from _json_lines(file)
            else:
                yield from self._table_rows(file, "\t" if suffix == ".tsv" else ",")

    def _table_rows(self, file: Iterable[str], usual: str) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
        csv.field_size_limit(LONGEST_FIELD)
        lines = iter(file)
        first = next(lines, "")
        delimiter = self._table.delimiter or _delimiter_of(first, usual)
        reader = csv.reader(_rejoined(first, lines), delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                # The parser resets at the next line, so a stray quote costs only its row.
                yield reader.line_num, RowError(RowCode.ROW_UNREADABLE, str(error))
                continue
            if header is None:
                header = cells
                twice = next((name for name in header if name.strip() and header.count(name) > 1), None)
                if twice is not None:
                    raise DataError(
                        DataCode.SOURCE_UNREADABLE,
                        f"the header of the table has {twice!r} more than once",
                        "rename one",
                    )
            elif len(cells) == len(header):
                yield reader.line_num, dict(zip(header, cells, strict=True))
            elif cells:
                reason = f"it has {len(cells)} fields, the header has {len(header)}"
                yield reader.line_num, RowError(RowCode.ROW_UNREADABLE, reason)


def parse_object(text: str) -> dict[str, Any]:
    """Parse a JSON object; raises `RowError` if the text is not one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(RowCode.ROW_UNREADABLE, f"it is not JSON: {error}") from error
    return _as_object(value)


def _as_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RowError(RowCode.ROW_UNREADABLE, f"it is a JSON {_JSON_NAMES.get(type(value), 'number')}, not an object")
    return value


def _json_lines(file: Iterable[str]) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield number, parse_object(line)
            except RowError as error:
                yield number, error


def _json_items(text: str) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Items of a JSON list, as LLaVA, ms-swift and LLaMA-Factory write their data."""
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        yield 1, RowError(RowCode.ROW_UNREADABLE, f"it is not JSON: {error}; JSON lines have the suffix .jsonl")
        return
    if not isinstance(items, list):
        yield 1, RowError(RowCode.ROW_UNREADABLE, "it is no JSON list of objects")
        return
    for number, item in enumerate(items, 1):
        try:
            yield number, _as_object(item)
        except RowError as error:
            yield number, error


def _encoding_of(index: Path) -> str:
    with index.open("rb") as file:
        return "utf-16" if file.read(2) in _UTF_16 else "utf-8-sig"


def _delimiter_of(header: str, usual: str) -> str:
    """The usual delimiter where it parts the header, else the one that parts it most often."""
    counts = {mark: len(next(csv.reader([header], delimiter=mark), [])) for mark in DELIMITERS}
    return usual if counts[usual] > 1 else max(DELIMITERS, key=lambda mark: (counts[mark], mark == usual))


def _rejoined(first: str, rest: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from rest
