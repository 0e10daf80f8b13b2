"""A whole evaluation with readers that answer from tables, and what is written of it."""

from __future__ import annotations

import io
import json

import pytest

from tests.support.evaluation import TableReader, write_set
from trainer.evaluation.progress import Progress
from trainer.evaluation.run import evaluate, read_all
from trainer.evaluation.samples import load_set
from trainer.evaluation.transcript import write_transcript

PAGES = [("a.png", "line", "abcd"), ("b.png", "page", "<one> two"), ("c.png", "line", "efgh ij")]
GOOD = TableReader("good", {"a.png": "abcd", "b.png": "<one> two", "c.png": "efgh ij"})
BAD = TableReader("bad", {"a.png": "abxd", "b.png": "", "c.png": "efgh ij ij ij"}, unfinished=["c.png"])


@pytest.fixture
def sample_set(tmp_path):
    return load_set(write_set(tmp_path / "held-out", PAGES))


def test_readings_are_scored_against_their_own_page_by_tier(sample_set):
    result, pages = evaluate([sample_set], [BAD, GOOD], io.StringIO())
    bad, good = result.readers
    assert result.tiers == ("line", "page")
    # "abxd" is one edit, " ij ij" six more characters; eleven are due.
    assert bad.tiers["line"].cer == pytest.approx(7 / 11)
    assert bad.tiers["line"].unfinished_ratio == 0.5
    assert bad.tiers["page"].cer == 1.0
    assert good.tiers["line"].exact_ratio == good.tiers["page"].exact_ratio == 1.0
    assert [page.sample.name for page in pages] == ["a.png", "b.png", "c.png"]
    assert (result.sets[0].name, result.sets[0].pages) == ("held-out", 3)


def test_a_reader_that_leaves_pages_out_is_found_out(sample_set):
    class Lazy(TableReader):
        def read(self, samples):
            yield from list(super().read(samples))[1:]

    with pytest.raises(RuntimeError, match="2 of 3"):
        read_all(Lazy("lazy", GOOD._texts), sample_set.samples, io.StringIO())


def test_the_transcript_holds_every_reading(sample_set, tmp_path):
    _, pages = evaluate([sample_set], [BAD, GOOD], io.StringIO())
    write_transcript(tmp_path / "pages.jsonl", pages, ["bad", "good"])
    entries = [json.loads(line) for line in (tmp_path / "pages.jsonl").read_text().splitlines()]
    assert [(entry["file"], entry["truth"]) for entry in entries] == [(name, text) for name, _, text in PAGES]
    assert entries[0]["readings"][0] == {
        "reader": "bad", "text": "abxd", "cer": 0.25, "edits": 1, "characters": 4, "ended": True, "seconds": 0.5,
    }  # fmt: skip


def test_progress_in_a_log_speaks_seldom_but_of_the_end():
    clock = iter([0.0, 1.0, 31.0, 32.0, 40.0])
    stream = io.StringIO()
    progress = Progress("nano", 4, stream, 30.0, lambda: next(clock))
    for _ in range(4):
        progress.advance()
    assert stream.getvalue() == "nano: 2/4 pages, 31 s, 31 s to go\nnano: 4/4 pages, 40 s, 0 s to go\n"
