"""Sources as evaluation sets: what readers are given, and what is not measured on."""

from __future__ import annotations

import json

import pytest

from tests.support.page_sources import LONG, drawn, write_pages
from trainer.evaluation.samples import Layout, SampleError, is_set
from trainer.evaluation.sources import load_source


@pytest.fixture
def scratch(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def test_pages_of_a_folder_become_files_with_truths(tmp_path, scratch):
    pages = write_pages(tmp_path / "pages", 3)
    found = load_source(str(pages), scratch, None, Layout.LINE)
    assert [(each.name, each.tier, each.layout, each.truth) for each in found.samples] == [
        (f"p0{number}.png", "all", Layout.LINE, f"{LONG} {number}") for number in range(3)
    ]
    originals = [path.read_bytes() for path in sorted(pages.glob("*.png"))]
    assert [each.image_path.read_bytes() for each in found.samples] == originals
    assert found.name == "pages"
    other = load_source(str(pages), scratch, None, Layout.LINE, 2)
    assert len(other.samples) == 2
    assert other.sha256 != found.sha256


def test_a_broken_row_is_an_error(tmp_path, scratch):
    pages = write_pages(tmp_path / "pages", 3)
    (pages / "p01.png").write_bytes(b"no image")
    with pytest.raises(SampleError, match=r"1 of 3 rows .* row 2 \(p01\.png\): .* trainer prepare"):
        load_source(str(pages), scratch, None, Layout.BLOCK)


def test_documents_of_several_pages_are_refused(tmp_path, scratch):
    for name in "ab":
        drawn(name).save(tmp_path / f"{name}.png")
    (tmp_path / "index.jsonl").write_text(json.dumps({"images": ["a.png", "b.png"], "text": "both"}))
    with pytest.raises(SampleError, match="2 images"):
        load_source(str(tmp_path), scratch, None, Layout.BLOCK)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ('\n{"image": "a.png", "text": "a.txt", "tier": "line"}\n', True),
        ('{"image": "a.png", "text": "the text itself"}\n', False),
        ("{broken", False),
        ("[1]", False),
        ("", False),
    ],
)
def test_an_index_with_tiers_is_an_evaluation_set(tmp_path, index, expected):
    assert not is_set(tmp_path)
    (tmp_path / "index.jsonl").write_text(index)
    assert is_set(tmp_path) is expected
