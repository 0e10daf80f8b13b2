from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.engine.protocol import SamplingParams
from service.errors import JobQueueFullError, JobStorageFullError
from service.jobs.job import JobState, NewJob
from service.jobs.store import JobStore
from service.ocr.arrangement import AS_READ, Arrangement
from service.ocr.outcome import PageStatus
from service.ocr.reader import PageResult
from service.ocr.request import OcrRequest
from service.ocr.tables import TableFormat
from shared.contract.prompts import Task
from shared.deepseek_ocr.geometry import Mode

REQUEST = OcrRequest(Task.FREE, None, Mode.TINY, SamplingParams(10), "fake", None)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    store = JobStore(tmp_path, max_unfinished=3, max_bytes=1000)
    store.open()
    yield store
    store.close()


def new(job_id: str, *pages: int, owner: str | None = None, webhook_url: str | None = None) -> NewJob:
    return NewJob(job_id, owner, "a.pdf", REQUEST, pages or (1,), None, 0.1, 100.0, webhook_url)


def end(store: JobStore, job_id: str, at_s: float) -> None:
    store.save_page(job_id, PageResult(1, PageStatus.BLANK))
    store.end(job_id, JobState.DONE, None, at_s)


def test_jobs_are_read_in_order_and_interrupted_ones_first(store: JobStore) -> None:
    for name in ("a", "b", "c"):
        store.add(new(name), b"x")
    second = store.find("b")
    assert second is not None
    store.begin(second, 1.0)
    order = []
    while (job := store.next_to_read(order)) is not None:
        order.append(job.id)
    assert order == ["b", "a", "c"]


def test_owners_take_turns_however_many_jobs_they_have(tmp_path: Path) -> None:
    store = JobStore(tmp_path, max_unfinished=20, max_bytes=10_000)
    store.open()
    for name, owner in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("n1", None), ("n2", None), ("b1", "b"), ("b2", "b")):
        store.add(new(name, owner=owner), b"x")
    order: list[str] = []
    while (job := store.next_to_read(order)) is not None:
        order.append(job.id)
        store.begin(job, float(len(order)))
    assert order == ["a1", "n1", "b1", "a2", "n2", "b2", "a3"]
    store.close()


def test_a_client_that_fills_the_queue_does_not_shut_others_out(store: JobStore) -> None:
    for name in ("a1", "a2", "a3"):
        store.add(new(name, owner="a"), b"x")
    for full in ("a", None):
        with pytest.raises(JobQueueFullError):
            store.check_room(full)
    store.add(new("b1", owner="b"), b"x")
    for full in ("a", "b", "c"):
        with pytest.raises(JobQueueFullError):
            store.check_room(full)


def test_what_was_stored_is_there_after_a_kill(store: JobStore, tmp_path: Path) -> None:
    store.add(new("a", 2, 4, 7), b"document")
    store.save_page("a", PageResult(4, PageStatus.BLANK))
    # As a killed process leaves it: nothing closed, but the lock gone.
    assert store._lock is not None
    os.close(store._lock)
    store._lock = None
    (tmp_path / "documents" / ".new-1234").write_bytes(b"half of an upl")
    again = JobStore(tmp_path, max_unfinished=3, max_bytes=1000)
    again.open()
    job = again.find("a")
    assert job is not None
    assert job.unread == (2, 7)
    assert [page.page for page in again.results("a")] == [4]
    assert again.document("a") == b"document"
    assert [path.name for path in (tmp_path / "documents").iterdir()] == ["a"]
    again.close()


def test_quotas_count_what_is_unfinished_and_what_is_kept(store: JobStore) -> None:
    store.add(new("a"), b"x" * 500)
    with pytest.raises(JobStorageFullError):
        store.add(new("b"), b"x" * 501)
    store.add(new("b"), b"x")
    store.add(new("c"), b"x")
    with pytest.raises(JobQueueFullError):
        store.check_room(None)
    kept = store.counts().kept_bytes
    end(store, "a", 1.0)
    assert store.counts().kept_bytes > kept
    store.check_room(None, 1)
    store.erase("a")
    assert store.counts().kept_bytes == 2


def test_full_disk_is_an_error_of_its_own_and_leaves_nothing(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fail)
        with pytest.raises(JobStorageFullError):
            store.add(new("a"), b"x")
    store._database.execute(f"PRAGMA max_page_count = {store._database.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(JobStorageFullError):
        store.add(new("b", *range(1, 5000)), b"x")
    assert store.counts().kept_bytes == 0
    assert not list((tmp_path / "documents").iterdir())


def test_erased_text_is_not_left_in_the_database(store: JobStore, tmp_path: Path) -> None:
    store.add(new("a"), b"x")
    store.save_page("a", PageResult(1, PageStatus.OK, 1, 1, "a-word-to-find"))
    assert b"a-word-to-find" in (tmp_path / "jobs.sqlite3").read_bytes()
    store.erase("a")
    assert b"a-word-to-find" not in b"".join(path.read_bytes() for path in tmp_path.glob("jobs.sqlite3*"))
    # Pages that come late are dropped.
    store.save_page("a", PageResult(1, PageStatus.OK, 1, 1, "a-word-to-find"))
    assert store.find("a") is None
    assert sqlite3.connect(tmp_path / "jobs.sqlite3").execute("SELECT COUNT(*) FROM pages").fetchone() == (0,)


def test_lists_are_of_one_owner_and_go_on_after_a_job(store: JobStore) -> None:
    for name, owner in (("a", "x"), ("b", None), ("c", "x")):
        store.add(new(name, owner=owner), b"x")
    assert [job.id for job in store.listed("x", 10, None)] == ["c", "a"]
    assert [job.id for job in store.listed("x", 1, None)] == ["c"]
    assert [job.id for job in store.listed("x", 10, "c")] == ["a"]
    assert store.listed("y", 10, None) == []


def test_time_to_live_counts_from_the_end(store: JobStore) -> None:
    store.add(new("a"), b"x")
    store.add(new("b"), b"x")
    end(store, "b", 50.0)
    assert store.ended_before(50.0) == []
    assert store.ended_before(51.0) == ["b"]


def test_webhooks_are_due_from_the_end_on(store: JobStore) -> None:
    store.add(new("a", webhook_url="https://a.example/"), b"x")
    assert store.next_webhook_s() is None
    end(store, "a", 50.0)
    assert store.next_webhook_s() == 50.0
    assert store.webhooks_due(49.0, 10) == []
    assert [job.id for job in store.webhooks_due(50.0, 10)] == ["a"]


def test_how_the_text_is_wanted_is_there_after_a_restart(tmp_path: Path) -> None:
    wanted = Arrangement(TableFormat.HTML, frozenset({"header", "footer"}), figures=True, join_pages=True)
    store = JobStore(tmp_path, max_unfinished=3, max_bytes=1000)
    store.open()
    store.add(replace(new("a"), wanted=wanted), b"x")
    store.close()
    store.open()
    found = store.find("a")
    store.close()
    assert found is not None
    assert found.wanted == wanted


def test_folder_of_the_format_before_arrangements_is_read_on(store: JobStore, tmp_path: Path) -> None:
    store.add(new("a"), b"x")
    store.close()
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as database:
        database.executescript("ALTER TABLE jobs DROP COLUMN arrangement; PRAGMA user_version = 1;")
    database.close()
    store.open()
    found = store.find("a")
    assert found is not None
    assert found.wanted == AS_READ
    store.add(replace(new("b"), wanted=Arrangement(join_pages=True)), b"y")
    later = store.find("b")
    assert later is not None
    assert later.wanted.join_pages
