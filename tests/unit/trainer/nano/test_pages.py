import json

import numpy as np
from PIL import Image

from trainer.evaluation.page_test_file import load_page_tests
from trainer.evaluation.page_tests import passed_ratio
from trainer.evaluation.samples import load_set
from trainer.nano.pages.evaluation_set import build_evaluation_set, contact_sheet
from trainer.nano.pages.render import PageRenderer, Tier

FEW = {"line": 3, "degraded-block": 2}


def test_every_page_has_image_truth_and_index_row(fonts_dir, corpus_dir, tmp_path):
    counts = build_evaluation_set(fonts_dir, corpus_dir, tmp_path / "set", per_tier=FEW)
    rows = [json.loads(line) for line in (tmp_path / "set" / "index.jsonl").read_text().splitlines()]
    assert [row["tier"] for row in rows] == ["line"] * 3 + ["degraded-block"] * 2
    for row in rows:
        with Image.open(tmp_path / "set" / row["image"]) as image:
            assert image.size == (row["width_px"], row["height_px"])
        assert (tmp_path / "set" / row["text"]).read_text().strip()
        assert bool(row["effects"]) is row["tier"].startswith("degraded")
    texts = [(tmp_path / "set" / row["text"]).read_text().removesuffix("\n") for row in rows[:3]]
    assert counts["line"] == sum(map(len, texts))


def test_the_set_is_the_same_each_time(fonts_dir, corpus_dir, tmp_path):
    for name in ("first", "second"):
        build_evaluation_set(fonts_dir, corpus_dir, tmp_path / name, per_tier=FEW)
    files = [path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file()]
    assert len(files) == 12
    assert all((tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes() for file in files)


def test_pages_with_tables_are_drawn_if_asked_for_and_tests_name_every_page(fonts_dir, corpus_dir, tmp_path):
    build_evaluation_set(fonts_dir, corpus_dir, tmp_path / "set", per_tier={"line": 1, "table": 2})
    pages = load_set(tmp_path / "set").samples
    assert [(page.tier, page.layout) for page in pages] == [("line", "line"), ("table", "page"), ("table", "page")]
    tests = load_page_tests([tmp_path / "set" / "page-tests.jsonl"])
    assert {str(page) for page in tests.pages} <= {page.name for page in pages}
    for page in pages:
        of_page = tests.of_sample(page.name)
        assert passed_ratio(of_page, page.truth) == 1
        assert not of_page or passed_ratio(of_page, "") == 0


def test_lines_of_codes_are_drawn_if_asked_for(fonts_dir, corpus_dir, tmp_path):
    build_evaluation_set(fonts_dir, corpus_dir, tmp_path / "set", per_tier={"code": 12})
    pages = load_set(tmp_path / "set").samples
    assert {(page.tier, page.layout) for page in pages} == {("code", "line")}
    assert len({page.truth for page in pages}) == 12
    assert all(page.truth.isascii() for page in pages)
    assert sum(any(map(str.isdigit, page.truth)) for page in pages) > 8


def test_degraded_blocks_still_fit_into_one_view(fonts_dir, corpus_dir, tmp_path):
    build_evaluation_set(fonts_dir, corpus_dir, tmp_path / "set", per_tier={"degraded-block": 6})
    for path in (tmp_path / "set" / "degraded-block").glob("*.png"):
        with Image.open(path) as image:
            assert max(image.size) <= 640


def test_a_contact_sheet_shows_every_page(library, corpus):
    renderer = PageRenderer(library, corpus, 1)
    pages = [renderer.render(Tier.LINE) for _ in range(5)]
    sheet = np.asarray(contact_sheet(pages, columns=2))
    assert (sheet == 0).sum() >= sum((page.ink == 0).sum() for page in pages)
