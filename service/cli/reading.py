"""What reading a file gives, here or in a running service: a result, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from service.cli.inputs import InputFile
from service.errors import DeepSynthError, UploadTooLargeError
from service.ocr.confidence import Granularity
from service.ocr.outcome import BlankPages, Orientation
from service.ocr.page_notes import PageNote
from service.ocr.tables import TableFormat
from service.schemas import OcrAnswer
from shared.contract.prompts import Task
from shared.deepseek_ocr.geometry import Mode
from shared.deepseek_ocr.reading_layout import ReadingLayout

_OPTION_CODES = {"invalid_field", "model_not_found", "model_refused", "adapters_off"}
"""Errors of the options, which every other file would meet as well."""
_KEY_CODES = {"key_required", "key_invalid", "key_scope"}
"""Errors of the key, likewise."""
_OF_A_FILE = {"pages"}
"""Options that may suit one file and not the next."""
_PROBLEM_MEMBERS = {"type", "title", "status", "code", "retryable", "request_id"}
_TITLES = {
    "too_many_pages": "The document has too many pages; select some with --pages.",
    "page_out_of_range": "--pages selects a page that the document does not have.",
    "too_many_vision_tokens": "A page needs more tokens than the model supports; choose a smaller --mode.",
    "model_not_found": "This model does not exist.",
    "upload_too_large": "The file exceeds the maximum size.",
}
"""Where the title of the API speaks of routes and form fields."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read; None leaves the choice to the service."""

    task: Task = Task.FREE
    query: str | None = None
    mode: Mode | None = None
    model_id: str | None = None
    pages: str | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    confidence: Granularity | None = None
    review_threshold: float | None = None
    blank_pages: BlankPages | None = None
    min_confidence: float | None = None
    min_coverage: float | None = None
    orientation: Orientation | None = None
    table_format: TableFormat | None = None
    omit: str | None = None
    figures: bool = False
    join_pages: bool = False
    pages_together: bool = False
    layout: ReadingLayout | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """A file that was read."""

    answer: OcrAnswer | None
    """None where a service answered in another format than JSON."""
    body: bytes | None
    """The document in the output format; None if none was asked for."""
    is_partial: bool
    """Whether some page failed."""
    notes: tuple[PageNote, ...]
    """What is to be told of its pages."""


class FileError(Exception):
    """A file could not be read; the message is for the user."""

    def __init__(self, code: str, title: str, facts: Mapping[str, Any] | None = None) -> None:
        title = _TITLES.get(code, title)
        shown = "".join(f", {name}: {_plain(value)}" for name, value in (facts or {}).items())
        super().__init__(f"{title} ({code}{shown})")
        self.code = code
        self.title = title
        self.facts = dict(facts or {})


class OptionError(Exception):
    """No file can be read with these options; the message says which is wrong."""


class ServiceUnreachableError(Exception):
    """The service at the given address does not answer."""


class FileReader(Protocol):
    """Reads files: an engine in this process, or a running service."""

    jobs: int
    """Files to read at once."""

    async def read(self, file: InputFile) -> Reading:
        """Read a file, or raise a `FileError`; an `OptionError` or `ServiceUnreachableError` ends the command."""


def error_of(error: DeepSynthError) -> FileError | OptionError:
    """What an error of the service means for the command line."""
    return explain(error.code, error.title, error.public)


def explain(code: str, title: str, facts: Mapping[str, Any]) -> FileError | OptionError:
    """What a code means for the command line.

    Args:
        code: Of the error tree, or of a proxy before the service.
        title: One sentence.
        facts: Members of the problem; standard ones are left out.

    Returns:
        An `OptionError` if every file would meet the same error.
    """
    facts = {name: value for name, value in facts.items() if name not in _PROBLEM_MEMBERS}
    field = str(facts.get("field", ""))
    if code in _KEY_CODES:
        return OptionError(f"DEEPSYNTH_API_KEY: {title} ({code})")
    if code not in _OPTION_CODES or field in _OF_A_FILE:
        if field:
            flag = _flag(field)
            return FileError(code, f"{flag} is not valid.", {k: v for k, v in facts.items() if k != "field"})
        return FileError(code, title, facts)
    if field:
        return OptionError(f"{_flag(field)}: expected {_plain(facts.get('expected', 'another value'))}")
    known = f"; known: {_plain(facts['known'])}" if facts.get("known") else ""
    reason = f"; reason: {_plain(facts['reason'])}" if facts.get("reason") else ""
    return OptionError(f"--model-id: {_TITLES.get(code, title).rstrip('.')}{known}{reason}")


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def load(file: InputFile, standard_input: bytes, limit_bytes: int) -> bytes:
    """The bytes of an input.

    Args:
        file: The input.
        standard_input: What was read from there.
        limit_bytes: Largest size.

    Returns:
        All of them.

    Raises:
        FileError: It cannot be opened.
        UploadTooLargeError: It is longer.
    """
    if file.problem is not None:
        raise FileError(file.code, file.problem)
    if file.data is not None:
        data = file.data
    elif file.path is None:
        data = standard_input
    else:
        try:
            data = _read_bytes(file.path, limit_bytes)
        except OSError as error:
            raise FileError("cannot_open", error.strerror or "cannot be opened") from error
    if len(data) > limit_bytes:
        raise UploadTooLargeError(public={"limit_bytes": limit_bytes})
    return data


def _read_bytes(path: Path, limit_bytes: int) -> bytes:
    with path.open("rb") as stream:
        return stream.read(limit_bytes + 1)
