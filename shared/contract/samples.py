"""The folder of kept samples, which the service writes and the trainer reads: pages, what was read, corrections.

    <folder>/pages/<sha256>.png     an upright page without metadata; <sha256>.thumbnail.jpg if only that may be kept
    <folder>/pages/<sha256>.json    its record; a sample exists once this does
    <folder>/audit.jsonl            what was written, read and erased, when and why, without content
    <folder>/lock                   locked by the service that writes

The key is the SHA-256 of the page's pixels, as `shared.images.digest` computes it.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from shared.contract.prompts import Task

PAGES_FOLDER, AUDIT_FILE, LOCK_FILE = "pages", "audit.jsonl", "lock"
IMAGE_SUFFIX, THUMBNAIL_SUFFIX, RECORD_SUFFIX = ".png", ".thumbnail.jpg", ".json"
FILE_MODE = 0o600
MAX_RECORD_BYTES = 8 * 1024 * 1024
MAX_TEXT_CHARACTERS = 65_536
"""Longest correction; four times what the 4096 tokens of a page usually say."""
TEXT_TASKS = frozenset({Task.FREE, Task.OCR})
"""Tasks whose text, without boxes, is the plain text of the page: one set may have samples of both."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class SampleReading(_Record):
    """What a model read on the page."""

    model_id: str
    """The base model, or an adapter as `name@version`."""
    mode: str
    status: Literal["ok", "blank", "unreadable"]
    text: str
    confidence: float | None
    finish_reason: str | None
    timings_ms: dict[str, float]
    """Milliseconds by stage."""
    read_at: AwareDatetime


class Correction(_Record):
    """What a person says is on the page."""

    text: str
    model_id: str
    """The model whose text was corrected."""
    corrected_at: AwareDatetime


class AnswerPage(_Record):
    """A page of an answer by which the sample can be found."""

    id: str
    page: int
    """In the document, from 1."""
    num_pages: int
    """Pages of the whole answer."""
    task: Task


class SampleRecord(_Record):
    """The record of one sample."""

    format: Literal[1] = 1
    sha256: Sha256
    """Of the pixels, and the name of the files."""
    width_px: int
    height_px: int
    is_thumbnail: bool
    """Whether only a small picture of the page was kept."""
    stored_at: AwareDatetime
    """When the page was last stored with consent; the time to live counts from here."""
    answers: list[AnswerPage]
    """Newest last."""
    readings: dict[Task, SampleReading]
    """The newest by task."""
    corrections: dict[Task, Correction]
    """The newest by task."""

    @property
    def image_name(self) -> str:
        """Name of the page's file."""
        return self.sha256 + (THUMBNAIL_SUFFIX if self.is_thumbnail else IMAGE_SUFFIX)


def parse_record(data: bytes) -> SampleRecord:
    """Parse a record.

    Args:
        data: JSON.

    Returns:
        The record.

    Raises:
        ValueError: It is not a record of a format that is known; the message quotes no content.
    """
    try:
        return SampleRecord.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'record'}: {first['type']}") from None


def append_audit(folder: Path, what: str, **facts: str | int | None) -> None:
    """Add a line to the audit log.

    Args:
        folder: The sample folder.
        what: What is done, such as `read`.
        **facts: Digest, id of the answer and the like, never content; None is left out.
    """
    named = {name: value for name, value in facts.items() if value is not None}
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "what": what, **named}
    descriptor = os.open(folder / AUDIT_FILE, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        size_bytes = os.fstat(descriptor).st_size
        # A full disk or a crash may have cut the last line.
        is_cut = size_bytes > 0 and os.pread(descriptor, 1, size_bytes - 1) != b"\n"
        left = b"\n" * is_cut + json.dumps(line).encode() + b"\n"
        while left:
            # One write where there is room, so that lines of two processes do not mix.
            left = left[os.write(descriptor, left) :]
    finally:
        os.close(descriptor)


def record_files(folder: Path) -> list[Path]:
    """The records of a folder, in order of their names."""
    return sorted((folder / PAGES_FOLDER).glob(f"*{RECORD_SUFFIX}"))
