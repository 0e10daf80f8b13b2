"""What `deepsynth bulk` writes: Parquet files of pages and of failures, and a journal that makes a run resumable.

A finished document is a line of the journal, on disk before the next one counts as finished. When the journal has
enough rows they become a Parquet file in one step, and the journal begins again. A document is thus in the files, in
the journal, or unread; one that is in both, after a kill between the two steps, is taken from the files.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow
import pyarrow.parquet

from service.cli.output import OutputError
from shared.contract.durable import closing_descriptor, folder_descriptor, replace_file

PAGES = pyarrow.schema(
    [
        pyarrow.field("source", pyarrow.string(), nullable=False),
        pyarrow.field("page", pyarrow.int32(), nullable=False),
        pyarrow.field("status", pyarrow.string(), nullable=False),
        ("text", pyarrow.string()),
        ("confidence", pyarrow.float64()),
        ("coverage", pyarrow.float64()),
        ("model_id", pyarrow.string()),
        ("finish_reason", pyarrow.string()),
        ("warnings", pyarrow.list_(pyarrow.string())),
        ("width_px", pyarrow.int32()),
        ("height_px", pyarrow.int32()),
        ("turned_degrees", pyarrow.int16()),
    ]
)
"""A row for each page, of every status."""
FAILURES = pyarrow.schema(
    [
        pyarrow.field("source", pyarrow.string(), nullable=False),
        ("page", pyarrow.int32()),
        pyarrow.field("code", pyarrow.string(), nullable=False),
        ("title", pyarrow.string()),
    ]
)
"""A row for each page that failed, and for each document that could not be read, whose page is null."""
TABLES = {"pages": PAGES, "failures": FAILURES}
EXIT_OPTIONS = 2
JOURNAL_NAME = "journal.jsonl"
OPTIONS_NAME = "options.json"
_LOCK = ".lock"
_MENDED = "remove {}, and what it held is read again"
_PART = re.compile(r"part-(\d{6})\.parquet")
_TEMPORARY_PREFIX = ".deepsynth-"


@dataclass(frozen=True, slots=True)
class Rows:
    """What a document gave."""

    source: str
    pages: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)


class BulkTables:
    """The output folder of one run; one process at a time.

    An `OutputError`, from every method, says that the folder cannot be written, belongs to a run that still goes on, or
    was begun with other options.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any], rows_per_file: int) -> None:
        self.done: set[str] = set()
        """Sources that need not be read again."""
        self._folder = folder
        self._options = json.dumps(dict(options), sort_keys=True)
        self._rows_per_file = rows_per_file
        self._waiting: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
        self._journal = self._lock = -1

    def __enter__(self) -> Self:
        try:
            for name in TABLES:
                (self._folder / name).mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"another process writes to {self._folder}") from None
        except OSError as error:
            raise OutputError(f"{self._folder} cannot be written: {error.strerror}") from error
        try:
            self._check_options()
            self._resume()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self._journal, self._lock):
            if descriptor >= 0:
                os.close(descriptor)

    def add(self, rows: Rows) -> None:
        """Take a finished document; it is on disk when this returns."""
        line = json.dumps({"source": rows.source, "pages": rows.pages, "failures": rows.failures}).encode() + b"\n"
        try:
            _write_whole(self._journal, line)
            os.fdatasync(self._journal)
        except OSError as error:
            raise OutputError(f"{self._folder / JOURNAL_NAME}: {error.strerror}") from error
        self._take(rows)
        if sum(map(len, self._waiting.values())) >= self._rows_per_file:
            self.flush()

    def flush(self) -> None:
        """Write what waits in the journal to Parquet files."""
        try:
            for name, schema in TABLES.items():
                if self._waiting[name]:
                    self._write_part(name, schema)
            os.ftruncate(self._journal, 0)
            os.fsync(self._journal)
        except OSError as error:
            raise OutputError(f"{self._folder}: {error.strerror}") from error
        for rows in self._waiting.values():
            rows.clear()

    def _take(self, rows: Rows) -> None:
        self._waiting["pages"] += rows.pages
        self._waiting["failures"] += rows.failures
        self.done.add(rows.source)

    def _write_part(self, name: str, schema: pyarrow.Schema) -> None:
        folder = self._folder / name
        numbers = [int(found.group(1)) for path in folder.iterdir() if (found := _PART.fullmatch(path.name))]
        content = io.BytesIO()
        table = pyarrow.Table.from_pylist(self._waiting[name], schema=schema)
        pyarrow.parquet.write_table(table, content, compression="zstd")
        with closing_descriptor(folder_descriptor(folder)) as inside:
            part = f"part-{max(numbers, default=-1) + 1:06d}.parquet"
            replace_file(part, content.getvalue(), inside, _TEMPORARY_PREFIX)

    def _check_options(self) -> None:
        place = self._folder / OPTIONS_NAME
        if not place.exists():
            with closing_descriptor(folder_descriptor(self._folder)) as inside:
                replace_file(OPTIONS_NAME, self._options.encode() + b"\n", inside, _TEMPORARY_PREFIX)
        elif (before := place.read_text(encoding="utf-8", errors="backslashreplace").strip()) != self._options:
            text = f"{self._folder} was begun with other options, {before}; use them, or another folder"
            raise OutputError(text, EXIT_OPTIONS)

    def _resume(self) -> None:
        written = {name: self._sources(name) for name in TABLES}
        self.done = set().union(*written.values())
        place = self._folder / JOURNAL_NAME
        lines = place.read_bytes().splitlines(keepends=True) if place.exists() else []
        # A line without its end was being written when the process was killed.
        whole = [line for line in lines if line.endswith(b"\n")]
        for number, line in enumerate(whole, 1):
            try:
                found = json.loads(line)
                source = found["source"]
                kept = {name: [] if source in written[name] else found[name] for name in TABLES}
            except (ValueError, LookupError, TypeError):
                raise OutputError(f"{place}, line {number}, is damaged: {_MENDED.format('the line')}") from None
            self._take(Rows(source, kept["pages"], kept["failures"]))
        self._journal = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._journal, sum(map(len, whole)))

    def _sources(self, name: str) -> set[str]:
        found: set[str] = set()
        for path in (self._folder / name).iterdir():
            if _PART.fullmatch(path.name):
                try:
                    table = pyarrow.parquet.read_table(path, columns=["source"])
                except (pyarrow.ArrowException, OSError):
                    raise OutputError(f"{path} is damaged: {_MENDED.format('it')}") from None
                found.update(table.column("source").unique().to_pylist())
        return found


def _write_whole(descriptor: int, data: bytes) -> None:
    if os.write(descriptor, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
