"""WebDataset shards, local and over HTTP, and Hugging Face data sets, saved and streaming."""

from __future__ import annotations

import functools
import http.server
import io
import itertools
import json
import tarfile
import threading

import datasets
import pytest

from tests.support.page_sources import drawn, encoded, names_of, rows_of
from trainer.data.errors import DataCode, DataError, RowCode
from trainer.data.sources import webdataset
from trainer.data.sources.columns import Columns
from trainer.data.sources.protocol import Part, Row
from trainer.data.sources.rejected_rows import RejectedRows
from trainer.data.sources.resolve import SourceOptions, open_source
from trainer.data.sources.samples import read_samples
from trainer.data.sources.webdataset import expand_braces


def samples_of(spec, **options):
    rejected = RejectedRows()
    source = open_source(str(spec), SourceOptions(**options))
    return list(read_samples(source, Columns(), rejected)), rejected


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path):
    """Three shards of four rows."""
    for shard in range(3):
        members = []
        for row in range(4):
            key = f"dir/{shard}{row}"
            members += [(f"{key}.PNG", encoded(drawn(key))), (f"{key}.txt", f"text {shard}{row}".encode())]
        write_tar(tmp_path / f"pages-{shard:03d}.tar", members)
    return tmp_path


def test_members_of_one_key_are_a_row(shards):
    samples, rejected = samples_of(shards)
    assert [sample.text for sample in samples] == [f"text {shard}{row}" for shard in range(3) for row in range(4)]
    assert samples[5].name == "pages-001.tar:dir/11"
    assert rejected.num_broken == 0
    named, _ = samples_of(f"{shards}/pages-{{000..001}}.tar")
    assert len(named) == 8
    (shards / "pages-000.tar").rename(shards / "test-000.tar")
    (shards / "pages-001.tar").rename(shards / "train-001.tar")
    names = names_of(open_source(str(shards), SourceOptions(split="test")))
    assert {name.split(":")[0] for name in names} == {"pages-002.tar", "test-000.tar"}


def test_several_images_and_json_texts_are_read(tmp_path):
    pages = [encoded(drawn(str(number))) for number in range(11)]
    members = [(f"a.{number}.png", page) for number, page in enumerate(pages)]
    # Ten comes after two, as numbers do.
    members.sort()
    members.append(("a.json", b'{"text": "all pages", "source": "x"}'))
    write_tar(tmp_path / "x.tar", members)
    (sample,), _ = samples_of(tmp_path / "x.tar")
    assert [image.data for image in sample.images] == pages
    assert sample.text == "all pages"


def test_broken_members_cost_their_row_and_a_cut_shard_what_is_left_of_it(tmp_path, shards):
    page = encoded(drawn("x", (300, 300), "RGB"), "PNG", compress_level=0)
    members = [("a.png", page), ("a.txt", b"a"), ("b.png", b"none"), ("b.txt", b"b"), ("c.png", page)]
    members += [
        ("d.png", page),
        ("d.txt", b"\xff"),
        ("e.png", page),
        ("e.json", b"{"),
        ("f.png", page),
        ("f.txt", b"f"),
    ]
    file = write_tar(tmp_path / "zz.tar", members)
    _, rejected = samples_of(file)
    assert {row.name: row.code for row in rejected.broken} == {
        "zz.tar:b": RowCode.IMAGE_FORMAT,
        "zz.tar:c": RowCode.TEXT_MISSING,
        "zz.tar:d": RowCode.TEXT_NOT_TEXT,
        "zz.tar:e": RowCode.ROW_UNREADABLE,
    }
    file.write_bytes(file.read_bytes()[: len(page) * 4])
    samples, rejected = samples_of(shards)
    assert len(samples) == 13
    assert rejected.broken[-1].code is RowCode.ROW_UNREADABLE
    assert "breaks off here" in rejected.broken[-1].reason
    (shards / "zzz.tar").write_bytes(b"no archive at all" * 100)
    assert len(samples_of(shards)[0]) == 13


