"""`prepare --convert-to-images`: texts become pages, whole documents or page by page."""

from __future__ import annotations

import io
import json
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support.fonts import write_font
from trainer.cli import main
from trainer.data.prepare.manifest import load_manifest
from trainer.data.sources.columns import Columns
from trainer.data.sources.rejected_rows import RejectedRows
from trainer.data.sources.resolve import open_source
from trainer.data.sources.samples import read_samples

SENTENCE = "It was day {} of a long summer, and nobody who had been there would speak of it. "
SMALL = ("--page-size", "300x200", "--font-size", "14", "--margin", "10", "--convert-to-images")


def prepare(capsys, *words):
    status = main(["prepare", *map(str, words)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def samples_of(folder):
    return list(read_samples(open_source(str(folder)), Columns(), RejectedRows(0)))


@pytest.fixture
def articles(tmp_path):
    rows = [{"article": SENTENCE.format(n) * (2 * n + 1), "highlights": f"Summary {n}"} for n in range(8)]
    file = tmp_path / "articles.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def test_each_page_of_a_text_is_a_sample_and_pages_of_a_text_share_a_split(tmp_path, articles, capsys):
    words = (articles, *SMALL, "--text-column", "article", "--validation-share", 0.3, "--out", tmp_path / "set")
    status, _, errors = prepare(capsys, *words)
    assert status == 0, errors
    rows = []
    for path in sorted((tmp_path / "set" / "data").iterdir()):
        rows += [
            (row["row"], row["page"], path.name.split("-")[0], row["text"]) for row in pq.read_table(path).to_pylist()
        ]
    assert len(rows) > 12
    for number in range(1, 9):
        mine = sorted(row for row in rows if row[0] == number)
        assert [page for _, page, _, _ in mine] == list(range(1, len(mine) + 1))
        assert len({split for _, _, split, _ in mine}) == 1
        text = " ".join(" ".join(text for _, _, _, text in mine).split())
        assert text == (SENTENCE.format(number - 1) * (2 * number - 1)).strip()
    assert "| pillow-default |" in (tmp_path / "set" / "README.md").read_text()
    manifest = load_manifest(tmp_path / "set")
    assert manifest["request"]["drawing"]["page_size"] == [300, 200]


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_another_text_to_produce_is_asked_of_all_pages_together(tmp_path, articles, capsys, form):
    words = ("--read-column", "article", "--text-column", "highlights", "--validation-share", 0.3, "--format", form)
    assert prepare(capsys, articles, *SMALL, *words, "--out", tmp_path / "set")[0] == 0
    samples = sorted(samples_of(tmp_path / "set"), key=lambda sample: sample.text)
    assert [sample.text for sample in samples] == [f"Summary {n}" for n in range(8)]
    counts = [len(sample.images) for sample in samples]
    assert counts[0] == 1
    assert counts[-1] > 2
    assert all(fewer <= more for fewer, more in pairwise(counts))


def test_workers_and_killed_runs_draw_the_same_pages(tmp_path, articles, capsys):
    words = (articles, *SMALL, "--text-column", "article", "--degraded-share", 0.5, "--validation-share", 0.3)
    sets = []
    for name, workers in (("one", 1), ("two", 2)):
        assert prepare(capsys, *words, "--workers", workers, "--out", tmp_path / name)[0] == 0
        sets.append([(sample.text, sample.images[0].data) for sample in samples_of(tmp_path / name)])
    assert sets[0] == sets[1]
    clean = [Image.open(io.BytesIO(data)) for _, data in sets[0]]
    assert 0 < sum(not set(np.unique(np.asarray(image.convert("L"))[:5])) <= {255} for image in clean) < len(clean)


def test_another_seed_draws_other_pages(tmp_path, articles, capsys):
    words = (articles, *SMALL[:2], "--font-size", "12-20", "--margin", 10, "--convert-to-images", "--text-column")
    for seed in (0, 1):
        extra = ("article", "--seed", seed, "--validation-share", 0.3, "--out", tmp_path / str(seed))
        assert prepare(capsys, *words, *extra)[0] == 0
    assert load_manifest(tmp_path / "0")["fingerprint"] != load_manifest(tmp_path / "1")["fingerprint"]


def test_a_text_with_a_glyph_that_no_font_has_is_left_out_by_name(tmp_path, capsys):
    write_font(tmp_path / "fonts" / "few.ttf", dict.fromkeys("abc ", 500))
    texts = tmp_path / "texts.csv"
    texts.write_text("text\nabc cab\nabc \u05d0\nab\n", encoding="utf-8")
    words = (texts, *SMALL, "--fonts", tmp_path / "fonts", "--validation-share", 0, "--out", tmp_path / "set")
    status, _, errors = prepare(capsys, *words)
    assert status == 2
    assert "row 2 (texts.csv line 3): no font has U+05D0 HEBREW LETTER ALEF" in errors
    assert "[glyph_missing]" in errors
    assert prepare(capsys, *words, "--max-broken-share", 0.5)[0] == 0
    assert [sample.text for sample in samples_of(tmp_path / "set")] == ["abc cab", "ab"]


def test_a_text_longer_than_the_pages_allowed_is_left_out(tmp_path, articles, capsys):
    words = (articles, *SMALL, "--text-column", "article", "--max-pages", 1, "--validation-share", 0)
    status, _, errors = prepare(capsys, *words, "--out", tmp_path / "set")
    assert (status, "more than 1 pages: see --max-pages" in errors) == (2, True)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--fonts", "{tmp}/none"), "fonts_missing"),
        (("--page-size", "100x100"), "options_conflict"),
        (("--read-column", "artikle"), "column_missing"),
    ],
)
def test_what_cannot_be_drawn_is_known_before_the_first_row(tmp_path, articles, capsys, words, code):
    given = [word.format(tmp=tmp_path) for word in words]
    status, _, errors = prepare(
        capsys, articles, "--convert-to-images", "--text-column", "article", *given, "--out", tmp_path / "set"
    )
    assert (status, f"[{code}]" in errors) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["articles.jsonl"]


@pytest.mark.parametrize("flag", [("--font-size", "3"), ("--font-size", "30-20"), ("--page-size", "0x9")])
def test_impossible_sizes_are_refused_by_the_flag(tmp_path, articles, capsys, flag):
    with pytest.raises(SystemExit):
        prepare(capsys, articles, *flag, "--out", tmp_path / "set")
