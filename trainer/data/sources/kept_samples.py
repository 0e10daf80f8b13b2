"""Pages that a service has kept, with corrections or with what it read: a sample folder, or its unpacked export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from shared.contract.prompts import Task
from shared.contract.samples import (
    AUDIT_FILE,
    PAGES_FOLDER,
    TEXT_TASKS,
    SampleRecord,
    append_audit,
    parse_record,
    record_files,
)
from trainer.data.errors import DataCode, DataError, RowCode, RowError
from trainer.data.sources.listed import ListedSource
from trainer.data.sources.protocol import IMAGE_COLUMN, TEXT_COLUMN, Row


class SampleUse(StrEnum):
    """Which samples are rows."""

    CORRECTED = "corrected"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row: the page, and the text to produce; None with the reason where the record cannot be read."""

    record: Path
    image: Path | None
    text: str
    fault: str = ""


class KeptSamples(ListedSource[_Entry]):
    """Samples in order of their digests.

    Attributes:
        columns: image and text.
        use: which samples are rows.
        task: what the model will be asked for.
        passed_over: samples that are no rows, by reason.
    """

    def __init__(self, folder: Path, use: SampleUse, task: Task) -> None:
        """Read the records.

        Args:
            folder: has `pages`.
            use: corrections alone, or also what was read on pages without one.
            task: what the model will be asked for.

        Raises:
            DataError: there is no such folder, or it has no such sample.
        """
        self.use = use
        self.task = task
        self.columns = (IMAGE_COLUMN, TEXT_COLUMN)
        self._others: Counter[str] = Counter()
        tasks = TEXT_TASKS if task in TEXT_TASKS else {task}
        if not (folder / PAGES_FOLDER).is_dir():
            raise DataError(
                DataCode.SOURCE_MISSING,
                f"{folder} is not a folder of samples",
                "give the service's DEEPSYNTH_SAMPLE_DIR, or its unpacked export",
            )
        found = [entry for path in record_files(folder) if (entry := self._entry(path, use, tasks)) is not None]
        super().__init__(folder, found)
        self.passed_over = self._others
        if not found:
            reasons = ", ".join(f"{number} {reason}" for reason, number in self.passed_over.items()) or "no sample"
            raise DataError(
                DataCode.SOURCE_EMPTY,
                f"{folder} has no sample to use ({reasons})",
                "correct pages through POST /feedback, or take --samples all",
            )

    def row(self, number: int, entry: _Entry) -> Row:
        """See `ListedSource`."""
        if entry.image is None:
            raise RowError(RowCode.ROW_UNREADABLE, entry.fault)
        path = str(entry.image.relative_to(self._folder))
        return Row(number, self.entry_name(entry), {IMAGE_COLUMN: path, TEXT_COLUMN: entry.text})

    def entry_name(self, entry: _Entry) -> str:
        """See `ListedSource`."""
        return entry.record.stem

    def files(self, entry: _Entry) -> Iterable[Path]:
        """See `ListedSource`."""
        return [entry.record, entry.image] if entry.image else [entry.record]

    def audit(self) -> None:
        """Write that these samples are read to the audit log, if the folder is a service's own.

        Raises:
            DataError: the log cannot be written.
        """
        if not (self._folder / AUDIT_FILE).exists():
            return
        try:
            for entry in self._entries:
                append_audit(self._folder, "read", sha256=entry.record.stem, who="trainer prepare")
        except OSError as error:
            raise DataError(
                DataCode.OUTPUT_UNWRITABLE,
                f"{self._folder / AUDIT_FILE} cannot be written: {error.strerror}",
                "every reading of samples is recorded there; or export them with GET /samples and give the copy",
            ) from error

    def _entry(self, path: Path, use: SampleUse, tasks: frozenset[Task] | set[Task]) -> _Entry | None:
        """A record as a row; None, and a count, where it is not one."""
        try:
            record = parse_record(path.read_bytes())
        except (OSError, ValueError) as error:
            fault = error.strerror or "" if isinstance(error, OSError) else f"the record is not valid: {error}"
            return _Entry(path, None, "", fault)
        text = _text(record, use, tasks)
        reason: str | None = None
        if text is None:
            reason = "of another task" if not tasks & record.readings.keys() else "without a correction"
        elif not text.strip():
            reason = "without text"
        elif record.is_thumbnail:
            reason = "kept as a thumbnail alone"
        if text is None or reason is not None:
            self._others[str(reason)] += 1
            return None
        return _Entry(path, path.with_name(record.image_name), text)


def _text(record: SampleRecord, use: SampleUse, tasks: frozenset[Task] | set[Task]) -> str | None:
    """The newest correction, or else, where all are wanted, the newest reading."""
    corrections = [each for task, each in record.corrections.items() if task in tasks]
    if corrections:
        return max(corrections, key=lambda each: each.corrected_at).text
    readings = [each for task, each in record.readings.items() if task in tasks]
    if use is SampleUse.ALL and readings:
        return max(readings, key=lambda each: each.read_at).text
    return None
