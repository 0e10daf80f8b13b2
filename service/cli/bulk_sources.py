"""The documents that `deepsynth bulk` reads: files, and cells of Parquet files, one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import pyarrow
import pyarrow.parquet

from service.cli.inputs import InputFile, find_inputs
from service.cli.reading import FileError

SUFFIX = ".parquet"
COLUMNS = ("image", "document", "file", "bytes", "content")
"""Columns that are looked for, in this order."""
_ROWS_AT_ONCE = 16
"""Cells may be whole documents: few are in memory."""


def find_documents(source: Path, column: str | None, leave_out: Path) -> Iterator[InputFile]:
    """Find every document of a source.

    Args:
        source: A file, a folder with its subfolders, or a Parquet file.
        column: Which column of a Parquet file has the documents; None for the first of `COLUMNS`.
        leave_out: A folder that is not searched: where the output goes.

    Yields:
        Files by their paths under the source, cells as `FILE.parquet#ROW`, counted from 0. A Parquet file that cannot
        be read is one document with a problem.
    """
    if source.is_dir():
        away = leave_out.resolve()
        tables = [path for path in sorted(source.rglob(f"*{SUFFIX}")) if not path.resolve().is_relative_to(away)]
        yield from (file for file in find_inputs([str(source)], leave_out) if file.problem is None or not tables)
    else:
        tables = [source] if source.suffix == SUFFIX else []
        if not tables:
            yield from find_inputs([str(source)], leave_out)
    for path in tables:
        place = PurePath(path.name) if path == source else path.relative_to(source)
        try:
            yield from _cells(path, place, column)
        except (FileError, OSError, pyarrow.ArrowException) as error:
            yield InputFile(str(path), None, place, f"the Parquet file cannot be read: {error}")


def name_of(file: InputFile) -> str:
    """What the tables call a document; bytes of a path that are no UTF-8 are written as escapes."""
    return os.fsencode(file.place).decode("utf-8", "backslashreplace")


def _cells(path: Path, place: PurePath, column: str | None) -> Iterator[InputFile]:
    with pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        chosen = column or next((name for name in COLUMNS if name in names), None)
        if chosen not in names:
            raise FileError("no_column", f"it has no column {chosen or 'with documents'}; columns: {', '.join(names)}")
        row = 0
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[chosen]):
            for cell in batch.column(0).to_pylist():
                name = f"{place}#{row}"
                data = _bytes_of(cell)
                problem = "the cell has no bytes" if data is None else None
                yield InputFile(name, None, PurePath(name), problem, data)
                row += 1


def _bytes_of(cell: Any) -> bytes | None:
    """Bytes of a cell: binary, or a struct with `bytes` as data sets of images have it."""
    found = cell.get("bytes") if isinstance(cell, dict) else cell
    return found if isinstance(found, bytes) else None
