"""`deepsynth bulk`: folders and Parquet files in, Parquet files out, and nothing lost or twice after kills."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow
import pyarrow.parquet
import pytest

from service.__main__ import main
from service.cli.bulk_tables import BulkTables
from service.cli.output import EXIT_OUTPUT_FAILED
from service.engine.process.engines import ProcessEngine
from service.engine.protocol import EngineLife
from service.errors import EngineLostError
from service.ocr.reader import DocumentReader
from tests.support.bulk import write_tar
from tests.support.pdf import make_pdf
from tests.support.programs import ROOT
from tests.support.server import ServerProcess, environment, running_server
from tests.support.service import png

pytestmark = pytest.mark.integration

BULK = [sys.executable, "-m", "service", "bulk"]
BROKEN = b"\x89PNG\r\n\x1a\n broken"


def fake(**settings: str) -> dict[str, str]:
    return environment(**{"ENGINE": "fake", "IMAGE_WORKERS": "1", "FAKE_STEP_MS": "0", **settings})


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Call(Protocol):
    def __call__(self, *arguments: str | Path, command: str = "bulk") -> Done: ...


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command in this process, which saves its start."""
    for name, value in fake().items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str | Path, command: str = "bulk") -> Done:
        capsys.readouterr()
        try:
            status = main([command, *map(str, arguments)])
        except SystemExit as end:  # as argparse ends
            status = int(end.code or 0)
        return Done(status, *capsys.readouterr())

    return run


def rows(dest: Path, table: str) -> list[dict[str, Any]]:
    parts = sorted((dest / table).glob("part-*.parquet"))
    return [row for part in parts for row in pyarrow.parquet.read_table(part).to_pylist()]