def test_links_and_devices_in_an_archive_are_nothing(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in (("a.txt", tarfile.SYMTYPE), ("b.txt", tarfile.LNKTYPE), ("c.txt", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    with pytest.raises(DataError) as refused:
        samples_of(tmp_path / "x.tar")
    assert refused.value.code is DataCode.SOURCE_EMPTY


@pytest.mark.parametrize("count", [1, 2, 3, 4, 15])
@pytest.mark.parametrize("seed", [None, 7])
def test_shards_are_split_by_rank_and_worker(shards, count, seed):
    source = open_source(str(shards))
    parts = [names_of(source, part=Part(index, count), seed=seed) for index in range(count)]
    assert sorted(itertools.chain.from_iterable(parts)) == names_of(source)
    if count in {2, 3}:
        owners = {}
        for index, part in enumerate(parts):
            for name in part:
                owners.setdefault(name.split(":")[0], set()).add(index)
        assert all(len(each) == 1 for each in owners.values())


def test_shuffling_crosses_shards_and_repeats(shards):
    source = open_source(str(shards))
    orders = [names_of(source, seed=seed) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert [name.split(":")[0] for name in orders[0]] != sorted(name.split(":")[0] for name in orders[0])
    assert names_of(source, seed=1, start=5) == orders[0][5:]


def test_braces_stand_for_numbers():
    assert expand_braces("a{08..11}/{0..1}.tar")[:3] == ["a08/0.tar", "a08/1.tar", "a09/0.tar"]
    assert expand_braces("plain") == ["plain"]


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files; the first request for each of them fails where `stumbles` says so."""

    stumbles: set[str] = set()  # noqa: RUF012 - shared by all requests on purpose

    def do_GET(self):
        if self.path in self.stumbles:
            self.stumbles.discard(self.path)
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def served(shards, monkeypatch):
    monkeypatch.setattr(webdataset, "HTTP_PAUSE_S", 0.01)
    handler = functools.partial(Handler, directory=str(shards))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_shards_come_over_http_and_a_stumbling_server_is_asked_again(served, shards):
    spec = f"{served}/pages-{{000..002}}.tar"
    Handler.stumbles.add("/pages-001.tar")
    samples, rejected = samples_of(spec)
    assert [sample.images[0].data for sample in samples] == [sample.images[0].data for sample in samples_of(shards)[0]]
    assert rejected.num_broken == 0
    source = open_source(spec)
    assert source.fingerprint() == open_source(spec).fingerprint()
    (shards / "pages-001.tar").unlink()
    samples, rejected = samples_of(spec)
    assert len(samples) == 8
    assert "the server answers 404" in rejected.broken[0].reason
    with pytest.raises(DataError, match="404"):
        source.fingerprint()


@pytest.fixture
def saved(tmp_path):
    """A saved data set with two splits; the image's bytes, its file and none at all."""
    drawn("file").save(tmp_path / "file.png")
    page = encoded(drawn("bytes"), "JPEG")
    features = datasets.Features({"page": datasets.Image(), "words": datasets.Value("string")})
    rows = {
        "page": [{"bytes": page, "path": None}, {"bytes": None, "path": str(tmp_path / "file.png")}, None],
        "words": ["a", "b", "c"],
    }
    train = datasets.Dataset.from_dict(rows, features=features)
    test = datasets.Dataset.from_dict({"page": [{"bytes": page, "path": None}], "words": ["d"]}, features=features)
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved", page


def test_a_saved_data_set_keeps_bytes_and_splits(saved):
    folder, page = saved
    source = open_source(str(folder))
    assert source.columns == ("page", "words", "split")
    assert source.num_rows == 4
    rejected = RejectedRows()
    samples = list(read_samples(source, Columns(image="page", text="words"), rejected))
    assert [(sample.text, sample.split) for sample in samples] == [("a", "train"), ("b", "train"), ("d", "test")]
    assert samples[0].images[0].data == page
    assert [(row.number, row.code) for row in rejected.broken] == [(3, RowCode.IMAGE_MISSING)]
    assert source.fingerprint() == open_source(str(folder)).fingerprint()
    assert [row.number for row in source.rows(start=2)] == [3, 4]
    assert open_source(str(folder), SourceOptions(split="test")).num_rows == 1


def test_a_damaged_saved_data_set_is_refused(saved):
    (saved[0] / "train" / "state.json").write_text("{")
    with pytest.raises(DataError) as refused:
        open_source(str(saved[0]))
    assert refused.value.code is DataCode.SOURCE_UNREADABLE


def write_repository(folder):
    """What a data set's repository looks like: an index beside images, in two files of a split."""
    for shard in range(2):
        lines = [json.dumps({"text": f"text {shard}{row}", "note": None}) for row in range(3)]
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "data" / f"train-{shard}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_is_read_whole_or_as_a_stream(tmp_path, monkeypatch, streaming):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = write_repository(tmp_path / "repository")
    source = open_source(f"hf:{folder}", SourceOptions(streaming=streaming))
    assert source.name == "repository"
    assert source.num_rows == (None if streaming else 6)
    rows = rows_of(source)
    assert [row.fields["text"] for row in rows] == [f"text {shard}{row}" for shard in range(2) for row in range(3)]
    assert {row.fields["split"] for row in rows} == {"train"}
    parts = [rows_of(source, part=Part(index, 2), seed=3) for index in range(2)]
    assert sorted(row.fields["text"] for part in parts for row in part) == [row.fields["text"] for row in rows]
    assert source.fingerprint() == open_source(f"hf:{folder}", SourceOptions(streaming=streaming)).fingerprint()


def test_a_stream_that_breaks_off_is_reported_and_ends(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = write_repository(tmp_path / "repository")
    (folder / "data" / "train-1.jsonl").write_text('{"text": "whole"}\n{"text": brok')
    rows = list(open_source(f"hf:{folder}", SourceOptions(streaming=True)).rows())
    assert [row.fields["text"] for row in rows if isinstance(row, Row)][:3] == ["text 00", "text 01", "text 02"]
    assert "breaks off" in rows[-1].reason


def test_a_data_set_that_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match="cannot be opened") as refused:
        open_source(f"hf:{tmp_path / 'none'}")
    assert refused.value.code is DataCode.SOURCE_MISSING
