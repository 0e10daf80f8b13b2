"""`python -m trainer prepare` from a source to a set: what is written, what is refused, and what survives a kill."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.page_sources import LONG, KilledConverter, drawn, encoded, write_pages
from tests.support.transcriptions import write_page_xml
from trainer.cli import main
from trainer.data.errors import DataCode, DataError
from trainer.data.prepare.conversion import convert_rows
from trainer.data.prepare.manifest import TrainingPart, load_manifest, training_part, verify_set
from trainer.data.prepare.output import OutputFolder
from trainer.data.prepare.shards import GROUP_ROWS
from trainer.data.sources.columns import Columns
from trainer.data.sources.protocol import Row
from trainer.data.sources.rejected_rows import RejectedRows
from trainer.data.sources.resolve import open_source
from trainer.data.sources.samples import read_samples

ROOT = Path(__file__).resolve().parents[4]


def prepare(capsys, *words):
    if "--validation-share" not in words:
        words = (*words, "--validation-share", 0.3)
    status = main(["prepare", *map(str, words)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def samples_of(folder):
    return list(read_samples(open_source(str(folder)), Columns(), RejectedRows(0)))


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def pages(tmp_path):
    return write_pages(tmp_path / "pages", 12)


def test_a_link_to_nothing_costs_its_row_alone(tmp_path, pages, capsys):
    for name in ("gone.png", "gone.txt"):
        (pages / name).symlink_to("nothing")
    status, _, errors = prepare(capsys, pages, "--max-broken-share", 0.5, "--out", tmp_path / "set")
    assert status == 0, errors
    broken = [json.loads(line) for line in (tmp_path / "set" / "broken-rows.jsonl").read_text().splitlines()]
    assert [row["name"] for row in broken] == ["gone.png"]
    for name in ("gone.png", "gone.xml"):
        (tmp_path / "gt" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "gt" / name).symlink_to("nothing")
    write_page_xml(tmp_path / "gt", 12)
    status, _, errors = prepare(capsys, tmp_path / "gt", "--max-broken-share", 0.5, "--out", tmp_path / "lines")
    assert status == 0, errors
    broken = [json.loads(line) for line in (tmp_path / "lines" / "broken-rows.jsonl").read_text().splitlines()]
    assert [row["name"] for row in broken] == ["gone.xml"]


def test_what_training_and_publishing_will_lack_is_said(tmp_path, pages, capsys):
    status, printed, _ = prepare(capsys, pages, "--test-share", 0.3, "--out", tmp_path / "a")
    assert status == 0
    assert "pages in test: `publish` asks for 20" in printed
    assert "no validation" not in printed
    for name in ("train", "test"):
        write_pages(tmp_path / "named" / name, 2 if name == "train" else 1, name)
    status, printed, _ = prepare(capsys, tmp_path / "named", "--out", tmp_path / "b")
    assert status == 0
    assert "no validation split" in printed
    status, printed, _ = prepare(capsys, pages, "--out", tmp_path / "c")
    assert (status, printed.count("\n")) == (0, 1)


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_a_folder_becomes_a_set_with_splits_card_and_manifest(tmp_path, pages, capsys, form):
    out = tmp_path / "sets" / "mine"
    words = (pages, "--out", out, "--format", form, "--validation-share", 0.3, "--rows-per-file", 5)
    status, printed, errors = prepare(capsys, *words)
    assert status == 0, errors
    assert printed.startswith(f"{out}: ")
    samples = samples_of(out)
    assert sorted(sample.text for sample in samples) == sorted(f"{LONG} {number}" for number in range(12))
    assert {sample.split for sample in samples} == {"train", "validation"}
    manifest = verify_set(out)
    assert sum(split["num_samples"] for split in manifest["splits"].values()) == 12
    assert manifest["request"]["source"]["name"] == "pages"
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "| Latin |" in card
    assert (out / "contact-sheet.png").stat().st_size > 1000
    assert (out / "broken-rows.jsonl").read_text() == ""
    assert [path.name for path in out.parent.iterdir()] == ["mine"]
    assert str(tmp_path) not in (out / "dataset.json").read_text() + card

    # Files keep the very bytes of the pages, and the same command gives the same set.
    originals = {path.read_bytes() for path in pages.glob("*.png")}
    assert {sample.images[0].data for sample in samples} == originals
    assert prepare(capsys, pages, "--out", tmp_path / "again", *words[3:])[0] == 0
    assert files_of(tmp_path / "again") == files_of(out)


def test_workers_change_nothing(tmp_path, pages, capsys):
    for name, workers in (("one", 1), ("two", 2)):
        assert prepare(capsys, pages, "--out", tmp_path / name, "--workers", workers)[0] == 0
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_a_killed_worker_is_said_with_what_to_do():
    rows = [Row(number, "page", {}) for number in range(9)]
    with pytest.raises(DataError, match="fewer --workers") as lost:
        list(convert_rows(rows, KilledConverter(), 2))
    assert lost.value.code is DataCode.WORKER_LOST


def test_a_set_can_be_prepared_from_a_set_and_keeps_its_splits(tmp_path, pages, capsys):
    for source, out, form in ((pages, "a", "parquet"), ("a", "b", "webdataset"), ("b", "c", "parquet")):
        words = (tmp_path / source, "--out", tmp_path / out, "--format", form, "--validation-share", 0.4)
        assert prepare(capsys, *words)[0] == 0
    contents = [{(sample.text, sample.split, sample.images[0].data) for sample in samples_of(tmp_path / name)}
                for name in "abc"]  # fmt: skip
    assert contents[0] == contents[1] == contents[2]


def test_broken_rows_end_a_run_only_past_the_stated_share_and_nothing_is_lost(tmp_path, pages, capsys):
    (pages / "p03.png").write_bytes(b"no image")
    out = tmp_path / "set"
    words = (pages, "--out", out, "--validation-share", 0)
    status, _, errors = prepare(capsys, *words)
    assert status == 2
    assert "row 4 (p03.png): it is plain text; supported are PNG" in errors
    assert "[too_many_broken_rows]" in errors
    assert not out.exists()
    # Allowing more goes on with the work that is done.
    status, printed, _ = prepare(capsys, *words, "--max-broken-share", 0.1)
    assert status == 0
    assert "1 of 12 rows left out" in printed
    (row,) = map(json.loads, (out / "broken-rows.jsonl").read_text().splitlines())
    assert (row["number"], row["name"], row["code"]) == (4, "p03.png", "image_format")
    assert "| image_format | 1 |" in (out / "README.md").read_text()


def test_rows_of_many_shards_are_numbered_through_so_that_none_hides_another(tmp_path, capsys):
    for number in range(3):
        prepared = write_pages(tmp_path / f"pages-{number}", 1, f"{LONG} {number}")
        words = (prepared, "--format", "webdataset", "--validation-share", 0, "--out", tmp_path / f"set-{number}")
        assert prepare(capsys, *words)[0] == 0
        (tmp_path / "shards").mkdir(exist_ok=True)
        shutil.copy(tmp_path / f"set-{number}" / "data" / "train-00000.tar", tmp_path / "shards" / f"{number}.tar")
    words = (tmp_path / "shards", "--format", "webdataset", "--rows-per-file", 2, "--validation-share", 0)
    assert prepare(capsys, *words, "--out", tmp_path / "set")[0] == 0
    assert [sample.text for sample in samples_of(tmp_path / "set")] == [f"{LONG} {number} 0" for number in range(3)]
    (tmp_path / "shards" / "1.tar").write_bytes(b"no tar at all")
    status, _, errors = prepare(capsys, *words, "--out", tmp_path / "other")
    assert (status, "row 2 (1.tar:start)" in errors) == (2, True)


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_lists_of_images_are_kept_whole_whatever_their_column_is_called(tmp_path, pages, capsys, form):
    rows = [{"scans": [f"p{first:02d}.png", f"p{first + 1:02d}.png"], "text": f"{LONG} {first}"} for first in (0, 2)]
    (pages / "index.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ("--image-column", "scans", "--format", form, "--validation-share", 0)
    assert prepare(capsys, pages, *words, "--out", tmp_path / "set")[0] == 0
    found = [[image.data for image in sample.images] for sample in samples_of(tmp_path / "set")]
    assert found == [[(pages / name).read_bytes() for name in row["scans"]] for row in rows]

    rows[0]["scans"] = "p00.png"
    (pages / "index.jsonl").write_text("\n".join(map(json.dumps, rows)))
    status, _, errors = prepare(capsys, pages, *words, "--out", tmp_path / "mixed")
    assert (status, "row 2" in errors, "[image_several]" in errors) == (2, True, True)


def test_mended_rows_begin_anew_unasked(tmp_path, pages, capsys):
    page = (pages / "p03.png").read_bytes()
    (pages / "p03.png").write_bytes(b"no image")
    assert prepare(capsys, pages, "--out", tmp_path / "set")[0] == 2
    (pages / "p03.png").write_bytes(page)
    assert prepare(capsys, pages, "--out", tmp_path / "set")[0] == 0
    assert len(samples_of(tmp_path / "set")) == 12


def test_duplicates_across_named_splits_are_refused(tmp_path, capsys):
    source = tmp_path / "source"
    rows = []
    for number, (split, text, image) in enumerate(
        [
            ("train", f"{LONG} one", "a"),
            ("train", f"{LONG} one", "b"),  # the same text twice in one split is allowed
            ("test", f"{LONG}  one", "c"),  # the same text
            ("test", f"{LONG} two", "a"),  # the same image
            ("test", f"{LONG} three", "d"),
            ("train", "Total", "e"),
            ("test", "Total", "f"),  # a short text says nothing
        ]
    ):
        write_pages(source, 0)
        drawn(image).save(source / f"{number}.png")
        rows.append(json.dumps({"image": f"{number}.png", "text": text, "part": split}))
    (source / "index.jsonl").write_text("\n".join(rows))
    out = tmp_path / "set"
    status, printed, errors = prepare(capsys, source, "--out", out, "--split-column", "part")
    assert status == 0, errors
    assert "2 duplicates refused" in printed
    counts = {name: split["num_samples"] for name, split in load_manifest(out)["splits"].items()}
    assert counts == {"train": 3, "test": 2}
    refused = [json.loads(line)["number"] for line in (out / "broken-rows.jsonl").read_text().splitlines()]
    assert refused == [3, 4]


def test_an_unknown_split_and_an_empty_one_are_named(tmp_path, pages, capsys):
    (pages / "index.jsonl").write_text('{"image": "p00.png", "text": "a", "split": "elsewhere"}')
    status, _, errors = prepare(capsys, pages, "--out", tmp_path / "set")
    assert status == 2
    assert "column 'split' says 'elsewhere'" in errors
    (pages / "index.jsonl").unlink()
    status, _, errors = prepare(capsys, pages, "--out", tmp_path / "other", "--validation-share", 0.000001)
    assert status == 2
    assert "there is no sample in validation" in errors
    enough = errors.partition("--validation-share ")[2].split()[0]
    assert prepare(capsys, pages, "--out", tmp_path / "other", "--validation-share", enough)[0] == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), "options_conflict"),
        (("{pages}", "--dataset-name", "a/b"), "options_conflict"),
        (("{pages}", "--test-share", "1"), "options_conflict"),
        (("{pages}/none",), "source_missing"),
        (("{pages}", "--text-column", "body"), "column_missing"),
    ],
)
def test_wrong_options_are_one_line_with_a_code(tmp_path, pages, capsys, words, code):
    status, _, errors = prepare(capsys, *(word.format(pages=pages) for word in words), "--out", tmp_path / "set")
    assert status == 2
    assert f"[{code}]" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "set").exists()


def test_what_stands_at_the_place_is_replaced_only_when_asked_and_only_if_it_is_a_set(tmp_path, pages, capsys):
    out = tmp_path / "set"
    out.mkdir()
    (out / "letter.txt").write_text("mine")
    for extra in ((), ("--overwrite",)):
        status, _, errors = prepare(capsys, pages, "--out", out, *extra)
        assert (status, "[output_exists]" in errors) == (2, True)
    assert (out / "letter.txt").read_text() == "mine"
    (out / "letter.txt").unlink()
    assert prepare(capsys, pages, "--out", out)[0] == 0
    before = files_of(out)
    # The same request is done already; another one is refused until it is asked to replace.
    assert prepare(capsys, pages, "--out", out)[0] == 0
    assert files_of(out) == before
    assert prepare(capsys, pages, "--out", out, "--limit", 6)[0] == 2
    assert files_of(out) == before
    assert prepare(capsys, pages, "--out", out, "--limit", 6, "--validation-share", 0, "--overwrite")[0] == 0
    assert load_manifest(out)["num_rows"] == 6
    assert [path.name for path in tmp_path.iterdir() if "set" in path.name] == ["set"]


def test_a_replacement_cut_off_between_its_two_renames_gives_the_old_set_back(tmp_path, pages, capsys):
    out = tmp_path / "set"
    assert prepare(capsys, pages, "--out", out)[0] == 0
    before = files_of(out)
    out.rename(tmp_path / ".set.replaced")
    assert prepare(capsys, pages, "--out", out, "--limit", 6)[0] == 2
    assert files_of(out) == before


class Killed(BaseException):
    """What a kill is to a process that is tested from within."""


def test_a_run_killed_at_any_write_goes_on_and_ends_with_the_same_set(tmp_path, pages, capsys, monkeypatch):
    words = (pages, "--validation-share", 0.3, "--rows-per-file", 3, "--limit", 6)
    assert prepare(capsys, *words, "--out", tmp_path / "whole")[0] == 0
    whole = files_of(tmp_path / "whole")
    fsync = os.fsync
    kills = 0
    for last in range(100):
        calls = iter(range(last))

        def dying(descriptor, calls=calls):
            if next(calls, None) is None:
                raise Killed
            fsync(descriptor)

        out = tmp_path / "killed"
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", dying)
            try:
                main(["prepare", *map(str, words), "--out", str(out)])
            except Killed:
                kills += 1
                # The rename is the last but one sync: a set is there whole or not at all.
                assert not out.exists() or files_of(out) == whole
            else:
                break
        assert prepare(capsys, *words, "--out", out)[0] == 0
        assert files_of(out) == whole
        assert not list(tmp_path.glob(".killed*"))
        shutil.rmtree(out)
    assert kills > 20


def test_a_real_kill_leaves_nothing_and_loses_nothing(tmp_path, capsys):
    pages = write_pages(tmp_path / "pages", 300)
    out = tmp_path / "set"
    words = [str(pages), "--rows-per-file", "20", "--out", str(out), "--validation-share", "0.3"]
    state = tmp_path / ".set.partial" / "work" / "state.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", "prepare", *words], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not state.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if out.exists():
        pytest.skip("the machine was faster than the kill")
    assert json.loads(state.read_text())["num_rows"] >= 20
    assert prepare(capsys, *words)[0] == 0
    assert verify_set(out)["num_rows"] == 300
    assert len(samples_of(out)) == 300
    assert not state.exists()


def test_unfinished_work_of_other_options_is_not_mixed_in(tmp_path, pages, capsys):
    out = tmp_path / "set"
    begun = OutputFolder(out, "of other options", overwrite=False, restart=False)
    with begun:
        begun.commit([], {"step": 1})
    status, _, errors = prepare(capsys, pages, "--out", out, "--limit", 3, "--validation-share", 0)
    assert (status, "[resume_mismatch]" in errors, "--restart" in errors) == (2, True, True)
    assert prepare(capsys, pages, "--out", out, "--limit", 3, "--validation-share", 0, "--restart")[0] == 0
    assert load_manifest(out)["num_rows"] == 3


def test_two_processes_do_not_write_one_set(tmp_path, pages, capsys):
    with OutputFolder(tmp_path / "set", "x", overwrite=False, restart=False):
        status, _, errors = prepare(capsys, pages, "--out", tmp_path / "set")
    assert (status, "[output_busy]" in errors) == (2, True)
    assert prepare(capsys, pages, "--out", tmp_path / "set")[0] == 0


@pytest.mark.parametrize("call", [0, 1, 4, 9])
def test_a_full_disk_is_said_and_the_run_goes_on_later(tmp_path, pages, capsys, monkeypatch, call):
    calls = iter(range(call))
    fsync = os.fsync

    def full(descriptor):
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    out = tmp_path / "set"
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        status, _, errors = prepare(capsys, pages, "--out", out, "--rows-per-file", 4)
    assert (status, "[disk_full]" in errors, "repeat the command" in errors) == (2, True, True)
    assert not out.exists()
    assert prepare(capsys, pages, "--out", out, "--rows-per-file", 4)[0] == 0
    assert len(samples_of(out)) == 12


@pytest.mark.parametrize("num_pages", [8, GROUP_ROWS + 1])
@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_a_write_that_fails_inside_the_libraries_is_said_too(tmp_path, form, num_pages):
    """The kernel refuses: files may not grow past 64 KiB in this process. It does so again when the file is closed."""
    pages = tmp_path / "pages"
    pages.mkdir()
    for number in range(num_pages):
        (pages / f"{number}.png").write_bytes(encoded(Image.effect_noise((200, 200), 90)))
        (pages / f"{number}.txt").write_text("text")
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "prepare", str(pages), "--out", str(tmp_path / "set"), "--format", form],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: (
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
            resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)),
        ),
    )
    assert done.returncode == 2, done.stderr
    assert "[disk_full]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "set").exists()


def test_a_place_that_cannot_be_written_is_said(tmp_path, pages, capsys):
    (tmp_path / "file").write_text("no folder")
    status, _, errors = prepare(capsys, pages, "--out", tmp_path / "file" / "set")
    assert (status, "[output_unwritable]" in errors) == (2, True)


def test_a_changed_file_of_a_set_is_found(tmp_path, pages, capsys):
    out = tmp_path / "set"
    assert prepare(capsys, pages, "--out", out)[0] == 0
    file = out / "data" / "train-00000.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="has changed") as refused:
        verify_set(out)
    assert refused.value.code is DataCode.SET_CORRUPT
    file.unlink()
    with pytest.raises(DataError, match="is missing"):
        verify_set(out)
    (out / "dataset.json").write_text('{"format_version": 99}')
    with pytest.raises(DataError, match="format 99"):
        verify_set(out)
    with pytest.raises(DataError, match=r"dataset\.json"):
        load_manifest(tmp_path)


def test_a_set_says_what_there_was_to_train_on(tmp_path, pages, capsys):
    out = tmp_path / "set"
    assert prepare(capsys, pages, "--out", out)[0] == 0
    manifest = load_manifest(out)
    assert training_part(out) == TrainingPart(manifest["fingerprint"], manifest["splits"]["train"]["num_samples"])
    del manifest["splits"]["train"]
    (out / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="no split train"):
        training_part(out)


def test_parquet_files_say_to_hugging_face_what_an_image_is(tmp_path, pages, capsys):
    assert prepare(capsys, pages, "--out", tmp_path / "set")[0] == 0
    schema = pq.read_schema(tmp_path / "set" / "data" / "train-00000.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert schema.names == ["image", "text", "name", "row", "page", "image_sha256", "fonts", "prompt"]
