"""Folders, indices and Parquet files as sources: columns, order, parts, broken rows."""

from __future__ import annotations

import json
import os
import unicodedata
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.page_sources import drawn, encoded, names_of, write_pages
from trainer.data.errors import DataCode, DataError, RowCode, RowError
from trainer.data.sources.columns import Columns
from trainer.data.sources.index import TableFormat
from trainer.data.sources.protocol import BrokenRow, Part, Row
from trainer.data.sources.rejected_rows import EARLY_ROWS, RejectedRows
from trainer.data.sources.resolve import SourceOptions, open_source
from trainer.data.sources.samples import read_samples


def samples_of(spec, columns=None, **options):
    rejected = RejectedRows()
    return list(
        read_samples(open_source(str(spec), SourceOptions(**options)), columns or Columns(), rejected)
    ), rejected


def test_images_have_the_texts_beside_them(tmp_path):
    write_pages(tmp_path, 2, "text")
    (tmp_path / "sub").mkdir()
    drawn("x").save(tmp_path / "sub" / "q.JPG")
    (tmp_path / "sub" / "q.json").write_text('{"text": "from json", "language": "de"}', encoding="utf-8")
    drawn("y").save(tmp_path / "r.png")
    (tmp_path / "r.gt.txt").write_bytes(b"\xef\xbb\xbfground truth\r\nof two lines\r\n")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    samples, rejected = samples_of(tmp_path)
    assert [(sample.name, sample.text) for sample in samples] == [
        ("p00.png", "text 0"),
        ("p01.png", "text 1"),
        ("r.png", "ground truth\nof two lines"),
        ("sub/q.JPG", "from json"),
    ]
    assert [sample.number for sample in samples] == [1, 2, 3, 4]
    assert rejected.num_broken == 0
    assert samples[0].images[0].width_px == 120


def test_texts_of_other_encodings_are_read_or_named_with_what_helps(tmp_path):
    write_pages(tmp_path, 3)
    words = "Müller & Söhne, 12 €"
    (tmp_path / "p00.txt").write_text(words, encoding="utf-16")
    (tmp_path / "p01.txt").write_text(words, encoding="cp1252")
    samples, rejected = samples_of(tmp_path)
    assert [sample.text for sample in samples if sample.name == "p00.png"] == [words]
    assert [row.name for row in rejected.broken] == ["p01.png"]
    assert "--encoding" in rejected.broken[0].reason
    samples, rejected = samples_of(tmp_path, table=TableFormat(encoding="cp1252"))
    assert rejected.num_broken == 0
    assert [sample.text for sample in samples][:2] == [words, words]


def test_names_are_the_same_however_their_accents_are_written(tmp_path):
    whole, apart = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    drawn("x").save(tmp_path / f"{apart}.png")
    (tmp_path / f"{whole}.txt").write_text("a text")
    samples, rejected = samples_of(tmp_path)
    assert (len(samples), rejected.num_broken) == (1, 0)
    (tmp_path / f"{whole}.txt").unlink()
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": f"{whole}.png", "text": "a text"}))
    samples, rejected = samples_of(tmp_path / "rows.jsonl")
    assert (len(samples), rejected.num_broken) == (1, 0)


def test_no_text_hides_another_whose_name_is_nearly_the_same(tmp_path):
    whole, apart = (unicodedata.normalize(form, "ü") for form in ("NFC", "NFD"))
    drawn("x").save(tmp_path / f"{apart}.png")
    for name in (f"{whole}.txt", f"{apart}.txt", f"{apart}.TXT"):
        (tmp_path / name).write_text(f"the text of {name} here")
    samples, rejected = samples_of(tmp_path)
    assert len(samples) == 1
    assert [row.code for row in rejected.broken] == [RowCode.IMAGE_MISSING] * 2


def test_a_table_that_has_a_column_twice_is_not_guessed_at(tmp_path):
    drawn("x").save(tmp_path / "a.png")
    (tmp_path / "index.csv").write_text("image,text,text\na.png,one,two\n")
    with pytest.raises(DataError, match="'text' more than once"):
        open_source(str(tmp_path / "index.csv"))
    (tmp_path / "index.csv").write_text("image,text,,\na.png,one,,\n")
    assert [sample.text for sample in samples_of(tmp_path / "index.csv")[0]] == ["one"]


def test_pipes_are_passed_over_and_not_waited_for(tmp_path):
    write_pages(tmp_path, 2)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to("nothing.png")
    source = open_source(str(tmp_path))
    samples, rejected = samples_of(tmp_path)
    assert len(samples) == 2
    assert [row.name for row in rejected.broken] == ["gone.png"]
    assert source.passed_over == {"pipes, sockets and devices": 1}


