"""The sample folder: what is written, found, corrected and erased, and what a crash or a full disk leaves."""

from __future__ import annotations

import errno
import json
import math
import shutil
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.errors import ConfigurationError, SampleNotFoundError
from service.intake.page_copy import PageCopy
from service.samples import store as store_module
from service.samples.store import BLOCK_BYTES, MAX_ANSWERS, QuotaError, SampleStore
from shared.contract.durable import remove_entry
from shared.contract.prompts import Task
from shared.contract.samples import AnswerPage, SampleReading, SampleRecord, parse_record

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


def opened(folder: Path, *, quota_bytes: int = 10**9, days: float = 30, clock: Clock | None = None) -> SampleStore:
    store = SampleStore(folder, quota_bytes=quota_bytes, time_to_live=timedelta(days=days), clock=clock or Clock())
    store.open()
    return store


def copy(key: str, data: bytes = b"\x89PNG picture") -> PageCopy:
    return PageCopy(1, 20, 10, (key * 64)[:64], data)


def reading(text: str = "what was read") -> SampleReading:
    return SampleReading(
        model_id="nano", mode="base", status="ok", text=text, confidence=0.9, finish_reason="stop",
        timings_ms={"generate": 1.5}, read_at=NOW,
    )  # fmt: skip


def keep(
    store: SampleStore, key: str, answer: str | None = None, *, page: int = 1, num_pages: int = 1, **options: object
) -> None:
    task = options.pop("task", Task.FREE)
    data = options.pop("data", b"\x89PNG picture")
    where = AnswerPage(id=answer or f"ocr-{key}", page=page, num_pages=num_pages, task=task)
    store.keep(where, copy(key, data), reading(), is_thumbnail=bool(options.pop("is_thumbnail", False)))


def record(folder: Path, key: str) -> SampleRecord:
    return parse_record((folder / "pages" / f"{(key * 64)[:64]}.json").read_bytes())


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "pages").iterdir()}


def audit(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


def test_sample_is_stored_with_its_text_for_the_owner_alone(tmp_path: Path) -> None:
    store = opened(tmp_path / "samples")
    keep(store, "a")
    kept = record(tmp_path / "samples", "a")
    assert kept.readings[Task.FREE].text == "what was read"
    assert kept.readings[Task.FREE].timings_ms == {"generate": 1.5}
    assert kept.corrections == {}
    files = [path for path in (tmp_path / "samples").rglob("*") if path.is_file()]
    assert len(files) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "samples" / "pages").stat().st_mode) == 0o700
    stored = (tmp_path / "samples" / "pages").iterdir()
    assert store.num_bytes == sum(math.ceil(path.stat().st_size / BLOCK_BYTES) * BLOCK_BYTES for path in stored)


def test_the_same_page_is_one_sample_that_every_answer_finds(tmp_path: Path) -> None:
    store = opened(tmp_path)
    keep(store, "a", "first")
    keep(store, "a", "second", task=Task.MARKDOWN)
    assert len(store) == 1
    store.correct("first", None, "free text")
    store.correct("second", None, "# Markdown")
    kept = record(tmp_path, "a")
    assert {task: each.text for task, each in kept.corrections.items()} == {
        Task.FREE: "free text",
        Task.MARKDOWN: "# Markdown",
    }
    keep(store, "a", "third")
    assert record(tmp_path, "a").corrections == kept.corrections


