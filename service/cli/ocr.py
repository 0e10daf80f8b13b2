"""`deepsynth ocr`: reads files, with an engine in this process or with a running service, and prints or writes them."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Protocol

import httpx
from tqdm import tqdm

from service.cli.inputs import STANDARD_INPUT, InputFile, Skipped, find_inputs
from service.cli.local_reader import local_reader
from service.cli.output import OutputError, OutputFolder, print_output, prints_unicode
from service.cli.read_flags import add_read_flags, read_options
from service.cli.reading import FileError, FileReader, OptionError, Reading, ReadOptions, ServiceUnreachableError
from service.cli.remote_reader import DEFAULT_JOBS, MAX_FILE_BYTES, remote_reader
from service.cli.serve import EXIT_ENGINE_FAILED
from service.cli.startup import start
from service.cli.waiting import waiting
from service.config import LogLevel, ServiceSettings
from service.errors import EngineError, error_classes
from service.ocr.confidence import Granularity
from service.ocr.formats.output_format import OutputFormat
from service.ocr.formats.registry import FORMATS
from service.ocr.page_notes import PageNote
from service.schemas import OcrAnswer
from shared.contract.prompts import Task, prompt_for

EXIT_UNREADABLE = 1
EXIT_OPTIONS = 2
EXIT_UNREACHABLE = 69
"""EX_UNAVAILABLE: no service answers at the given address."""
_FORMAT_IN_FOLDER = "text"
READING = (
    "task",
    "query",
    "mode",
    "model_id",
    "pages",
    "max_new_tokens",
    "temperature",
    "seed",
    "confidence",
    "review_threshold",
    "blank_pages",
    "min_confidence",
    "min_coverage",
    "orientation",
    "layout",
    "pages_together",
)
_ENDINGS = frozenset(PurePath(f"x{output.extension}").suffix for output in FORMATS.values())
"""Of files that people may name by mistake."""
_TEXT = ("table_format", "omit", "figures", "join_pages")
_EPILOG = """\
exit status: 0 every page was read, 1 some page was not, 2 wrong usage or settings, 69 no service at --url,
70 the engine failed, 74 the output could not be written, 130 Ctrl-C, 141 the output was closed, as by `| head`
"""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the command was asked to do, checked."""

    files: Sequence[InputFile]
    up_to_date: int
    """Files whose output is there already."""
    skipped: Skipped
    options: ReadOptions
    output: OutputFormat | None
    """None prints the text, or the answer as a line of JSON."""
    as_json: bool
    folder: OutputFolder | None
    """None prints."""
    url: str | None
    jobs: int | None
    standard_input: bytes

    @property
    def num_inputs(self) -> int:
        """All files, read and up to date."""
        return len(self.files) + self.up_to_date


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and its flags."""
    parser.description, parser.epilog = "Read files and print their text, or write them to a folder.", _EPILOG
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="image (PNG, JPEG, WebP, TIFF, GIF, BMP, JPEG 2000, AVIF, HEIC) or PDF; a folder, with its subfolders; "
        "a pattern such as 'scans/**/*.png'; - for standard input",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object per file")
    output.add_argument("--format", choices=list(FORMATS), help="output format; with --out, the default is text")
    output.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write one file per input; those that are up to date are skipped",
    )
    output.add_argument("--overwrite", action="store_true", help="with --out: read and write every file again")
    reading = parser.add_argument_group("reading")
    add_read_flags(reading, *READING)
    text = parser.add_argument_group("text")
    add_read_flags(text, *_TEXT)
    where = parser.add_argument_group("where it runs")
    where.add_argument("--url", help="read with a running service, such as http://127.0.0.1:8000, instead of here")
    where.add_argument(
        "--jobs", type=_positive, metavar="N", help=f"files at once; default: what fits, {DEFAULT_JOBS} with --url"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_positive.__name__ = "number from 1"  # what argparse calls a wrong value


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Read files and print or write them; returns the exit status, see `_EPILOG`."""
    settings = start(LogLevel.WARNING)
    try:
        plan = _plan(arguments, settings)
    except ValueError as error:
        parser.error(str(error))
    report = _Report(plan)
    try:
        if plan.folder is not None:
            plan.folder.prepare()
        if plan.files:
            asyncio.run(_read_all(_reader(settings, plan), plan, report))
    except KeyboardInterrupt as interrupt:
        report.close()
        raise KeyboardInterrupt(report.how_far()) from interrupt
    except OutputError as error:
        report.close()
        raise OutputError(f"{error}. {report.how_far()}", error.status) from error
    except (OptionError, ServiceUnreachableError, EngineError) as error:
        report.close()
        # Wrong options and an address without a service end it before any file.
        done = f". {report.how_far()}" if report.num_done else ""
        sys.stderr.write(f"deepsynth: {error}{done}\n")
        known = {OptionError: EXIT_OPTIONS, ServiceUnreachableError: EXIT_UNREACHABLE}
        return known.get(type(error), EXIT_ENGINE_FAILED)
    report.summarize()
    return EXIT_UNREADABLE if report.failures else 0


