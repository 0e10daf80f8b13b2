"""Real pages from clones: their texts, their halves, and that nothing of a closed page is shown."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from benchmarks.real_pages import (
    Clone,
    RealPage,
    box_text,
    figures_of,
    folded,
    half_of,
    hocr_text,
    list_sha256,
    magazine_pages,
    measure,
    office_pages,
    receipt_pages,
    summary,
)
from trainer.evaluation.samples import Sample
from trainer.evaluation.scores import Reading

HOCR = """<html><head><meta charset="utf-8"></head><body><div class="ocr_page">
<span class="ocr_line" title="bbox 1 1 9 2"><span class="ocrx_word" id="a">Net</span>
<span class='ocrx_word' id="b"><b>to</b>tal</span></span><span class='ocr_line'><span class='ocrx_word'>A&amp;B</span>
<span class='ocrx_word'> </span></span></div></body></html>"""
BOXES = "300,11,360,11,360,29,300,29,7,60\n10,10,90,10,90,30,10,30,TOTAL\n10,50,80,50,80,70,10,70,THANK YOU\n"


def clone(folder: Path, files: Mapping[str, str]) -> Clone:
    """A repository with one commit."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    return Clone(folder)


def test_hocr_gives_the_words_of_each_line():
    assert hocr_text(HOCR) == "Net total\nA&B"


def test_cells_of_a_receipt_on_one_height_are_a_line():
    assert box_text(BOXES) == "TOTAL 7,60\nTHANK YOU"


def test_office_pages_need_both_files_and_were_not_seen(tmp_path):
    names = {"img/a_01.png": "x", "img/filing_01.png": "x", "img/c_01.jpg": "x"}
    truths = {f"ground_truth/{name}.truth.hocr": HOCR for name in ("a_01", "filing_01", "b_01")}
    pages = office_pages(clone(tmp_path, names | truths))
    assert [(page.name, page.image, page.truth) for page in pages] == [("a_01", "img/a_01.png", "Net total\nA&B")]


def test_receipts_are_as_many_of_each_half_and_always_the_same(tmp_path):
    kinds = ["data/img/{:03d}.jpg", "data/box/{:03d}.csv"]
    repository = clone(tmp_path, {kind.format(number): BOXES for number in range(30) for kind in kinds})
    pages = receipt_pages(repository, limit=4)
    assert sorted(page.half for page in pages) == ["closed"] * 4 + ["open"] * 4
    assert all(page.half == half_of(page.name) for page in pages)
    fewer = receipt_pages(repository, limit=3)
    assert len(fewer) == 6
    assert {page.name for page in fewer} < {page.name for page in pages}
    assert list_sha256(pages) == list_sha256(pages[::-1]) != list_sha256(pages[1:])


def test_magazine_pages_have_a_text(tmp_path):
    names = ["1_2.3B.tif", "1_2.3B.txt", "3_4.3B.tif", "b.tif"]
    files = {f"testing/{name}": "Dateline" for name in names}
    assert [page.name for page in magazine_pages(clone(tmp_path, files))] == ["1_2.3B"]


def test_a_clone_without_a_commit_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="not a git repository"):
        Clone(tmp_path).names("img")


def test_words_are_compared_without_case_and_typography():
    assert folded("\u201cThe\u00a0\ufb01rst\u201d \u2014 CAF\u0045\u0301") == '"the first" - caf\u00e9'
    figures = summary([figures_of("TOTAL 7.60 7.60", Reading("7.60 total extra", 2.0))])
    assert (figures["recall"], figures["precision"]) == (0.6667, 0.6667)
    figures = summary([figures_of("a b", Reading("", 1.0)), figures_of("c d", Reading("c d", 3.0))])
    assert figures == {"pages": 2, "words": 4, "recall": 0.5, "precision": 1.0, "cer": 0.5, "seconds_per_page": 2.0}


class Echo:
    """Reads a file's bytes as text."""

    name = "Echo 1"
    details: Mapping[str, str] = {}

    def read(self, samples: Sequence[Sample]) -> Iterator[tuple[int, Reading]]:
        for place, sample in enumerate(samples):
            yield place, Reading(sample.image_path.read_text(encoding="utf-8"), 1.0)


def test_nothing_of_a_closed_page_is_shown_or_kept(tmp_path, capsys):
    repository = clone(tmp_path / "set", {"img/secret.png": "hidden words", "img/plain.png": "shown words"})
    pages = [
        (repository, RealPage("secret", "office", "closed", "img/secret.png", "hidden words")),
        (repository, RealPage("plain", "office", "open", "img/plain.png", "shown letters")),
    ]
    images = tmp_path / "images"
    images.mkdir()
    found = measure(pages, [Echo()], images, tmp_path / "texts")
    assert summary(found["office", "closed", "Echo 1"])["recall"] == 1.0
    assert summary(found["office", "open", "Echo 1"])["recall"] == 0.5
    said = capsys.readouterr()
    assert "secret" not in said.out + said.err
    assert "plain" in said.err
    kept = sorted(path.name for path in (tmp_path / "texts").iterdir())
    assert kept == ["office-plain.Echo.txt", "office-plain.truth.txt"]
    assert not list(images.iterdir())