def test_two_images_of_one_name_share_its_text(tmp_path):
    write_pages(tmp_path, 1)
    drawn("other").save(tmp_path / "p00.jpg")
    samples, _ = samples_of(tmp_path)
    assert [sample.name for sample in samples] == ["p00.jpg", "p00.png"]
    assert len({sample.text for sample in samples}) == 1


def test_every_kind_of_broken_row_is_named_and_the_others_are_read(tmp_path):
    write_pages(tmp_path, 2)
    whole = encoded(drawn("x", (200, 200)))
    for name, data in {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "netpbm": encoded(drawn("x"), "PPM"),
        "tiny": encoded(drawn("x", (4, 4))),
        "frames": encoded(drawn("a"), "TIFF", save_all=True, append_images=[drawn("b")]),
    }.items():
        (tmp_path / f"{name}.png").write_bytes(data)
        (tmp_path / f"{name}.txt").write_text("text", encoding="utf-8")
    drawn("n").save(tmp_path / "no-text.png")
    drawn("n").save(tmp_path / "blank.png")
    (tmp_path / "blank.txt").write_text(" \n", encoding="utf-8")
    drawn("n").save(tmp_path / "latin.png")
    (tmp_path / "latin.txt").write_bytes("Müller".encode("latin-1"))
    drawn("n").save(tmp_path / "odd.png")
    (tmp_path / "odd.json").write_text("[1]", encoding="utf-8")
    drawn("n").save(tmp_path / "number.png")
    (tmp_path / "number.json").write_text('{"text": 5}', encoding="utf-8")
    (tmp_path / "lonely.txt").write_text("text", encoding="utf-8")
    samples, rejected = samples_of(tmp_path)
    assert [sample.name for sample in samples] == ["p00.png", "p01.png"]
    assert {row.name: row.code for row in rejected.broken} == {
        "cut.png": RowCode.IMAGE_UNREADABLE,
        "empty.png": RowCode.IMAGE_FORMAT,
        "netpbm.png": RowCode.IMAGE_FORMAT,
        "tiny.png": RowCode.IMAGE_UNREADABLE,
        "frames.png": RowCode.IMAGE_SEVERAL_FRAMES,
        "no-text.png": RowCode.TEXT_MISSING,
        "blank.png": RowCode.TEXT_EMPTY,
        "latin.png": RowCode.ROW_UNREADABLE,
        "odd.png": RowCode.ROW_UNREADABLE,
        "number.png": RowCode.TEXT_NOT_TEXT,
        "lonely.txt": RowCode.IMAGE_MISSING,
    }
    with pytest.raises(DataError, match=r"11 of 13 rows cannot be used") as refused:
        rejected.check()
    assert refused.value.code is DataCode.TOO_MANY_BROKEN_ROWS
    assert "--max-broken-share" in str(refused.value)


@pytest.mark.parametrize(
    ("suffix", "form"),
    [(".gif", "GIF"), (".bmp", "BMP"), (".jp2", "JPEG2000"), (".avif", "AVIF"), (".TIF", "TIFF"), (".webp", "WEBP")],
)
def test_every_image_format_is_found_by_its_suffix(tmp_path, suffix, form):
    (tmp_path / f"page{suffix}").write_bytes(encoded(drawn("page"), form))
    (tmp_path / "page.txt").write_text("page", encoding="utf-8")
    samples, rejected = samples_of(tmp_path)
    assert ([sample.text for sample in samples], rejected.broken) == (["page"], [])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_an_index_names_images(tmp_path, suffix):
    write_pages(tmp_path, 2)
    pairs = [("p00.png", 'a "quoted", text\nof two lines'), ("p01.png", "b")]
    if suffix == ".jsonl":
        content = "\n\n".join(json.dumps({"file_name": name, "transcription": text}) for name, text in pairs)
    else:
        mark = "," if suffix == ".csv" else "\t"
        quoted = ['"' + text.replace('"', '""') + '"' for _, text in pairs]
        content = f"file_name{mark}transcription\n" + "\n".join(
            f"{name}{mark}{text}" for (name, _), text in zip(pairs, quoted, strict=True)
        )
    index = tmp_path / f"pages{suffix}"
    index.write_text(content, encoding="utf-8")
    samples, _ = samples_of(index)
    assert [(sample.number, sample.text) for sample in samples] == [(1, pairs[0][1]), (2, "b")]
    assert open_source(str(index)).num_rows == 2


