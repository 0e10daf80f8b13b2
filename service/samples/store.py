"""The sample folder: writes, finds, corrects and erases samples within a quota and a time to live.

Blocking, and used by one thread at a time. A sample exists once its record does, so a crash between its two files
leaves an image that the next start deletes; files that are not of samples are left alone. Each write and read is in the
audit log before it happens, each erasure after.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from service.errors import ConfigurationError, SampleNotFoundError
from service.intake.page_copy import PageCopy
from shared.contract.durable import (
    DISK_FULL,
    closing_descriptor,
    entry_exists,
    folder_descriptor,
    read_small,
    remove_entry,
    replace_file,
    sync_folder,
)
from shared.contract.samples import (
    FILE_MODE,
    IMAGE_SUFFIX,
    LOCK_FILE,
    MAX_RECORD_BYTES,
    PAGES_FOLDER,
    RECORD_SUFFIX,
    THUMBNAIL_SUFFIX,
    AnswerPage,
    Correction,
    SampleReading,
    SampleRecord,
    append_audit,
    parse_record,
    record_files,
)

MAX_ANSWERS = 100
"""Answers by which one page can be found; older ones are forgotten."""
FOLDER_MODE = 0o700
BLOCK_BYTES = 4096
"""What a file takes of a disk is a multiple of this on common file systems; thousands of small pages would fill a disk
long before their bytes reach the quota."""
_TEMPORARY_PREFIX = ".new-"
_TEMPORARY_FILE = re.compile(re.escape(_TEMPORARY_PREFIX) + "[0-9a-f]{32}")
_PAGE_FILE = re.compile(f"([0-9a-f]{{64}})({re.escape(IMAGE_SUFFIX)}|{re.escape(THUMBNAIL_SUFFIX)})")

_log = logging.getLogger(__name__)


class QuotaError(Exception):
    """There is no room for a sample, and every kept one has a correction."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is remembered of a sample."""

    num_bytes: int
    stored_at: datetime
    is_corrected: bool
    answers: tuple[AnswerPage, ...]


def _utc_now() -> datetime:
    return datetime.now(UTC)


