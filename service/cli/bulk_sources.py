"""The documents that `deepsynth bulk` reads: files, cells of Parquet files, and members of tar archives, in turn."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import pyarrow
import pyarrow.parquet

from service.cli.bulk_tables import JOURNAL_NAME, OPTIONS_NAME, TABLES
from service.cli.inputs import InputFile, Skipped, find_inputs
from service.cli.reading import FileError
from service.cli.remote_reader import MAX_FILE_BYTES
from shared.images.formats import SUFFIXES

SUFFIX = ".parquet"
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")
"""Shards of a WebDataset, or any archive of images and PDFs."""
COLUMNS = ("image", "document", "file", "bytes", "content")
"""Columns that are looked for, in this order."""
DAMAGED, NO_COLUMN, NO_DOCUMENT, TOO_LARGE = "damaged_source", "no_column", "no_document", "document_too_large"
"""Codes of what holds no document, or not all of them; others are the service's."""
_ROWS_AT_ONCE = 16
"""Cells may be whole documents: few are in memory."""


_MEMBER_SUFFIXES = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)


def find_documents(source: Path, column: str | None, skipped: Skipped) -> Iterator[InputFile]:
    """Find every document of a source, apart from what earlier runs of the command wrote there.

    Args:
        source: A file, a folder with its subfolders, a Parquet file, or a tar archive.
        column: Which column of a Parquet file has the documents; None for the first of `COLUMNS`.
        skipped: Counts files of the folder that are none of these.

    Yields:
        Files by their paths under the source, cells as `FILE.parquet#ROW`, counted from 0, and members as
        `FILE.tar#MEMBER`. A Parquet file or an archive that cannot be read is one document with a problem; members
        before the damage are documents.
    """
    if source.is_dir():
        written = _outputs_in(source)
        visible = (path for path in sorted(source.rglob("*")) if not _is_hidden(path.relative_to(source)))
        holders = [path for path in visible if _holds_documents(path) and path not in written]
        files = find_inputs([str(source)], None, skipped)
        skipped -= Counter(path.suffix.lower() for path in (*holders, *written))
        yield from (file for file in files if file.path is not None)
    else:
        holders = [source] if _holds_documents(source) else []
        if not holders:
            yield from find_inputs([str(source)])
    for path in holders:
        place = PurePath(path.name) if path == source else path.relative_to(source)
        is_table = path.suffix == SUFFIX
        try:
            yield from _cells(path, place, column) if is_table else _members(path, place)
        except FileError as error:
            yield InputFile(str(path), None, place, error.title, code=error.code)
        except (OSError, pyarrow.ArrowException, tarfile.TarError, EOFError, zlib.error) as error:
            problem = f"the {'Parquet file' if is_table else 'archive'} cannot be read: {error}"
            yield InputFile(str(path), None, place, problem, code=DAMAGED)


def _is_hidden(place: PurePath) -> bool:
    return any(part.startswith(".") for part in place.parts)


def _outputs_in(folder: Path) -> set[Path]:
    """Files that the command has written anywhere below: its results are no documents."""
    found: set[Path] = set()
    for options in folder.rglob(OPTIONS_NAME):
        made = [options, options.with_name(JOURNAL_NAME)]
        if not _is_hidden(options.relative_to(folder)) and all(path.is_file() for path in made):
            found.update(made, *((options.parent / name).glob("part-*.parquet") for name in TABLES))
    return found


def _holds_documents(path: Path) -> bool:
    return path.name.endswith((SUFFIX, *ARCHIVE_SUFFIXES)) and path.is_file()


def _members(path: Path, place: PurePath) -> Iterator[InputFile]:
    """Images and PDFs of an archive, read front to back; what else a WebDataset keeps with them is left out."""
    seen: Counter[str] = Counter()
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            file_name = PurePath(member.name).name
            if not member.isfile() or file_name.startswith(".") or not file_name.lower().endswith(_MEMBER_SUFFIXES):
                continue
            seen[member.name] += 1
            # An archive may hold a name more than once, and each is a document.
            again = f"#{seen[member.name]}" if seen[member.name] > 1 else ""
            name = f"{place}#{member.name}{again}"
            if member.size > MAX_FILE_BYTES:
                yield InputFile(
                    name, None, PurePath(name), f"the member has {member.size} bytes, which is too much", code=TOO_LARGE
                )
                continue
            content = archive.extractfile(member)
            yield InputFile(name, None, PurePath(name), None, content.read() if content else b"")


def name_of(file: InputFile) -> str:
    """What the tables call a document; bytes of a path that are no UTF-8 are written as escapes."""
    return os.fsencode(file.place).decode("utf-8", "backslashreplace")


def _cells(path: Path, place: PurePath, column: str | None) -> Iterator[InputFile]:
    with pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        chosen = column or next((name for name in COLUMNS if name in names), None)
        if chosen not in names:
            raise FileError(
                NO_COLUMN, f"the Parquet file has no column {chosen or 'with documents'}; columns: {', '.join(names)}"
            )
        row = 0
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[chosen]):
            for cell in batch.column(0).to_pylist():
                name = f"{place}#{row}"
                data = _bytes_of(cell)
                problem = "the cell has no bytes" if data is None else None
                yield InputFile(name, None, PurePath(name), problem, data, NO_DOCUMENT)
                row += 1


def _bytes_of(cell: Any) -> bytes | None:
    """Bytes of a cell: binary, or a struct with `bytes` as data sets of images have it."""
    found = cell.get("bytes") if isinstance(cell, dict) else cell
    return found if isinstance(found, bytes) else None