def test_oldest_answers_of_a_page_are_forgotten(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for number in range(MAX_ANSWERS + 1):
        keep(store, "a", f"ocr-{number}")
    with pytest.raises(SampleNotFoundError):
        store.correct("ocr-0", None, "x")
    assert store.correct("ocr-1", None, "x") == 1


def test_page_of_a_longer_answer_has_to_be_named(tmp_path: Path) -> None:
    store = opened(tmp_path)
    keep(store, "b", "ocr-1", page=2, num_pages=3)
    with pytest.raises(ValueError, match="3"):
        store.correct("ocr-1", None, "x")
    with pytest.raises(SampleNotFoundError):
        store.correct("ocr-1", 1, "x")
    assert store.correct("ocr-1", 2, "x") == 2


def test_another_start_knows_what_was_kept(tmp_path: Path) -> None:
    store = opened(tmp_path)
    keep(store, "a")
    size = store.num_bytes
    store.close()
    again = opened(tmp_path)
    assert (len(again), again.num_bytes) == (1, size)
    assert again.correct("ocr-a", None, "right") == 1
    assert record(tmp_path, "a").corrections[Task.FREE].model_id == "nano"


def test_folder_belongs_to_one_process(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with pytest.raises(ConfigurationError, match="in use by another process"):
        opened(tmp_path)
    store.close()
    opened(tmp_path).close()


def test_folder_that_is_a_file_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("")
    with pytest.raises(ConfigurationError, match="DEEPSYNTH_SAMPLE_DIR"):
        opened(tmp_path / "samples")


def test_what_a_crash_leaves_is_deleted(tmp_path: Path) -> None:
    opened(tmp_path).close()
    for name in (f"{'c' * 64}.png", f".new-{'1' * 32}", f"{'d' * 64}.thumbnail.jpg"):
        (tmp_path / "pages" / name).write_bytes(b"half")
    store = opened(tmp_path)
    assert (len(store), names(tmp_path)) == (0, set())


def test_damaged_record_costs_itself_alone_and_is_not_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = opened(tmp_path)
    keep(store, "a")
    keep(store, "b")
    store.close()
    damaged = tmp_path / "pages" / f"{'b' * 64}.json"
    damaged.write_text('{"text": "secret')
    again = opened(tmp_path)
    assert len(again) == 1
    assert damaged.exists()
    assert damaged.name in caplog.text
    assert "secret" not in caplog.text


def test_erasing_an_answer_erases_its_pages_and_leaves_others(tmp_path: Path) -> None:
    store = opened(tmp_path)
    keep(store, "a", "ocr-1", page=1, num_pages=2)
    keep(store, "b", "ocr-1", page=2, num_pages=2)
    keep(store, "c", "ocr-2")
    assert store.erase("ocr-1") == [1, 2]
    assert names(tmp_path) == {f"{'c' * 64}.png", f"{'c' * 64}.json"}
    with pytest.raises(SampleNotFoundError):
        store.erase("ocr-1")


def test_full_quota_erases_the_oldest_without_a_correction(tmp_path: Path) -> None:
    first = opened(tmp_path)
    for key in "abc":
        keep(first, key)
    size = first.num_bytes // 3
    first.correct("ocr-a", None, "right")
    room = first.num_bytes + size // 2
    first.close()
    store = opened(tmp_path, quota_bytes=room)
    keep(store, "d")
    assert {name[0] for name in names(tmp_path)} == {"a", "c", "d"}
    assert store.num_bytes <= room
    with pytest.raises(QuotaError):
        keep(store, "e", data=b"\x89PNG" + bytes(room))


def test_time_to_live_counts_from_the_last_reading(tmp_path: Path) -> None:
    clock = Clock()
    store = opened(tmp_path, days=10, clock=clock)
    keep(store, "a")
    keep(store, "b")
    store.correct("ocr-b", None, "right")
    clock.now += timedelta(days=6)
    keep(store, "a", "again")
    store.expire()
    assert store.num_erased == 0
    clock.now += timedelta(days=6)
    store.expire()
    assert store.num_erased == 1
    assert {name[0] for name in names(tmp_path)} == {"a"}


def test_thumbnail_replaces_the_page_when_no_more_may_be_kept(tmp_path: Path) -> None:
    store = opened(tmp_path)
    keep(store, "a")
    keep(store, "a", is_thumbnail=True, data=b"\xff\xd8\xff small")
    assert names(tmp_path) == {f"{'a' * 64}.thumbnail.jpg", f"{'a' * 64}.json"}
    assert record(tmp_path, "a").is_thumbnail


def test_audit_log_has_a_line_for_each_change_and_reading_and_no_content(tmp_path: Path) -> None:
    store = opened(tmp_path)
    keep(store, "a")
    store.correct("ocr-a", None, "the corrected words")
    assert [name for name, _ in store.read("a" * 64)] == [f"{'a' * 64}.png", f"{'a' * 64}.json"]
    store.erase("ocr-a")
    lines = audit(tmp_path)
    assert [line["what"] for line in lines] == ["opened", "stored", "corrected", "read", "erased"]
    assert {line["sha256"] for line in lines[1:]} == {"a" * 64}
    assert lines[-1]["why"] == "by id"
    written = (tmp_path / "audit.jsonl").read_text()
    assert "words" not in written
    assert "what was read" not in written


@pytest.mark.parametrize("change", ["keep", "correct", "read"])
def test_nothing_is_written_or_read_that_cannot_be_audited(tmp_path: Path, change: str) -> None:
    store = opened(tmp_path)
    keep(store, "a")
    before = {path.name: path.read_bytes() for path in (tmp_path / "pages").iterdir()}
    (tmp_path / "audit.jsonl").unlink()
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(IsADirectoryError):
        {
            "keep": lambda: keep(store, "b"),
            "correct": lambda: store.correct("ocr-a", None, "x"),
            "read": lambda: store.read("a" * 64),
        }[change]()
    assert {path.name: path.read_bytes() for path in (tmp_path / "pages").iterdir()} == before


def test_erasing_needs_no_audit_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = opened(tmp_path)
    keep(store, "a")
    (tmp_path / "audit.jsonl").unlink()
    (tmp_path / "audit.jsonl").mkdir()
    store.erase("ocr-a")
    assert names(tmp_path) == set()
    assert "audit log" in caplog.text


def test_full_disk_leaves_no_half_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module, "replace_file", full)
    with pytest.raises(OSError, match="No space"):
        keep(store, "a")
    assert (len(store), store.num_bytes, names(tmp_path)) == (0, 0, set())


def test_full_disk_does_not_stop_the_start_and_cuts_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    first = opened(tmp_path, clock=clock)
    keep(first, "a")
    first.close()
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b'{"time": "20')  # what a full disk leaves of a line
    with monkeypatch.context() as full:

        def no_room(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr(store_module, "append_audit", no_room)
        clock.now += timedelta(days=31)
        store = opened(tmp_path, clock=clock)
        assert "no sample can be kept" in caplog.text
        with pytest.raises(OSError, match="No space"):
            keep(store, "b")
        store.expire()
    assert names(tmp_path) == set()
    keep(store, "b")
    *_, cut, last = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert (cut, json.loads(last)["what"]) == ('{"time": "20', "stored")


def test_page_that_is_too_large_for_the_quota_erases_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path, quota_bytes=2**20)
    for key in "abc":
        keep(store, key)
    before = names(tmp_path)
    with pytest.raises(QuotaError):
        keep(store, "d", data=bytes(2**20))
    assert (names(tmp_path), store.num_erased) == (before, 0)