class SampleStore:
    """The folder.

    Args:
        folder: Created if missing, with access for its owner alone.
        quota_bytes: Of pages and records together, in whole blocks.
        time_to_live: A sample is erased so long after it was last stored.
        clock: The time, with a zone.
    """

    def __init__(
        self, folder: Path, *, quota_bytes: int, time_to_live: timedelta, clock: Callable[[], datetime] = _utc_now
    ) -> None:
        self._folder = folder
        self._pages = folder / PAGES_FOLDER
        self._quota_bytes = quota_bytes
        self._time_to_live = time_to_live
        self._clock = clock
        self._lock: int | None = None
        self._kept: dict[str, _Kept] = {}
        """By digest, the one that was stored first in front."""
        self._answers: dict[str, dict[int, str]] = {}
        """Digests by answer and page."""
        self.num_bytes = 0
        """On the disk, in whole blocks."""
        self.num_erased = 0
        """Samples since the start, for whatever reason."""

    def __len__(self) -> int:
        return len(self._kept)

    def open(self) -> None:
        """Lock the folder, delete what a crash has left, and learn what is there.

        Raises:
            ConfigurationError: The folder cannot be used or is locked by another process; the message says which.
        """
        try:
            self._pages.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
            self._lock = os.open(self._folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._record_opening()
            self._load()
        except BlockingIOError:
            raise ConfigurationError(
                f"DEEPSYNTH_SAMPLE_DIR: {self._folder} is in use by another process; give each service its own"
            ) from None
        except OSError as error:
            raise ConfigurationError(
                f"DEEPSYNTH_SAMPLE_DIR: {self._folder} cannot be used: {error.strerror}"
            ) from error

    def close(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def keep(self, answer: AnswerPage, copy: PageCopy, reading: SampleReading, *, is_thumbnail: bool) -> None:
        """Store a page, or add a reading to one that is there. Its corrections stay.

        Older samples are erased where that makes room.

        Args:
            answer: By which it can be found.
            copy: The page.
            reading: What was read on it.
            is_thumbnail: Whether the copy is one.

        Raises:
            OSError: It could not be written, or the audit log could not.
            QuotaError: There is no room.
        """
        known = self._read_record(copy.sha256) if copy.sha256 in self._kept else None
        answers = [each for each in known.answers if each != answer] if known else []
        record = SampleRecord(
            sha256=copy.sha256,
            width_px=copy.width_px,
            height_px=copy.height_px,
            is_thumbnail=is_thumbnail,
            stored_at=self._clock(),
            answers=[*answers, answer][-MAX_ANSWERS:],
            readings={**(known.readings if known else {}), answer.task: reading},
            corrections=known.corrections if known else {},
        )
        self._make_room(copy.sha256, _on_disk(len(copy.data)) + _on_disk(len(_as_json(record))))
        append_audit(self._folder, "stored", sha256=copy.sha256, answer=answer.id, page=answer.page)
        with closing_descriptor(folder_descriptor(self._pages)) as inside:
            if not entry_exists(record.image_name, inside):
                replace_file(record.image_name, bytes(copy.data), inside, _TEMPORARY_PREFIX, mode=FILE_MODE)
            self._write(record, inside)
            if known is not None and known.image_name != record.image_name:
                remove_entry(known.image_name, inside)
        self._remember(record, self._size(record))

    def correct(self, answer_id: str, page: int | None, text: str) -> int:
        """Store what a person says is on a page, with what was read.

        Args:
            answer_id: Of the answer that was corrected.
            page: In the document; None for the only page of an answer.
            text: The whole page's.

        Returns:
            The page.

        Raises:
            SampleNotFoundError: It is not kept.
            ValueError: The answer has several pages, and none is named; the message says how many.
            OSError: It could not be written, or the audit log could not.
            QuotaError: There is no room.
        """
        pages = self._answers.get(answer_id)
        if not pages:
            raise SampleNotFoundError
        if page is None:
            answer = self._answer_page(answer_id, min(pages))
            if answer.num_pages > 1:
                raise ValueError(answer.num_pages)
            page = answer.page
        if page not in pages:
            raise SampleNotFoundError(public={"page": page})
        answer = self._answer_page(answer_id, page)
        record = self._read_record(pages[page])
        if record is None:
            raise SampleNotFoundError(public={"page": page})
        correction = Correction(text=text, model_id=record.readings[answer.task].model_id, corrected_at=self._clock())
        before = len(_as_json(record))
        record = record.model_copy(update={"corrections": {**record.corrections, answer.task: correction}})
        grown = _on_disk(len(_as_json(record))) - _on_disk(before)
        if grown > 0:
            self._make_room(record.sha256, self._kept[record.sha256].num_bytes + grown)
        append_audit(self._folder, "corrected", sha256=record.sha256, answer=answer_id, page=page)
        with closing_descriptor(folder_descriptor(self._pages)) as inside:
            self._write(record, inside)
        self._remember(record, self._size(record), is_new=False)
        return page

    def erase(self, answer_id: str) -> list[int]:
        """Erase every page of an answer, with all that was read on it.

        Args:
            answer_id: Of the answer.

        Returns:
            The pages that were erased.

        Raises:
            SampleNotFoundError: None is kept.
        """
        pages = self._answers.get(answer_id)
        if not pages:
            raise SampleNotFoundError
        erased = sorted(pages)
        for sha256 in set(pages.values()):
            self._erase(sha256, "by id", answer=answer_id)
        return erased

    def expire(self) -> None:
        """Erase what is older than the time to live; a sample that cannot be erased holds up no other.

        Raises:
            OSError: The last of those that could not be erased; they are tried again the next time.
        """
        oldest = self._clock() - self._time_to_live
        failed = None
        for sha256 in [sha256 for sha256, kept in self._kept.items() if kept.stored_at <= oldest]:
            try:
                self._erase(sha256, "expired")
            except OSError as error:
                failed = error
        if failed is not None:
            raise failed

    def listed(self, *, only_corrected: bool) -> list[str]:
        """Digests of the samples, the one that was stored first in front."""
        return [sha256 for sha256, kept in self._kept.items() if kept.is_corrected or not only_corrected]

    def read(self, sha256: str) -> list[tuple[str, bytes]]:
        """Read a sample to give it away.

        Args:
            sha256: Its digest.

        Returns:
            Name and content of its files; none if it has been erased, or its page is gone.

        Raises:
            OSError: It could not be read, or the audit log could not be written.
        """
        record = self._read_record(sha256) if sha256 in self._kept else None
        if record is None:
            return []
        try:
            image = (self._pages / record.image_name).read_bytes()
        except FileNotFoundError:
            _log.error("the page of sample %s is gone; the sample is passed over", sha256)
            return []
        append_audit(self._folder, "read", sha256=sha256)
        return [(record.image_name, image), (sha256 + RECORD_SUFFIX, _as_json(record))]

    def _answer_page(self, answer_id: str, page: int) -> AnswerPage:
        kept = self._kept[self._answers[answer_id][page]]
        return next(each for each in kept.answers if (each.id, each.page) == (answer_id, page))

    def _record_opening(self) -> None:
        try:
            append_audit(self._folder, "opened")
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            # Pages are read all the same, and old samples may expire; nothing is kept until there is room.
            _log.error("no sample can be kept: %s", error.strerror)

    def _load(self) -> None:
        found = []
        for path in record_files(self._folder):
            try:
                record = parse_record(path.read_bytes())
                if path.name != record.sha256 + RECORD_SUFFIX:
                    raise ValueError("it is of a page with another name")  # noqa: TRY301 -- as any record that is not one
            except (OSError, ValueError) as error:
                _log.error("the sample record %s cannot be read and is passed over: %s", path.name, error)
                continue
            found.append(record)
        for record in sorted(found, key=lambda each: each.stored_at):
            self._remember(record, self._size(record))
        self._clean({record.sha256: record.image_name for record in found})

    def _clean(self, image_names: dict[str, str]) -> None:
        """Delete what a crash has left: half files, pages without a record, pages that a thumbnail replaced."""
        with closing_descriptor(folder_descriptor(self._pages)) as inside:
            for name in os.listdir(inside):
                page = _PAGE_FILE.fullmatch(name)
                if page is not None:
                    has_record = entry_exists(page[1] + RECORD_SUFFIX, inside)
                    is_left = not has_record or image_names.get(page[1], name) != name
                else:
                    is_left = _TEMPORARY_FILE.fullmatch(name) is not None
                if is_left:
                    remove_entry(name, inside)

    def _read_record(self, sha256: str) -> SampleRecord | None:
        """None if it is gone or damaged. A lost folder is an `OSError`, so that it is not taken for an empty one."""
        with closing_descriptor(folder_descriptor(self._pages)) as inside, suppress(FileNotFoundError, ValueError):
            return parse_record(read_small(sha256 + RECORD_SUFFIX, inside, MAX_RECORD_BYTES) or b"")
        return None

    def _write(self, record: SampleRecord, inside: int) -> None:
        replace_file(record.sha256 + RECORD_SUFFIX, _as_json(record), inside, _TEMPORARY_PREFIX, mode=FILE_MODE)

    def _size(self, record: SampleRecord) -> int:
        names = (record.image_name, record.sha256 + RECORD_SUFFIX)
        return sum(_on_disk((self._pages / name).stat().st_size) for name in names if (self._pages / name).exists())

    def _remember(self, record: SampleRecord, num_bytes: int, *, is_new: bool = True) -> None:
        before = self._kept.get(record.sha256)
        if is_new:
            self._forget(record.sha256)
        elif before is not None:
            self.num_bytes -= before.num_bytes
        self._kept[record.sha256] = _Kept(num_bytes, record.stored_at, bool(record.corrections), tuple(record.answers))
        for answer in record.answers:
            self._answers.setdefault(answer.id, {})[answer.page] = record.sha256
        self.num_bytes += num_bytes

    def _forget(self, sha256: str) -> None:
        kept = self._kept.pop(sha256, None)
        if kept is None:
            return
        self.num_bytes -= kept.num_bytes
        for answer in kept.answers:
            pages = self._answers.get(answer.id, {})
            if pages.get(answer.page) == sha256:
                del pages[answer.page]
            if not pages:
                self._answers.pop(answer.id, None)

    def _make_room(self, sha256: str, num_bytes: int) -> None:
        """Erase the oldest samples without a correction until a sample has room; none if that would not do."""
        known = self._kept.get(sha256)
        excess = self.num_bytes + num_bytes - (known.num_bytes if known else 0) - self._quota_bytes
        chosen = []
        for each, kept in self._kept.items():
            if excess <= 0:
                break
            if not kept.is_corrected and each != sha256:
                chosen.append(each)
                excess -= kept.num_bytes
        if excess > 0:
            raise QuotaError
        for each in chosen:
            self._erase(each, "quota")

    def _erase(self, sha256: str, why: str, *, answer: str | None = None) -> None:
        with closing_descriptor(folder_descriptor(self._pages)) as inside:
            # The record first: without it there is no sample.
            for suffix in (RECORD_SUFFIX, IMAGE_SUFFIX, THUMBNAIL_SUFFIX):
                if not remove_entry(sha256 + suffix, inside):
                    # Once more for the system's reason.
                    os.unlink(sha256 + suffix, dir_fd=inside)
            # What is said to be erased must not come back after a power failure.
            sync_folder(inside)
        self._forget(sha256)
        self.num_erased += 1
        try:
            append_audit(self._folder, "erased", sha256=sha256, answer=answer, why=why)
        except OSError as error:
            _log.error("an erased sample could not be written to the audit log: %s", error.strerror)


def _on_disk(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _as_json(record: SampleRecord) -> bytes:
    return record.model_dump_json(indent=1).encode() + b"\n"
