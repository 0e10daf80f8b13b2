"""Which kind of source a folder is, which split its files are of, and what is said where neither can be told."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.page_sources import LONG, drawn, encoded, write_pages
from trainer.cli import main
from trainer.data.errors import DataCode, DataError, RowCode
from trainer.data.prepare.manifest import load_manifest
from trainer.data.sources.columns import Columns
from trainer.data.sources.index import TableFormat
from trainer.data.sources.kinds import SourceKind
from trainer.data.sources.rejected_rows import RejectedRows
from trainer.data.sources.resolve import SourceOptions, open_source
from trainer.data.sources.samples import read_samples
from trainer.data.sources.webdataset import WebDatasetSource

SPLIT_NUMBERS = {"train": range(6), "test": range(6, 9)}


def samples_of(spec, **options):
    rejected = RejectedRows()
    return list(read_samples(open_source(str(spec), SourceOptions(**options)), Columns(), rejected)), rejected


def write_tar(path, members, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def page(number):
    return encoded(drawn(str(number)))


def write_parquet(path, numbers):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [page(n) for n in numbers], "text": [f"{LONG} {n}" for n in numbers]}), path)


def hub_parquet(folder, split, numbers):
    write_parquet(folder / "default" / split / "0000.parquet", numbers)


def hive(folder, split, numbers):
    write_parquet(folder / f"split={split}" / "a.parquet", numbers)


def shards(folder, split, numbers):
    members = [(f"{n}.{kind}", data) for n in numbers for kind, data in
               (("png", page(n)), ("txt", f"{LONG} {n}".encode()))]  # fmt: skip
    write_tar(folder / split / "0.tar", members)


def scans(folder, split, numbers):
    inner = folder / "data" / split
    inner.mkdir(parents=True)
    for n in numbers:
        (inner / f"{n}.png").write_bytes(page(n))
        (inner / f"{n}.txt").write_text(f"{LONG} {n}")


def metadata(folder, split, numbers):
    inner = folder / split
    inner.mkdir(parents=True)
    lines = [json.dumps({"file_name": f"{n}.png", "text": f"{LONG} {n}"}) for n in numbers]
    (inner / "metadata.jsonl").write_text("\n".join(lines))
    for n in numbers:
        (inner / f"{n}.png").write_bytes(page(n))


@pytest.mark.parametrize("layout", [hub_parquet, hive, shards, scans, metadata])
def test_folders_at_any_depth_name_splits(tmp_path, layout):
    for split, numbers in SPLIT_NUMBERS.items():
        layout(tmp_path / "source", split, numbers)
    samples, rejected = samples_of(tmp_path / "source")
    assert rejected.num_broken == 0
    assert {int(sample.text.split()[-1]): sample.split for sample in samples} == {
        number: split for split, numbers in SPLIT_NUMBERS.items() for number in numbers
    }


def test_a_split_that_only_later_shards_and_rows_name_counts(tmp_path):
    write_tar(tmp_path / "shards" / "a.tar", [("0.png", page(0)), ("0.txt", b"zero")])
    write_tar(tmp_path / "shards" / "test" / "b.tar", [("1.png", page(1)), ("1.txt", b"one")])
    samples, rejected = samples_of(tmp_path / "shards")
    assert [(sample.text, sample.split) for sample in samples] == [("one", "test")]
    assert [row.code for row in rejected.broken] == [RowCode.SPLIT_UNKNOWN]
    write_pages(tmp_path / "pages", 70)
    (tmp_path / "pages" / "p69.json").write_text('{"split": "test"}')
    samples, _ = samples_of(tmp_path / "pages")
    assert {sample.name: sample.split for sample in samples if sample.split} == {"p69.png": "test"}


def test_the_innermost_folder_counts_and_a_files_name_before_it(tmp_path):
    write_parquet(tmp_path / "train" / "validation" / "x.parquet", [1])
    write_parquet(tmp_path / "train" / "test-00000.parquet", [2])
    samples, _ = samples_of(tmp_path)
    assert {sample.text[-1]: sample.split for sample in samples} == {"1": "validation", "2": "test"}


@pytest.mark.parametrize("stray", ["old/backup.tar", "old/x.parquet", "table.pdf"])
def test_a_folder_of_two_kinds_is_not_guessed_at(tmp_path, stray, capsys):
    folder = write_pages(tmp_path / "scans", 12)
    file = folder / stray
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"whatever")
    assert main(["prepare", str(folder), "--out", str(tmp_path / "set")]) == 2
    error = capsys.readouterr().err
    assert "[source_ambiguous]" in error
    assert "images (12 files)" in error
    with pytest.raises(DataError, match="several kinds"):
        open_source(str(folder))  # as `train` and `evaluate` do
    words = ["--source", "images", "--validation-share", "0.4", "--out", str(tmp_path / "set")]
    assert main(["prepare", str(folder), *words]) == 0
    assert f"passed over: 1 {file.suffix} files" in capsys.readouterr().out
    manifest = load_manifest(tmp_path / "set")
    assert manifest["num_rows"] == 12
    assert manifest["passed_over"] == {f"{file.suffix} files": 1}


def test_a_set_below_its_source_is_passed_over(tmp_path, capsys):
    folder = write_pages(tmp_path / "scans", 12)
    words = ["--validation-share", "0.4", "--out", str(folder / "set")]
    assert main(["prepare", str(folder), *words]) == 0
    write_pages(folder, 16)
    assert main(["prepare", str(folder), "--overwrite", *words]) == 0
    assert "passed over: 1 prepared sets" in capsys.readouterr().out
    assert load_manifest(folder / "set")["num_rows"] == 16
    assert main(["prepare", str(folder), "--overwrite", "--out", str(folder)]) == 2
    assert "[options_conflict]" in capsys.readouterr().err


def test_a_prepared_set_is_a_source_although_it_has_a_picture_and_texts(tmp_path, capsys):
    folder = write_pages(tmp_path / "scans", 12)
    for form in ("parquet", "webdataset"):
        out = tmp_path / form
        words = ["--format", form, "--validation-share", "0.4", "--out", str(out)]
        assert main(["prepare", str(folder), *words]) == 0, capsys.readouterr().err
        samples, _ = samples_of(out)
        assert len(samples) == 12
        assert {sample.split for sample in samples} == {"train", "validation"}


@pytest.mark.parametrize("suffix", [".txt", ".json", ".png"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, suffix):
    folder = write_pages(tmp_path / "in", 3)
    secret = tmp_path / f"secret{suffix}"
    secret.write_bytes(page("x") if suffix == ".png" else b'{"text": "secret"}')
    for name in ("p01.png", "p01.txt"):
        if name.endswith(suffix) or suffix == ".json":
            (folder / name).unlink(missing_ok=suffix == ".json")
    if suffix == ".json":
        (folder / "p01.png").write_bytes(page(1))
    (folder / f"p01{suffix}").symlink_to(secret)
    samples, rejected = samples_of(folder)
    assert [sample.name for sample in samples] == ["p00.png", "p02.png"]
    assert [(row.name, row.code) for row in rejected.broken] == [("p01.png", RowCode.IMAGE_OUTSIDE)]


@pytest.mark.parametrize("name", ["x.parquet", "x.tar", "metadata.jsonl"])
def test_a_linked_shard_or_index_out_of_the_folder_is_refused(tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    secret = tmp_path / f"secret-{name}"
    if name == "x.parquet":
        write_parquet(secret, [1])
    elif name == "x.tar":
        write_tar(secret, [("a.png", page(1)), ("a.txt", b"secret")])
    else:
        secret.write_text('{"image": "a.png", "text": "secret"}')
    (folder / name).symlink_to(secret)
    with pytest.raises(DataError, match="link to a file outside"):
        open_source(str(folder))


def test_a_linked_folder_is_counted(tmp_path, capsys):
    folder = write_pages(tmp_path / "in", 8)
    write_pages(tmp_path / "other", 2)
    (folder / "more").symlink_to(tmp_path / "other")
    assert main(["prepare", str(folder), "--validation-share", "0.4", "--out", str(tmp_path / "set")]) == 0
    assert "passed over: 1 linked folders" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "delimiter", "encoding"),
    [("a.csv", ";", "utf-8"), ("a.csv", "\t", "utf-8"), ("a.csv", "|", "utf-8"), ("UPPER.CSV", ",", "utf-8"),
     ("a.tsv", "\t", "utf-8"), ("a.csv", ",", "utf-16"), ("a.csv", ";", "utf-8-sig")],
)  # fmt: skip
def test_tables_of_every_spreadsheet_are_read(tmp_path, name, delimiter, encoding):
    write_pages(tmp_path, 2)
    rows = [("image", "text"), ("p00.png", 'Müller, "a"; b'), ("p01.png", "two\nlines")]
    with (tmp_path / name).open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    samples, rejected = samples_of(tmp_path / name)
    assert ([sample.text for sample in samples], rejected.broken) == ([text for _, text in rows[1:]], [])


def test_encoding_and_delimiter_can_be_given(tmp_path, capsys):
    write_pages(tmp_path, 2)
    (tmp_path / "a.csv").write_bytes("image~text\np00.png~Müller\np01.png~b\n".encode("cp1252"))
    with pytest.raises(DataError, match="no column"):
        samples_of(tmp_path / "a.csv")
    samples, rejected = samples_of(tmp_path / "a.csv", table=TableFormat("~"))
    assert [sample.text for sample in samples] == ["b"]
    assert "--encoding" in rejected.broken[0].reason
    samples, _ = samples_of(tmp_path / "a.csv", table=TableFormat("~", "cp1252"))
    assert [sample.text for sample in samples] == ["Müller", "b"]
    for words in (["--delimiter", "::"], ["--encoding", "klingon"]):
        assert main(["prepare", str(tmp_path / "a.csv"), *words, "--out", str(tmp_path / "s")]) == 2
        assert "[options_conflict]" in capsys.readouterr().err


def test_a_json_list_is_an_index(tmp_path):
    write_pages(tmp_path, 2)
    (tmp_path / "list.json").write_text(json.dumps([{"image": "p00.png", "text": "a"}, 5, {"image": "p01.png"}]))
    samples, rejected = samples_of(tmp_path / "list.json")
    assert [sample.text for sample in samples] == ["a"]
    assert [(row.name, row.code) for row in rejected.broken] == [
        ("list.json item 2", RowCode.ROW_UNREADABLE), ("list.json item 3", RowCode.TEXT_MISSING),
    ]  # fmt: skip
    (tmp_path / "lines.json").write_text('{"image": "a"}\n{"image": "b"}')
    with pytest.raises(DataError, match=r"\.jsonl"):
        open_source(str(tmp_path / "lines.json"))


def test_paths_with_backslashes_are_read_and_may_not_leave_the_folder(tmp_path):
    write_pages(tmp_path / "in" / "sub", 1)
    (tmp_path / "secret.png").write_bytes(page(1))
    lines = [json.dumps({"image": path, "text": "a"}) for path in ("sub\\p00.png", "..\\secret.png")]
    (tmp_path / "in" / "x.jsonl").write_text("\n".join(lines))
    samples, rejected = samples_of(tmp_path / "in" / "x.jsonl")
    assert len(samples) == 1
    assert [row.code for row in rejected.broken] == [RowCode.IMAGE_OUTSIDE]


def test_compressed_archives_are_shards(tmp_path):
    plain = write_tar(tmp_path / "a.tar", [("0.png", page(0)), ("0.txt", b"zero")])
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    samples, _ = samples_of(tmp_path / "b.tar.gz")
    assert [sample.text for sample in samples] == ["zero"]


def test_tables_that_nobody_reads_are_named(tmp_path):
    write_pages(tmp_path, 3)
    for file in tmp_path.glob("*.txt"):
        file.unlink()
    (tmp_path / "labels.csv").write_text("image,text\np00.png,a\n")
    with pytest.raises(DataError, match=r"labels\.csv") as refused:
        open_source(str(tmp_path))
    assert refused.value.code is DataCode.SOURCE_AMBIGUOUS


@pytest.mark.parametrize(("name", "message"), [("src/A_folder", "did you mean .*a_folder"), ("src/Q", "hf:src/Q")])
def test_a_mistyped_folder_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, name, message):
    write_pages(tmp_path / "src" / "a_folder", 1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message) as refused:
        open_source(name)
    assert refused.value.code is DataCode.SOURCE_MISSING


@pytest.mark.parametrize("name", ["notes.docx", "pages.zip"])
def test_a_file_that_is_no_source_is_said_to_be_there(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match="is a file that is no source"):
        open_source(str(tmp_path / name))


@pytest.mark.parametrize("streaming", [[], ["--streaming"]])
@pytest.mark.parametrize("kind", ["script", "json"])
def test_what_hugging_face_cannot_open_is_one_line(tmp_path, monkeypatch, capsys, kind, streaming):
    folder = tmp_path / "found"
    folder.mkdir()
    if kind == "script":
        (folder / "found.py").write_text("import datasets\n")
    else:
        (folder / "train.jsonl").write_text('{"image": "a.png", "text": "x"}\n{broken\n')
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    assert main(["prepare", f"hf:{folder}", *streaming, "--out", str(tmp_path / "set")]) == 2
    assert re.search(r"^error: the data set .*\[source_unreadable\]$", capsys.readouterr().err, re.MULTILINE)


def test_a_negative_number_of_workers_is_usage(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["prepare", str(write_pages(tmp_path / "in", 2)), "--workers", "-2", "--out", str(tmp_path / "set")])
    assert left.value.code == 2
    assert "negative" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "broken", "message"),
    [([f"2024.03.{n:02d}" for n in range(1, 6)], 5, "has a dot"), (["0001"] * 5, 5, "more than once"),
     ([f"{n // 2:04d}" for n in range(6)], 6, "more than once"), (["a", "b", "doc.v2", "c.1", "c.2"], 3, "has a dot")],
)  # fmt: skip
def test_keys_of_shards_that_are_not_their_own_are_named_row_by_row(tmp_path, keys, broken, message):
    members = [(f"{key}.{kind}", data) for n, key in enumerate(keys) for kind, data in
               (("png", page(n)), ("txt", f"text {n}".encode()))]  # fmt: skip
    source = WebDatasetSource(str(write_tar(tmp_path / "x.tar", members)))
    rows = list(source.rows())
    faults = [str(row) for row in rows if not hasattr(row, "fields")]
    assert len(faults) == broken
    assert len(rows) == len(keys)
    assert all(message in fault for fault in faults)


def test_lines_of_print_share_a_text_and_a_split(tmp_path, capsys):
    for number in range(12):
        for kind in ("bin", "nrm"):
            drawn(f"{kind} {number}", (140, 30)).save(tmp_path / f"{number:02d}.{kind}.png")
        (tmp_path / f"{number:02d}.gt.txt").write_text(f"line {number}")
    samples, rejected = samples_of(tmp_path)
    assert (len(samples), rejected.broken) == (24, [])
    assert main(["prepare", str(tmp_path), "--validation-share", "0.4", "--out", str(tmp_path / "set")]) == 0
    by_text = {}
    for sample in samples_of(tmp_path / "set")[0]:
        by_text.setdefault(sample.text, set()).add(sample.split)
    assert {len(splits) for splits in by_text.values()} == {1}
    shutil.rmtree(tmp_path / "set")


def test_kinds_are_the_choices_of_the_flag(capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    shown = capsys.readouterr().out
    assert all(kind in shown for kind in SourceKind)


@pytest.mark.parametrize("flag", ["--level page", "--dpi 300", "--image-root .", "--dataset-config en", "--streaming"])
def test_a_flag_that_the_kind_of_source_would_ignore_is_refused(tmp_path, capsys, flag):
    write_pages(tmp_path / "pages", 2)
    assert main(["prepare", str(tmp_path / "pages"), "--out", str(tmp_path / "set"), *flag.split()]) == 2
    said = capsys.readouterr().err
    assert f"{flag.split()[0]} would have no effect" in said
    assert "is read as images" in said
    assert not (tmp_path / "set").exists()