def test_corrections_stay_within_the_quota(tmp_path: Path) -> None:
    store = opened(tmp_path, quota_bytes=18 * BLOCK_BYTES)
    for key in "abc":
        keep(store, key)
    long = "x" * (10 * BLOCK_BYTES)
    store.correct("ocr-b", None, long)
    store.correct("ocr-c", None, "right")
    assert {name[0] for name in names(tmp_path)} == {"a", "b", "c"}
    with pytest.raises(QuotaError):
        store.correct("ocr-c", None, long)
    assert record(tmp_path, "c").corrections[Task.FREE].text == "right"
    assert {name[0] for name in names(tmp_path)} == {"a", "b", "c"}
    store.correct("ocr-c", None, "x" * (4 * BLOCK_BYTES))
    assert {name[0] for name in names(tmp_path)} == {"b", "c"}
    assert store.num_bytes <= 18 * BLOCK_BYTES


def test_number_of_small_pages_has_a_limit(tmp_path: Path) -> None:
    store = opened(tmp_path, quota_bytes=3 * 2 * BLOCK_BYTES)
    for key in "abcdef":
        keep(store, key, data=b"1")
    assert {name[0] for name in names(tmp_path)} == {"d", "e", "f"}


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pages" / "chapter").mkdir(parents=True)
    for name in ("scan.png", "notes.txt", "chapter/1.png", ".new-draft"):
        (tmp_path / "pages" / name).write_bytes(b"mine")
    opened(tmp_path).close()
    assert names(tmp_path) == {"scan.png", "notes.txt", "chapter", ".new-draft"}
    assert (tmp_path / "pages" / "chapter" / "1.png").read_bytes() == b"mine"


def test_page_does_not_outlast_the_thumbnail_that_replaced_it(tmp_path: Path) -> None:
    store = opened(tmp_path)
    keep(store, "a", is_thumbnail=True)
    store.close()
    # A crash before the last step of `keep`.
    (tmp_path / "pages" / f"{'a' * 64}.png").write_bytes(b"\x89PNG picture")
    opened(tmp_path).close()
    assert names(tmp_path) == {f"{'a' * 64}.thumbnail.jpg", f"{'a' * 64}.json"}


def test_sample_that_cannot_be_erased_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    store = opened(tmp_path, clock=clock)
    for key in "abc":
        keep(store, key)
    page = tmp_path / "pages" / f"{'a' * 64}.png"
    page.unlink()
    page.mkdir()
    clock.now += timedelta(days=31)
    with monkeypatch.context() as stuck:
        stuck.setattr(
            store_module, "remove_entry", lambda name, inside: name != page.name and remove_entry(name, inside)
        )
        with pytest.raises(OSError, match=page.name) as raised:
            store.expire()
    assert raised.value.strerror
    assert names(tmp_path) == {page.name}
    store.expire()
    assert (names(tmp_path), store.num_erased) == (set(), 3)


def test_sample_whose_page_is_gone_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = opened(tmp_path)
    keep(store, "a")
    (tmp_path / "pages" / f"{'a' * 64}.png").unlink()
    assert store.read("a" * 64) == []
    assert "a" * 64 in caplog.text
    assert "read" not in {line["what"] for line in audit(tmp_path)}


def test_record_under_the_name_of_another_page_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = opened(tmp_path)
    keep(store, "a")
    store.close()
    original = tmp_path / "pages" / f"{'a' * 64}.json"
    (tmp_path / "pages" / f"{'b' * 64}.json").write_bytes(original.read_bytes())
    assert len(opened(tmp_path)) == 1
    assert f"{'b' * 64}.json cannot be read" in caplog.text


def test_lost_folder_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    store = opened(tmp_path / "samples")
    keep(store, "a")
    shutil.rmtree(tmp_path / "samples")
    for use in (
        lambda: keep(store, "b"),
        lambda: store.correct("ocr-a", None, "x"),
        lambda: store.read("a" * 64),
        lambda: store.erase("ocr-a"),
    ):
        with pytest.raises(FileNotFoundError):
            use()
    assert not (tmp_path / "samples").exists()