def _plan(arguments: argparse.Namespace, settings: ServiceSettings) -> _Plan:
    """Check the arguments and find the files; a `ValueError` says what does not fit together."""
    out, url = arguments.out, arguments.url
    prompt_for(Task(arguments.task), arguments.query)
    options = read_options(arguments)
    if url is not None:
        _check_url(url)
    if arguments.as_json and (arguments.format or out):
        raise ValueError("--json prints; with --out use --format json")
    if arguments.overwrite and out is None:
        raise ValueError("--overwrite goes with --out")
    skipped = Skipped()
    files = find_inputs(arguments.files, out, skipped)
    output = FORMATS[arguments.format or _FORMAT_IN_FOLDER] if arguments.format or out else None
    _check_confidence(options, output, as_json=arguments.as_json)
    folder = None
    chosen = files
    if output is not None and out is not None:
        _check_folder(out)
        folder = OutputFolder(out, output.extension, files)
        chosen = [file for file in files if arguments.overwrite or not folder.has_current(file)]
    elif output is not None:
        if len(files) > 1:
            raise ValueError("--format prints one file; to write several, add --out FOLDER")
        if output.essence == "application/pdf" and sys.stdout is not None and sys.stdout.isatty():
            raise ValueError("a PDF cannot be shown on a terminal; add --out FOLDER, or > FILE")
    return _Plan(
        files=chosen,
        up_to_date=len(files) - len(chosen),
        skipped=skipped,
        options=options,
        output=output,
        as_json=arguments.as_json,
        folder=folder,
        url=url,
        jobs=arguments.jobs,
        standard_input=_standard_input(files, MAX_FILE_BYTES if url else settings.max_upload_bytes),
    )


def _check_confidence(options: ReadOptions, output: OutputFormat | None, *, as_json: bool) -> None:
    """Refuse what the output has no place for."""
    is_json = as_json or output is FORMATS["json"]
    if options.review_threshold is not None and not is_json:
        raise ValueError("--review-threshold goes with --json or --format json")
    shows_words = is_json or (output is not None and output.has_word_confidences)
    if options.confidence not in (None, Granularity.PAGE) and not shows_words:
        raise ValueError("--confidence goes with --json, or with --format json, hocr or alto")


def _check_folder(out: Path) -> None:
    """Refuse the name of a file, of which a folder would be made."""
    if not out.exists() and out.suffix.lower() in _ENDINGS:
        raise ValueError(f"--out takes a folder; for one file use > {out}, or make a folder of this name before")


def _check_url(url: str) -> None:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"--url: {error}") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ValueError("--url takes an address such as http://127.0.0.1:8000")


def _standard_input(files: Sequence[InputFile], limit_bytes: int) -> bytes:
    """What is piped in, if it is asked for, up to one byte more than the limit."""
    if not any(file.name == STANDARD_INPUT for file in files):
        return b""
    if sys.stdin is None:
        raise ValueError("standard input is closed")
    return sys.stdin.buffer.read(limit_bytes + 1)


