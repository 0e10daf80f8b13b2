"""`deepsynth bulk`: reads many documents into Parquet files; the same command goes on where a run ended.

Documents are read here, by a running service, or by workers on a Ray cluster; the files are written here in any case.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from service.cli.bulk_sources import COLUMNS, find_documents, name_of
from service.cli.bulk_tables import EXIT_OPTIONS, BulkTables, Rows
from service.cli.inputs import InputFile, Skipped
from service.cli.local_reader import local_reader
from service.cli.ocr import EXIT_UNREACHABLE, EXIT_UNREADABLE, READING
from service.cli.output import OutputError
from service.cli.read_flags import add_read_flags, read_options
from service.cli.reading import FileError, FileReader, OptionError, ReadOptions, ServiceUnreachableError
from service.cli.remote_reader import DEFAULT_JOBS, remote_reader
from service.cli.serve import EXIT_ENGINE_FAILED
from service.cli.startup import start
from service.config import LogLevel, ServiceSettings
from service.errors import EngineError
from service.schemas import OcrAnswer
from shared.contract.prompts import Task

_OF_ONE_DOCUMENT = {"query", "pages", "confidence", "review_threshold"}
"""Flags of `deepsynth ocr` that rows have no place for, or that each document needs of its own."""
_READING = (*(name for name in READING if name not in _OF_ONE_DOCUMENT), "table_format", "omit")
_ALWAYS_NOTED = {"task", "mode", "max_new_tokens"}
_EPILOG = """\
exit status: 0 every page was read, 1 some page was not (see DEST/failures), 2 wrong usage or settings, 69 no service
at --url or no Ray cluster, 70 the engine failed, 74 the output could not be written, 130 Ctrl-C
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its flags."""
    parser.description = (
        "Read many documents into Parquet files: DEST/pages with a row for each page, DEST/failures with what could "
        "not be read and why. The same command goes on where a run ended, and reads no finished document again."
    )
    parser.epilog = _EPILOG
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="folder of images, PDFs, Parquet files and tar archives (WebDataset), or one of these files",
    )
    parser.add_argument("dest", type=Path, metavar="DEST", help="folder for the output; made where it is missing")
    parser.add_argument(
        "--column", metavar="NAME", help=f"column of Parquet files with documents; default: {', '.join(COLUMNS)}"
    )
    parser.add_argument(
        "--rows-per-file", type=int, default=10_000, metavar="N", help="about how many pages a file has (%(default)s)"
    )
    add_read_flags(parser.add_argument_group("reading"), *_READING)
    parser.add_argument("--url", help="read with a running service, such as http://127.0.0.1:8000, instead of here")
    parser.add_argument(
        "--on",
        choices=["here", "ray"],
        default="here",
        help="ray: with workers on the cluster of RAY_ADDRESS (%(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="with --on ray; default: one for each GPU, or for each machine without"
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help=f"documents at once; default: what fits, {DEFAULT_JOBS} with --url"
    )


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Read the documents; returns the exit status, see `_EPILOG`."""
    settings = start(LogLevel.WARNING)
    if not arguments.source.exists():
        parser.error(f"{arguments.source} does not exist")
    if any(
        number is not None and number < 1 for number in (arguments.rows_per_file, arguments.jobs, arguments.workers)
    ):
        parser.error("--rows-per-file, --jobs and --workers take a number from 1")
    if arguments.on == "ray" and arguments.url:
        parser.error("--on ray and --url exclude each other")
    if arguments.workers and arguments.on != "ray":
        parser.error("--workers needs --on ray")
    options = read_options(arguments)
    if options.task is Task.LOCATE:
        parser.error("--task locate needs a query for each page; use deepsynth ocr --task locate")
    # What decides about the text; where it is read, and by how many, does not.
    given = {name: getattr(options, name) for name in _READING}
    chosen = {
        "model": given.pop("model_id") or (None if arguments.url else settings.model),
        # A run that was begun by a version without the other flags goes on.
        **{
            name: value
            for name, value in given.items()
            if name in _ALWAYS_NOTED or not (value is None or value is False)
        },
    }
    with BulkTables(arguments.dest, chosen, arguments.rows_per_file) as tables:
        progress = _Progress(len(tables.done))
        skipped = Skipped()
        documents = find_documents(arguments.source, arguments.column, skipped)
        unread = (file for file in documents if name_of(file) not in tables.done)
        try:
            first = next(unread, None)
            if first is None and not tables.done:
                what = f"{arguments.source} has no images, no PDFs, no Parquet files and no archives"
                sys.stderr.write(f"deepsynth: {what}\n{skipped}\n" if skipped else f"deepsynth: {what}\n")
                return EXIT_UNREADABLE
            if first is not None:
                reader = _reader(settings, options, arguments)
                asyncio.run(_read_all(reader, _chain(first, unread), tables, progress))
            tables.flush()
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(progress.how_far()) from interrupt
        except (OptionError, ServiceUnreachableError, EngineError) as error:
            done = f". {progress.how_far()}" if progress.num_documents else ""
            sys.stderr.write(f"deepsynth: {error}{done}\n")
            known = {OptionError: EXIT_OPTIONS, ServiceUnreachableError: EXIT_UNREACHABLE}
            return known.get(type(error), EXIT_ENGINE_FAILED)
        finally:
            progress.close()
    sys.stderr.write(progress.summary())
    if skipped:
        sys.stderr.write(f"{skipped}\n")
    if not any((arguments.dest / "failures").glob("part-*.parquet")):
        return 0
    sys.stderr.write(f"What could not be read, in this run or before, is in {arguments.dest / 'failures'}.\n")
    return EXIT_UNREADABLE


