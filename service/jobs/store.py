"""Where jobs are kept: a SQLite database, and the documents as files next to it.

    <folder>/lock               locked by the one process that uses the folder
    <folder>/jobs.sqlite3       jobs, and the results of their pages
    <folder>/documents/<id>     uploaded files, until their jobs are erased

What is stored survives the end of the process and of the machine. What is erased is overwritten in the database. Every
method blocks, and all are called in one thread at a time. Knows nothing of reading.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from service.errors import ConfigurationError, DeepSynthError, JobQueueFullError, JobStorageFullError
from service.jobs.job import ENDED, Job, JobState, NewJob, Webhook, WebhookStatus
from service.jobs.pages import (
    decode_arrangement,
    decode_error,
    decode_page,
    decode_request,
    encode_arrangement,
    encode_error,
    encode_page,
    encode_request,
)
from service.ocr.outcome import PageStatus
from service.ocr.reader import PageResult
from shared.contract.durable import closing_descriptor, folder_descriptor, replace_file

LOCK_FILE, DATABASE_FILE, DOCUMENTS = "lock", "jobs.sqlite3", "documents"
FORMAT = 2
"""Of the tables; stored in the database's `user_version`. Format 1, without arrangements, is brought up to date."""
RETRY_AFTER_S = 30
_TEMPORARY_PREFIX = ".new-"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_TABLES = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT,
    state TEXT NOT NULL,
    name TEXT NOT NULL,
    request TEXT NOT NULL,
    format_name TEXT,
    receive_s REAL NOT NULL,
    created_s REAL NOT NULL,
    started_s REAL,
    ended_s REAL,
    error TEXT,
    num_fruitless INTEGER NOT NULL DEFAULT 0,
    kept_bytes INTEGER NOT NULL,
    webhook_url TEXT,
    webhook_status TEXT,
    webhook_attempts INTEGER NOT NULL DEFAULT 0,
    webhook_due_s REAL,
    arrangement TEXT NOT NULL DEFAULT '{}'
) STRICT;
CREATE TABLE pages (
    job INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    page INTEGER NOT NULL,
    status TEXT,
    result TEXT,
    PRIMARY KEY (job, page)
) STRICT, WITHOUT ROWID;
CREATE INDEX jobs_by_owner ON jobs (owner, number);
CREATE INDEX jobs_by_state ON jobs (state, number);
"""
_FROM_1 = "ALTER TABLE jobs ADD COLUMN arrangement TEXT NOT NULL DEFAULT '{}';"


@dataclass(frozen=True, slots=True)
class Counts:
    """What is kept."""

    by_state: dict[JobState, int]
    kept_bytes: int


class JobStore:
    """The folder of jobs.

    Args:
        folder: Created if missing.
        max_unfinished: Jobs that wait or run.
        max_bytes: Documents and results together.
    """

    def __init__(self, folder: Path, *, max_unfinished: int, max_bytes: int) -> None:
        self._folder = folder
        self._documents = folder / DOCUMENTS
        self._max_unfinished = max_unfinished
        self._max_bytes = max_bytes
        self._lock: int | None = None
        self._opened: sqlite3.Connection | None = None

    def open(self) -> None:
        """Lock the folder, and open or make the database.

        Raises:
            ConfigurationError: The folder cannot be written, is locked by another process, or was written by another
                version of the service; the message says which.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._documents.mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(self._folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # SQLite would make it readable for others; its journal gets the same permissions.
            os.close(os.open(self._folder / DATABASE_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._opened = self._connect()
            self._remove_strays()
        except BlockingIOError:
            raise ConfigurationError(
                f"DEEPSYNTH_JOB_DIR: {self._folder} is in use by another process; give each service its own"
            ) from None
        except FileExistsError:
            raise ConfigurationError(f"DEEPSYNTH_JOB_DIR: {self._folder} is not a folder") from None
        except OSError as error:
            raise ConfigurationError(f"DEEPSYNTH_JOB_DIR: {self._folder} cannot be used: {error.strerror}") from error
        except sqlite3.Error as error:
            raise ConfigurationError(
                f"DEEPSYNTH_JOB_DIR: {self._folder / DATABASE_FILE} cannot be used: {error}"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        # Transactions are begun by hand. The thread that opened it is the only one that uses it.
        database = sqlite3.connect(self._folder / DATABASE_FILE, isolation_level=None)
        database.row_factory = sqlite3.Row
        for pragma in ("journal_mode = TRUNCATE", "synchronous = FULL", "secure_delete = ON", "foreign_keys = ON"):
            database.execute(f"PRAGMA {pragma}")
        found = database.execute("PRAGMA user_version").fetchone()[0]
        if found == 0:
            database.executescript(f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version = {FORMAT};COMMIT;")
        elif found == 1:
            database.executescript(f"BEGIN IMMEDIATE;{_FROM_1}PRAGMA user_version = {FORMAT};COMMIT;")
        elif found != FORMAT:
            raise ConfigurationError(
                f"DEEPSYNTH_JOB_DIR: {self._folder} was written by another version of the service (format {found}, "
                f"not {FORMAT}); use that version to finish its jobs, or another folder"
            )
        return database

    def _remove_strays(self) -> None:
        """Remove files of jobs that were never stored, or already erased, when the process ended."""
        known = {row["id"] for row in self._database.execute("SELECT id FROM jobs")}
        for path in self._documents.iterdir():
            if path.name not in known:
                path.unlink()

    def close(self) -> None:
        """Close the database and unlock the folder."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def _database(self) -> sqlite3.Connection:
        assert self._opened is not None, "jobs were used before their folder was opened"
        return self._opened

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
            database.execute("COMMIT")
        except BaseException:
            # A statement that fails for lack of space has rolled back already.
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise

    def check_room(self, owner: str | None, num_bytes: int = 0) -> None:
        """Check that another job may be stored.

        Args:
            owner: Whose it is. One without any unfinished job finds one of as many further places as an eighth of them.
            num_bytes: Of its document; 0 if that is not known yet.

        Raises:
            JobQueueFullError: Too many are unfinished.
            JobStorageFullError: Too many bytes are kept.
        """
        counts = self.counts()
        num_unfinished = sum(num for state, num in counts.by_state.items() if state not in ENDED)
        if num_unfinished >= self._max_unfinished + (
            0 if self._is_waiting(owner) else max(self._max_unfinished // 8, 1)
        ):
            raise JobQueueFullError(retry_after_s=RETRY_AFTER_S, public={"limit": self._max_unfinished})
        if counts.kept_bytes + max(num_bytes, 1) > self._max_bytes:
            raise JobStorageFullError(retry_after_s=RETRY_AFTER_S, public={"limit_bytes": self._max_bytes})

    def _is_waiting(self, owner: str | None) -> bool:
        """Whether an owner has unfinished jobs; always of clients that are not told apart."""
        query = "SELECT 1 FROM jobs WHERE owner = ? AND state IN (?, ?) LIMIT 1"
        found = self._database.execute(query, (owner, JobState.WAITING, JobState.RUNNING))
        return owner is None or found.fetchone() is not None

    def add(self, job: NewJob, data: bytes) -> None:
        """Store a job that waits.

        Args:
            job: What to read.
            data: The document.

        Raises:
            JobStorageFullError: The disk is full. What `check_room` raises passes through.
        """
        self.check_room(job.owner, len(data))
        try:
            with closing_descriptor(folder_descriptor(self._documents)) as folder:
                replace_file(job.id, data, folder, _TEMPORARY_PREFIX, mode=0o600)
            with self._transaction() as database:
                cursor = database.execute(
                    "INSERT INTO jobs (id, owner, state, name, request, format_name, receive_s, created_s, kept_bytes, "
                    "webhook_url, webhook_status, arrangement) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        job.id,
                        job.owner,
                        JobState.WAITING,
                        job.name,
                        encode_request(job.request),
                        job.format_name,
                        job.receive_s,
                        job.created_s,
                        len(data),
                        job.webhook_url,
                        None if job.webhook_url is None else WebhookStatus.WAITING,
                        encode_arrangement(job.wanted),
                    ),
                )
                number = cursor.lastrowid
                rows = ((number, page) for page in job.pages)
                database.executemany("INSERT INTO pages (job, page) VALUES (?, ?)", rows)
        except (OSError, sqlite3.OperationalError) as error:
            with contextlib.suppress(OSError):
                (self._documents / job.id).unlink()
            if _is_out_of_space(error):
                raise JobStorageFullError("the disk is full", retry_after_s=RETRY_AFTER_S) from error
            raise

    def find(self, job_id: str) -> Job | None:
        """A job; None if there is none of this id."""
        row = self._database.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return None if row is None else self._job(row)

    def listed(self, owner: str, limit: int, before: str | None) -> list[Job]:
        """Jobs of one owner, newest first.

        Args:
            owner: From `owner_of`.
            limit: Most jobs to return.
            before: Only those that were submitted before this one.

        Returns:
            The jobs.
        """
        rows = self._database.execute(
            "SELECT * FROM jobs WHERE owner = ? AND (? IS NULL OR number < (SELECT number FROM jobs WHERE id = ?)) "
            "ORDER BY number DESC LIMIT ?",
            (owner, before, before, limit),
        )
        return [self._job(row) for row in rows.fetchall()]

    def _job(self, row: sqlite3.Row) -> Job:
        pages = self._database.execute("SELECT page, status FROM pages WHERE job = ? ORDER BY page", (row["number"],))
        webhook = None
        if row["webhook_url"] is not None:
            webhook = Webhook(row["webhook_url"], WebhookStatus(row["webhook_status"]), row["webhook_attempts"])
        return Job(
            id=row["id"],
            owner=row["owner"],
            state=JobState(row["state"]),
            name=row["name"],
            request=decode_request(row["request"]),
            format_name=row["format_name"],
            receive_s=row["receive_s"],
            created_s=row["created_s"],
            started_s=row["started_s"],
            ended_s=row["ended_s"],
            error=decode_error(row["error"]),
            num_fruitless=row["num_fruitless"],
            webhook=webhook,
            statuses={page: None if status is None else PageStatus(status) for page, status in pages},
            wanted=decode_arrangement(row["arrangement"]),
        )

    def document(self, job_id: str) -> bytes:
        """The uploaded file."""
        return (self._documents / job_id).read_bytes()

    def results(self, job_id: str) -> list[PageResult]:
        """Finished pages in order."""
        rows = self._database.execute(
            "SELECT result FROM pages WHERE job = (SELECT number FROM jobs WHERE id = ?) AND result IS NOT NULL "
            "ORDER BY page",
            (job_id,),
        )
        return [decode_page(text) for (text,) in rows.fetchall()]

    def next_to_read(self, busy: Collection[str]) -> Job | None:
        """The job to read next: one that was interrupted, else the oldest of the owner whose turn is longest ago.

        Args:
            busy: Jobs that are being read.

        Returns:
            The job; None if there is none.
        """
        rows = self._database.execute(
            "SELECT jobs.* FROM jobs JOIN (SELECT owner, MAX(started_s) AS turn_s FROM jobs GROUP BY owner) AS owners "
            "ON owners.owner IS jobs.owner WHERE state IN (?, ?) ORDER BY state = ?, turn_s, number",
            (JobState.RUNNING, JobState.WAITING, JobState.WAITING),
        )
        return next((self._job(row) for row in rows if row["id"] not in busy), None)

    def begin(self, job: Job, now_s: float) -> None:
        """Reading begins, again or for the first time; the job counts as fruitless until a page is finished."""
        with self._transaction() as database:
            database.execute(
                "UPDATE jobs SET state = ?, request = ?, started_s = COALESCE(started_s, ?), "
                "num_fruitless = num_fruitless + 1 WHERE id = ?",
                (JobState.RUNNING, encode_request(job.request), now_s, job.id),
            )

    def pause(self, job_id: str) -> None:
        """Reading ended before the last page, and the process did not, so it is not the pages that end it."""
        with self._transaction() as database:
            database.execute("UPDATE jobs SET num_fruitless = 0 WHERE id = ?", (job_id,))

    def save_page(self, job_id: str, page: PageResult) -> None:
        """Store a finished page; one of a job that was erased is dropped."""
        text = encode_page(page)
        with self._transaction() as database:
            database.execute(
                "UPDATE pages SET status = ?, result = ? "
                "WHERE job = (SELECT number FROM jobs WHERE id = ?) AND page = ?",
                (page.status, text, job_id, page.page),
            )
            database.execute(
                "UPDATE jobs SET num_fruitless = 0, kept_bytes = kept_bytes + ? WHERE id = ?",
                (len(text.encode()), job_id),
            )

    def end(self, job_id: str, state: JobState, error: DeepSynthError | None, now_s: float) -> None:
        """Every page is finished; the webhook, if there is one, is due."""
        with self._transaction() as database:
            database.execute(
                "UPDATE jobs SET state = ?, error = ?, ended_s = ?, webhook_due_s = ? WHERE id = ?",
                (state, encode_error(error), now_s, now_s, job_id),
            )

    def erase(self, job_id: str) -> None:
        """Erase a job; a document that is left if the process ends in between is removed at the next start."""
        with self._transaction() as database:
            database.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
        with contextlib.suppress(FileNotFoundError):
            (self._documents / job_id).unlink()

    def ended_before(self, before_s: float) -> list[str]:
        """Ids of jobs that ended before a time."""
        rows = self._database.execute("SELECT id FROM jobs WHERE ended_s < ?", (before_s,))
        return [row["id"] for row in rows]

    def counts(self) -> Counts:
        """Jobs by state, and bytes."""
        rows = self._database.execute("SELECT state, COUNT(*), SUM(kept_bytes) FROM jobs GROUP BY state").fetchall()
        by_state = dict.fromkeys(JobState, 0) | {JobState(state): num for state, num, _ in rows}
        return Counts(by_state, sum(kept_bytes for _, _, kept_bytes in rows))

    def webhooks_due(self, now_s: float, limit: int) -> list[Job]:
        """Jobs whose webhook is to be sent now, those first that have been due for longest."""
        rows = self._database.execute(
            "SELECT * FROM jobs WHERE webhook_status = ? AND webhook_due_s <= ? ORDER BY webhook_due_s LIMIT ?",
            (WebhookStatus.WAITING, now_s, limit),
        )
        return [self._job(row) for row in rows.fetchall()]

    def next_webhook_s(self) -> float | None:
        """When a webhook is due next; None if none is waiting."""
        return self._database.execute(
            "SELECT MIN(webhook_due_s) FROM jobs WHERE webhook_status = ?", (WebhookStatus.WAITING,)
        ).fetchone()[0]

    def note_webhook(self, job_id: str, status: WebhookStatus, due_s: float | None) -> None:
        """Record an attempt at sending a webhook, and when to try again."""
        with self._transaction() as database:
            database.execute(
                "UPDATE jobs SET webhook_status = ?, webhook_due_s = ?, webhook_attempts = webhook_attempts + 1 "
                "WHERE id = ?",
                (status, due_s, job_id),
            )


def _is_out_of_space(error: OSError | sqlite3.OperationalError) -> bool:
    if isinstance(error, OSError):
        return error.errno in _NO_SPACE
    return error.sqlite_errorcode == sqlite3.SQLITE_FULL