def _reader(settings: ServiceSettings, plan: _Plan) -> AbstractAsyncContextManager[FileReader]:
    if plan.url is not None:
        key = settings.api_key.get_secret_value() if settings.api_key else None
        return remote_reader(plan.url, plan.options, plan.output, plan.jobs, plan.standard_input, key)
    return local_reader(settings, plan.options, plan.output, plan.jobs, plan.standard_input)


async def _read_all(starting: AbstractAsyncContextManager[FileReader], plan: _Plan, report: _Report) -> None:
    """Read all files, as many at once as the reader takes."""
    sink: _Sink = _Printer(plan, report) if plan.folder is None else _Writer(plan.folder, report)
    is_alone = len(plan.files) == 1
    async with contextlib.AsyncExitStack() as stack:
        with report.waiting("Loading the model" if plan.url is None else "Connecting"):
            reader = await stack.enter_async_context(starting)
        numbered = iter(enumerate(plan.files))

        async def work() -> None:
            for index, file in numbered:
                try:
                    # Of several files, those that are printed or the bar show how far it is.
                    with report.waiting("Reading") if is_alone else contextlib.nullcontext():
                        outcome: Reading | FileError = await reader.read(file)
                except FileError as error:
                    outcome = error
                await sink.take(index, file, outcome)
                report.advance()

        workers = [asyncio.create_task(work()) for _ in range(min(reader.jobs, len(plan.files)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


class _Sink(Protocol):
    """Takes what was read, in the order in which files are finished."""

    async def take(self, index: int, file: InputFile, outcome: Reading | FileError) -> None:
        """Print or write a file; an `OutputError` ends the command."""


@dataclass
class _Printer:
    """Prints files in the order in which they were given."""

    plan: _Plan
    report: _Report
    waiting: dict[int, tuple[InputFile, Reading | FileError]] = field(default_factory=dict)
    """Finished before their turn."""
    next_index: int = 0

    async def take(self, index: int, file: InputFile, outcome: Reading | FileError) -> None:
        self.waiting[index] = (file, outcome)
        while self.next_index in self.waiting:
            self._print(*self.waiting.pop(self.next_index))
            self.next_index += 1

    def _print(self, file: InputFile, outcome: Reading | FileError) -> None:
        if self.plan.as_json:
            print_output(_json_line(file, outcome))
        elif isinstance(outcome, Reading) and outcome.body is not None:
            print_output(outcome.body)
        elif isinstance(outcome, Reading) and outcome.answer is not None:
            heading = f"== {file.shown} ==\n" if self.plan.num_inputs > 1 else ""
            print_output(f"{heading}{outcome.answer.text}\n")
        self.report.note(file, outcome)


_REMARKS = {
    "damaged_image": "An image on it is damaged, so a part is missing.",
    "partly_read": "A part of its print was not read; --format json has its place.",
    "low_accuracy": "Many words are probably wrong: a tilted or dark photo, handwriting, or a script it cannot read?",
    "second_reading_failed": "It was to be read again by a larger model, which failed.",
    "length": "Its text was cut at the maximum of tokens.",
    "repetition": "Its text repeated itself and was cut.",
}


def _remarks(note: PageNote) -> Iterator[str]:
    """What people should know of a page that did not fail."""
    if note.status == "unreadable":
        yield "No text that can be trusted: a photo, handwriting, or a script it cannot read?"
    yield from (_REMARKS[word] for word in note.words if word in _REMARKS)


def _why_failed(note: PageNote, answer: OcrAnswer | None) -> tuple[str, str]:
    """Code and title of a failed page's error."""
    for page in () if answer is None else answer.pages:
        if page.page == note.page and page.error is not None:
            return page.error.code, page.error.title
    code = note.words[0] if note.words else "failed"
    known = error_classes().get(code)
    return code, known.title if known else "The page could not be read."


def _json_line(file: InputFile, outcome: Reading | FileError) -> str:
    if isinstance(outcome, FileError):
        found = {"error": {**outcome.facts, "code": outcome.code, "title": outcome.title}}
    else:
        found = {} if outcome.answer is None else outcome.answer.model_dump(mode="json")
    return json.dumps({"file": file.name, **found}, ensure_ascii=not prints_unicode()) + "\n"


@dataclass
class _Writer:
    """Writes each file to a folder as soon as it is read."""

    folder: OutputFolder
    report: _Report

    async def take(self, _: int, file: InputFile, outcome: Reading | FileError) -> None:
        if isinstance(outcome, Reading):
            content = outcome.body or b""
            writing = asyncio.ensure_future(
                asyncio.to_thread(self.folder.write, file, content, is_partial=outcome.is_partial)
            )
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                # The thread goes on; what it has written counts as done.
                await writing
                self.report.note(file, outcome)
                raise
        self.report.note(file, outcome)


class _Report:
    """Tells people on standard error what goes wrong, how far reading is, and at the end what was not read."""

    def __init__(self, plan: _Plan) -> None:
        self.failures: list[str] = []
        """File, page and code of each."""
        self._plan = plan
        self.num_done = 0
        self._num_read = 0
        # Printed texts show the progress themselves.
        is_shown = plan.folder is not None or (sys.stdout is not None and not sys.stdout.isatty())
        self._bar = tqdm(
            total=plan.num_inputs,
            initial=plan.up_to_date,
            unit="file",
            file=sys.stderr,
            leave=False,
            disable=None if is_shown and plan.num_inputs > 1 else True,  # None: only on a terminal
        )

    def waiting(self, text: str) -> AbstractContextManager[None]:
        """A line that says what is being waited for, where there is no bar."""
        return waiting(text) if self._bar.disable else contextlib.nullcontext()

    def note(self, file: InputFile, outcome: Reading | FileError) -> None:
        """Count a file that was printed or written, and tell what is wrong with it."""
        self.num_done += 1
        if isinstance(outcome, FileError):
            self._fail(file.shown, outcome.code, str(outcome))
            return
        self._num_read += 1
        for note in outcome.notes:
            place = f"{file.shown}: page {note.page}"
            if note.status == "failed":
                code, title = _why_failed(note, outcome.answer)
                self._fail(place, code, f"{title} ({code})")
            for remark in _remarks(note):
                tqdm.write(f"{place}: {remark}", file=sys.stderr)
        if outcome.is_partial and not any(note.status == "failed" for note in outcome.notes):
            # Of a service that does not name them, or has more of them than a header holds.
            self._fail(file.shown, "partial", "Some pages failed; --format json says which. (partial)")

    def _fail(self, place: str, code: str, text: str) -> None:
        self.failures.append(f"{place}: {code}")
        tqdm.write(f"{place}: {text}", file=sys.stderr)

    def advance(self) -> None:
        """Move the bar."""
        self._bar.update()

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()

    def how_far(self) -> str:
        """A sentence for a run that ends early."""
        done, total = self.num_done, len(self._plan.files)
        if self._plan.folder is None:
            return f"Files printed: {done} of {total}."
        return f"Files done: {done} of {total}; the same command goes on from there."

    def summarize(self) -> None:
        """Say what was done: of several files that were printed, only if something went wrong."""
        self.close()
        lines = []
        if self._plan.folder is not None:
            before = f"; skipped, as they are up to date: {self._plan.up_to_date}" if self._plan.up_to_date else ""
            lines.append(f"Files written to {self._plan.folder.root}: {self._num_read}{before}.")
        if self._plan.skipped:
            lines.append(str(self._plan.skipped))
        if self.failures and self._plan.num_inputs > 1:
            lines += ["Failed:", *(f"  {failure}" for failure in self.failures)]
        if lines:
            sys.stderr.write("\n".join(lines) + "\n")