def test_broken_lines_of_an_index_cost_themselves_alone(tmp_path):
    write_pages(tmp_path, 1)
    lines = ['{"image": "p00.png", "text": "a"}', "{broken", "[]", '{"image": "p00.png", "text": "b"}']
    (tmp_path / "index.jsonl").write_text("\n".join(lines), encoding="utf-8")
    samples, rejected = samples_of(tmp_path)
    assert [sample.text for sample in samples] == ["a", "b"]
    assert [(row.number, row.name) for row in rejected.broken] == [(2, "index.jsonl line 2"), (3, "index.jsonl line 3")]

    (tmp_path / "index.jsonl").unlink()
    (tmp_path / "index.csv").write_bytes(b"image,text\np00.png,a\np00.png\np00.png,a,b\np00.png,M\xfcller\np00.png,b\n")
    samples, rejected = samples_of(tmp_path)
    assert [sample.text for sample in samples] == ["a", "b"]
    assert [(row.number, row.code) for row in rejected.broken] == [
        (2, RowCode.ROW_UNREADABLE),
        (3, RowCode.ROW_UNREADABLE),
        (4, RowCode.TEXT_NOT_TEXT),
    ]


def test_paths_may_not_leave_the_folder(tmp_path):
    write_pages(tmp_path / "in", 1)
    drawn("secret").save(tmp_path / "secret.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    paths = [
        "../secret.png",
        str(tmp_path / "secret.png"),
        "link.png",
        "none.png",
        "a\0b",
        str(tmp_path / "in/p00.png"),
    ]
    lines = "\n".join(json.dumps({"image": path, "text": "a"}) for path in paths)
    (tmp_path / "in" / "index.jsonl").write_text(lines, encoding="utf-8")
    samples, rejected = samples_of(tmp_path / "in")
    assert [sample.number for sample in samples] == [6]
    assert [row.code for row in rejected.broken] == [RowCode.IMAGE_OUTSIDE] * 3 + [RowCode.IMAGE_MISSING] * 2
    samples, rejected = samples_of(tmp_path / "in" / "index.jsonl", image_root=tmp_path)
    assert [sample.number for sample in samples] == [2, 6]  # a path is relative to the root that is given


def test_texts_may_stand_in_files_of_their_own(tmp_path):
    write_pages(tmp_path, 1, "text")
    (tmp_path / "index.jsonl").write_text('{"image": "p00.png", "text": "p00.txt"}\n{"image": "p00.png", "text": "no"}')
    samples, rejected = samples_of(tmp_path, Columns(text_is_file=True))
    assert [sample.text for sample in samples] == ["text 0"]
    assert [row.code for row in rejected.broken] == [RowCode.TEXT_MISSING]


@pytest.fixture
def parquet(tmp_path):
    """Two files, five row groups, twelve rows: bytes, the same as a struct, and paths."""
    drawn("path").save(tmp_path / "on-disk.png")
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("text", pa.string())])
    for file, numbers in (("train-00000.parquet", range(9)), ("test-00000.parquet", range(9, 12))):
        rows = [
            {
                "image": {"bytes": None, "path": "on-disk.png"} if number == 3
                else {"bytes": encoded(drawn(str(number))), "path": None},
                "text": f"text {number}",
            }
            for number in numbers
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / file, row_group_size=2)
    return tmp_path


def test_parquet_rows_have_the_split_of_their_file(parquet):
    samples, rejected = samples_of(parquet)
    assert rejected.num_broken == 0
    assert [sample.split for sample in samples] == ["test"] * 3 + ["train"] * 9
    assert [sample.number for sample in samples] == list(range(1, 13))
    chosen = list(read_samples(open_source(str(parquet)), Columns(), RejectedRows(), split="test"))
    assert [sample.text for sample in chosen] == ["text 9", "text 10", "text 11"]
    test = open_source(str(parquet), SourceOptions(split="test"))
    assert test.num_rows == 3
    assert [row.fields["text"] for row in test.rows()] == ["text 9", "text 10", "text 11"]
    with pytest.raises(DataError, match="holds no rows"):
        open_source(str(parquet), SourceOptions(split="validation"))


def test_plain_bytes_and_lists_of_images_are_read(tmp_path):
    images = [encoded(drawn("a")), encoded(drawn("b"))]
    pq.write_table(pa.table({"images": [images, images[:1]], "text": ["two", "one"]}), tmp_path / "x.parquet")
    samples, _ = samples_of(tmp_path / "x.parquet")
    assert [len(sample.images) for sample in samples] == [2, 1]


def test_a_damaged_row_group_costs_its_rows_alone(parquet):
    file = parquet / "train-00000.parquet"
    data = bytearray(file.read_bytes())
    start = pq.ParquetFile(file).metadata.row_group(2).column(0).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    file.write_bytes(bytes(data))
    samples, rejected = samples_of(parquet)
    assert len(samples) == 10
    assert [row.number for row in rejected.broken] == [8, 9]