def pages(dest: Path) -> list[tuple[str, int]]:
    return sorted((row["source"], row["page"]) for row in rows(dest, "pages"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "may").mkdir(parents=True)
    (folder / "first.png").write_bytes((ROOT / "docs/samples/sample-block.png").read_bytes())
    (folder / "may" / "second.pdf").write_bytes(make_pdf(["one", "two", "three"]))
    (folder / "broken.png").write_bytes(BROKEN)
    images = [{"bytes": png("cell"), "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2], "image": images}), folder / "may" / "set.parquet")
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(FAKE_STEP_MS="0") as running:
        yield running


def test_every_page_is_a_row_and_every_failure_says_why(call: Call, source: Path, tmp_path: Path) -> None:
    done = call(source, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("Documents: 5 read, 0 before. Pages: 5, failed: 2, ")
    assert pages(tmp_path / "out") == [
        ("first.png", 1), ("may/second.pdf", 1), ("may/second.pdf", 2), ("may/second.pdf", 3), ("may/set.parquet#0", 1),
    ]  # fmt: skip
    first = next(row for row in rows(tmp_path / "out", "pages") if row["source"] == "first.png")
    (read,) = json.loads(call("--json", source / "first.png", command="ocr").stdout)["pages"]
    assert first["text"]
    assert {name: value for name, value in first.items() if name != "source"} == {
        name: read[name] for name in first if name != "source"
    }
    failures = {row["source"]: (row["page"], row["code"]) for row in rows(tmp_path / "out", "failures")}
    assert failures == {"broken.png": (None, "undecodable_file"), "may/set.parquet#1": (None, "no_document")}
    assert f"is in {tmp_path / 'out' / 'failures'}." in done.stderr


@pytest.mark.parametrize("place", ["in", ".", "in/may", "in/may/out"])
def test_the_output_may_be_anywhere_and_is_no_document(call: Call, source: Path, tmp_path: Path, place: str) -> None:
    wanted = pages(tmp_path / "elsewhere") if call(source, tmp_path / "elsewhere") else []
    (source / "nested" / "deep").mkdir(parents=True)
    out = tmp_path / place
    done = call(source, out)
    assert done.stderr.startswith("Documents: 5 read, 0 before.")
    assert pages(out) == wanted
    assert "Not read" not in done.stderr
    for other in (out, source / "nested" / "deep"):
        again = call(source, other)
        assert "Not read" not in again.stderr
        assert pages(other) == wanted
        assert len(rows(other, "failures")) == 2


def test_what_is_no_file_is_named_and_not_waited_for(call: Call, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "a.png").write_bytes(png("a"))
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.png").symlink_to("nothing.png")
    assert call(folder, out).returncode == 1
    assert pages(out) == [("a.png", 1)]
    failures = {row["source"]: row["code"] for row in rows(out, "failures")}
    assert failures == {"gone.png": "cannot_open", "pipe.png": "not_a_file"}


def test_codes_tell_what_is_wrong_with_tables_and_archives(call: Call, source: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "shards", tmp_path / "out"
    (folder / ".cache").mkdir(parents=True)
    whole = (source / "may" / "set.parquet").read_bytes()
    for name in ("cut.parquet", ".cache/set.parquet", "._set.parquet"):
        (folder / name).write_bytes(whole[:-100])
    pyarrow.parquet.write_table(pyarrow.table({"other": ["x"]}), folder / "other.parquet")
    (folder / "bad.tgz").write_bytes(b"no archive")
    assert call(folder, out).returncode == 1
    failures = {row["source"]: row["code"] for row in rows(out, "failures")}
    assert failures == {"bad.tgz": "damaged_source", "cut.parquet": "damaged_source", "other.parquet": "no_column"}


def test_a_folder_without_documents_leaves_no_failure_behind(call: Call, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "letter.docx").write_bytes(b"")
    done = call(folder, out)
    assert (done.returncode, rows(out, "failures")) == (1, [])
    assert "has no images" in done.stderr
    assert ".docx 1" in done.stderr
    (folder / "a.png").write_bytes(png("a"))
    assert call(folder, out).returncode == 0


def test_a_second_run_reads_what_is_new_and_starts_no_engine_for_nothing(
    call: Call, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    call(source, out)
    before = pages(out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.cli.bulk.local_reader", None)
        again = call(source, out)
    assert again.stderr.startswith("Documents: 0 read, 5 before.")
    (source / "new.png").write_bytes(png("new"))
    assert call(source, out).stderr.startswith("Documents: 1 read, 5 before.")
    assert pages(out) == sorted([*before, ("new.png", 1)])


def test_two_kills_lose_nothing_and_read_nothing_twice(call: Call, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    names = [f"{number:03}.png" for number in range(40)]
    for name in names:
        (folder / name).write_bytes(png(name))
    command = [*BULK, str(folder), str(out), "--rows-per-file", "7", "--jobs", "4"]
    for least in (8, 24):
        process = subprocess.Popen(command, env=fake(FAKE_STEP_MS="5"), stderr=subprocess.DEVNULL)
        end_s = time.monotonic() + 240
        while _finished(out) < least:
            assert process.poll() is None
            assert time.monotonic() < end_s
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = _finished(out)
    # As if the first of the kills had also cut a line in two.
    with (out / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"source": "039.png", "pa')
    done = call(folder, out, "--rows-per-file", "7")
    assert done.returncode == 0, done.stderr
    assert f"{kept} before." in done.stderr
    assert pages(out) == [(name, 1) for name in names]
    assert (out / "journal.jsonl").read_bytes() == b""


def _finished(out: Path) -> int:
    """Documents that are in the journal or in a file."""
    journal = out / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
    known = {json.loads(line)["source"] for line in lines if line.endswith(b"\n")}
    return len(known | {source for source, _ in pages(out)}) if out.exists() else 0


def test_a_kill_between_file_and_journal_writes_nothing_twice(call: Call, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call(source / "first.png", out)
    row = rows(out, "pages")[0]
    (out / "journal.jsonl").write_text(json.dumps({"source": "first.png", "pages": [row], "failures": []}) + "\n")
    assert "1 before" in call(source / "first.png", out).stderr
    assert pages(out) == [("first.png", 1)]


@pytest.mark.parametrize("what", ["pages/part-000000.parquet", "journal.jsonl", "options.json"])
@pytest.mark.parametrize("content", [b"PAR1 damaged\n", b"\xff\xfe\n", b"[1]\n", b'{"source": "first.png"}\n'])
def test_a_damaged_file_of_the_output_is_named_with_what_helps(
    call: Call, source: Path, tmp_path: Path, what: str, content: bytes
) -> None:
    out = tmp_path / "out"
    call(source / "first.png", out)
    (out / what).write_bytes(content)
    done = call(source / "first.png", out)
    assert done.returncode in {2, EXIT_OUTPUT_FAILED}
    assert str(out) in done.stderr
    assert done.stderr.count("\n") == 1
    if what == "options.json":
        return
    assert "remove" in done.stderr
    (out / what).unlink()
    assert call(source / "first.png", out).returncode == 0
    assert pages(out) == [("first.png", 1)]


def test_a_folder_of_another_run_is_refused_in_one_line(call: Call, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call(source / "first.png", out)
    other = call(source, out, "--max-new-tokens", "3")
    assert other.returncode == 2
    assert "begun with other options" in other.stderr
    with BulkTables(tmp_path / "held", {}, 1):
        refused = call(source, tmp_path / "held")
    assert refused.returncode == EXIT_OUTPUT_FAILED
    assert "another process writes" in refused.stderr


def test_a_running_service_reads_the_same(call: Call, source: Path, tmp_path: Path, server: ServerProcess) -> None:
    call(source, tmp_path / "here")
    call(source, tmp_path / "there", "--url", server.url)
    texts = [
        {(row["source"], row["page"]): row["text"] for row in rows(tmp_path / name, "pages")}
        for name in ("here", "there")
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere", "out"], "does not exist"),
        ([".", "out", "--rows-per-file", "0"], "number from 1"),
        ([".", "out", "--task", "locate"], "locate"),
        ([".", "out", "--on", "ray", "--url", "http://127.0.0.1:1"], "exclude each other"),
        ([".", "out", "--workers", "2"], "--on ray"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_read(call: Call, arguments: list[str], complaint: str) -> None:
    done = call(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_archives_are_read_member_by_member_and_damage_costs_what_follows(call: Call, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    members = {f"a/{n}.png": png(f"page {n}") for n in range(3)}
    write_tar(folder / "one.tar", {**members, "a/0.txt": b"its text", "a/0.json": b"{}", "a/.hidden.png": b"no"})
    write_tar(folder / "two.tgz", {"PDF.PDF": make_pdf(["one", "two"])})
    whole = (folder / "one.tar").read_bytes()
    second = whole.index(b"a/1.png")
    (folder / "cut.tar").write_bytes(whole[: second + 700])
    twice = tmp_path / "twice.tar"
    write_tar(twice, {"page.png": png("first")})
    with tarfile.open(twice, "a") as archive:
        info = tarfile.TarInfo("page.png")
        info.size = len(data := png("second"))
        archive.addfile(info, io.BytesIO(data))
    done = call(folder, out)
    assert done.returncode == 1
    assert [source for source, _ in pages(out)] == [
        "cut.tar#a/0.png", "one.tar#a/0.png", "one.tar#a/1.png", "one.tar#a/2.png",
        "two.tgz#PDF.PDF", "two.tgz#PDF.PDF",
    ]  # fmt: skip
    (failure,) = rows(out, "failures")
    assert failure["source"] == "cut.tar"
    assert "the archive cannot be read" in failure["title"]
    assert "6 before" in call(folder, out).stderr
    call(twice, tmp_path / "again")
    texts = {row["source"]: row["text"] for row in rows(tmp_path / "again", "pages")}
    assert sorted(texts) == ["twice.tar#page.png", "twice.tar#page.png#2"]
    assert len(set(texts.values())) == 2


def test_a_file_that_is_no_archive_is_a_failure(call: Call, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("empty.tar", "text.tar.gz"):
        (tmp_path / "in" / name).write_bytes(b"" if name == "empty.tar" else b"no archive at all")
    assert call(tmp_path / "in", tmp_path / "out").returncode == 1
    assert [row["source"] for row in rows(tmp_path / "out", "failures")] == ["empty.tar", "text.tar.gz"]


def test_an_engine_that_is_lost_for_good_ends_the_run_and_fails_no_document(call: Call, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02}.png").write_bytes(png(str(number)))

    async def lose(*_: object, **__: object) -> None:
        raise EngineLostError

    down = EngineLife({"exit": 5}, num_retried=0, num_refused=0, is_down=True, ready_in_s=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DocumentReader, "read", lose)
        patch.setattr(ProcessEngine, "life", down)
        done = call(folder, out)
    assert "the engine cannot be restarted" in done.stderr
    assert (done.returncode, pages(out)) == (70, [])
    assert rows(out, "failures") == []


def test_a_parquet_file_without_documents_is_a_failure_that_names_its_columns(call: Call, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"id": [1]}), tmp_path / "numbers.parquet")
    assert call(tmp_path / "numbers.parquet", tmp_path / "out").returncode == 1
    (failure,) = rows(tmp_path / "out", "failures")
    assert (failure["source"], failure["page"]) == ("numbers.parquet", None)
    assert "columns: id" in failure["title"]