def _chain(first: InputFile, others: Iterator[InputFile]) -> Iterator[InputFile]:
    yield first
    yield from others


def _reader(
    settings: ServiceSettings, options: ReadOptions, arguments: argparse.Namespace
) -> AbstractAsyncContextManager[FileReader]:
    if arguments.on == "ray":
        # Imported here because Ray is an extra of its own.
        from service.cli.ray_reader import ray_reader

        return ray_reader(settings, options, arguments.workers, arguments.jobs)
    if arguments.url is None:
        return local_reader(settings, options, None, arguments.jobs, b"")
    key = settings.api_key.get_secret_value() if settings.api_key else None
    return remote_reader(arguments.url, options, None, arguments.jobs, b"", key)


async def _read_all(
    starting: AbstractAsyncContextManager[FileReader],
    documents: Iterator[InputFile],
    tables: BulkTables,
    progress: _Progress,
) -> None:
    """Read all documents, as many at once as the reader takes; a document is fetched when there is room for it."""

    async def work(reader: FileReader) -> None:
        for file in documents:
            rows = await _rows(reader, file)
            # Not in a thread: two documents at once would end up in each other's lines.
            tables.add(rows)
            progress.note(rows)

    async with starting as reader:
        workers = [asyncio.create_task(work(reader)) for _ in range(reader.jobs)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


async def _rows(reader: FileReader, file: InputFile) -> Rows:
    source = name_of(file)
    try:
        reading = await reader.read(file)
    except FileError as error:
        return Rows(source, failures=[{"source": source, "page": None, "code": error.code, "title": str(error)}])
    if reading.answer is None:
        raise OutputError("the service answered in another format than JSON")
    return _rows_of(source, reading.answer)


def _rows_of(source: str, answer: OcrAnswer) -> Rows:
    pages: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    for page in answer.pages:
        given = page.model_dump(mode="json")
        names = ("page", "status", "text", "confidence", "coverage", "model_id", "finish_reason", "warnings")
        shape = ("width_px", "height_px", "turned_degrees")
        pages.append({"source": source, **{name: given[name] for name in (*names, *shape)}})
        if page.error is not None:
            failures.append({"source": source, "page": page.page, "code": page.error.code, "title": page.error.title})
    return Rows(source, pages, failures)


class _Progress:
    """Counts pages, and shows them on a terminal."""

    def __init__(self, num_before: int) -> None:
        self._num_before = num_before
        self.num_documents = self._num_pages = self._num_failures = 0
        self._start_s = time.monotonic()
        self._bar = tqdm(unit="page", file=sys.stderr, leave=False, disable=None)

    def note(self, rows: Rows) -> None:
        self.num_documents += 1
        self._num_pages += len(rows.pages)
        self._num_failures += len(rows.failures)
        self._bar.update(len(rows.pages))

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()

    def how_far(self) -> str:
        """A sentence for a run that ends early."""
        return f"Documents read: {self.num_documents}; the same command goes on from there."

    def summary(self) -> str:
        """What was done, and how fast, with the start of the engine."""
        took_s = time.monotonic() - self._start_s
        return (
            f"Documents: {self.num_documents} read, {self._num_before} before. Pages: {self._num_pages}, "
            f"failed: {self._num_failures}, {self._num_pages / took_s:.2f} a second.\n"
        )