def test_a_file_that_is_no_parquet_is_refused_by_name(parquet):
    (parquet / "zz.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(DataError, match=r"zz\.parquet cannot be read") as refused:
        open_source(str(parquet))
    assert refused.value.code is DataCode.SOURCE_UNREADABLE


@pytest.mark.parametrize("count", [1, 2, 3, 5, 30])
@pytest.mark.parametrize("seed", [None, 4])
def test_parts_are_disjoint_and_whole(parquet, tmp_path_factory, count, seed):
    folder = write_pages(tmp_path_factory.mktemp("pages"), 13)
    for source in (open_source(str(parquet)), open_source(str(folder))):
        parts = [names_of(source, part=Part(index, count), seed=seed) for index in range(count)]
        assert sorted(chain.from_iterable(parts)) == sorted(names_of(source))


def test_the_same_seed_gives_the_same_order_and_another_another(parquet):
    source = open_source(str(parquet))
    assert names_of(source, seed=1) == names_of(source, seed=1)
    assert names_of(source, seed=1) != names_of(source, seed=2)
    assert names_of(source, seed=1) != names_of(source)


@pytest.mark.parametrize("start", [0, 1, 2, 5, 11, 12, 20])
def test_passing_over_rows_gives_the_rest(parquet, start):
    source = open_source(str(parquet))
    for options in ({}, {"seed": 1}, {"part": Part(1, 2)}, {"part": Part(3, 20)}):
        assert names_of(source, start=start, **options) == names_of(source, **options)[start:]


def test_parts_of_ranks_and_workers_are_numbered_through():
    assert [Part.of(rank, 2, worker, 3).index for rank in range(2) for worker in range(3)] == list(range(6))
    with pytest.raises(ValueError, match="no part 2 of 2"):
        Part(2, 2)


def test_a_name_of_a_text_file_is_not_taken_for_the_text(tmp_path):
    write_pages(tmp_path, 1)
    texts = ["p00.txt", "p99.txt", f"{'x' * 300}.txt", "\0.txt"]
    rows = [json.dumps({"image": "p00.png", "text": text}) for text in texts]
    (tmp_path / "index.jsonl").write_text("\n".join(rows))
    samples, rejected = samples_of(tmp_path)
    assert [sample.text for sample in samples] == texts[1:3]
    assert [row.number for row in rejected.broken] == [1, 4]
    assert "--text-is-file" in rejected.broken[0].reason


def test_missing_columns_are_named_with_what_there_is(parquet):
    columns = open_source(str(parquet)).columns
    with pytest.raises(DataError, match=r"no column 'txt'.*image, text.*--text-column.*did you mean text"):
        Columns(text="txt").resolved(columns)
    with pytest.raises(DataError, match="no column is named image or images"):
        Columns().resolved(("a", "text"))
    assert Columns().resolved(("a", "text"), needs_image=False).image is None
    assert Columns().resolved(columns) == Columns("image", "text", "text", "split")


def test_what_is_no_source_is_refused_with_what_would_be(tmp_path):
    for spec in (tmp_path / "none", "http://127.0.0.1/x.zip"):
        with pytest.raises(DataError, match="OWNER/NAME") as refused:
            open_source(str(spec))
        assert refused.value.code is DataCode.SOURCE_MISSING
    with pytest.raises(DataError) as refused:
        open_source(str(tmp_path))
    assert refused.value.code is DataCode.SOURCE_EMPTY
    (tmp_path / "x.csv").write_text("image,text\n")
    with pytest.raises(DataError, match="no row"):
        open_source(str(tmp_path / "x.csv"))


def test_a_fingerprint_follows_the_files(tmp_path):
    write_pages(tmp_path, 2)
    first = open_source(str(tmp_path)).fingerprint()
    assert open_source(str(tmp_path)).fingerprint() == first
    (tmp_path / "p00.txt").write_text("changed")
    assert open_source(str(tmp_path)).fingerprint() != first


def test_a_source_broken_from_its_start_is_refused_early_and_one_broken_late_is_not():
    early, late = RejectedRows(0.01), RejectedRows(0.01)
    row = BrokenRow(1, "x", RowCode.TEXT_EMPTY, "empty")
    for _ in range(EARLY_ROWS - 1):
        early.skip(row)
    with pytest.raises(DataError, match="200 of 200"):
        early.skip(row)
    for _ in range(EARLY_ROWS):
        late.take()
    for _ in range(3 * EARLY_ROWS):
        late.skip(row)
    with pytest.raises(DataError, match="600 of 800"):
        late.check()


def test_errors_of_rows_carry_code_and_reason():
    error = RowError(RowCode.TEXT_EMPTY, "the text is empty")
    assert (error.code, str(error)) == ("text_empty", "the text is empty")
    assert isinstance(Row(1, "a", {}), Row)
