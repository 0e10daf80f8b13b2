"""TEDS against values computed by hand, and the tables of a page matched with those of a reading."""

from __future__ import annotations

import io
import sys

import pytest

from tests.support.evaluation import TableReader, write_set
from trainer.evaluation.run import evaluate
from trainer.evaluation.samples import load_set
from trainer.evaluation.teds import TableScore, TedsScorer, has_tables, pairs, tree_of, with_teds
from trainer.evaluation.text_tables import text_tables
from trainer.reading.protocol import ReaderError

TRUTH = "<table><tr><td>lamp</td><td>12.50</td></tr><tr><td>desk</td><td>9.00</td></tr></table>"
"""Six nodes below the root: two rows and four cells."""
OTHER = "<table><tr><td>Monday</td><td>closed</td></tr></table>"


def html(*rows):
    return "<table>" + "".join(f"<tr>{''.join(row)}</tr>" for row in rows) + "</table>"


@pytest.mark.parametrize(
    ("reading", "teds", "structure"),
    [
        (TRUTH, 1, 1),
        ("| lamp | 12.50 |\n|---|---|\n| desk | 9.00 |", 1, 1),
        (TRUTH.replace("td>", "th>"), 1, 1),
        # One of four letters.
        (TRUTH.replace("lamp", "camp"), 1 - (1 / 4) / 6, 1),
        # A text that is missing costs as much as a cell.
        (TRUTH.replace("lamp", ""), 1 - 1 / 6, 1),
        # One cell is gone.
        (html(["<td>lamp</td>", "<td>12.50</td>"], ["<td>desk</td>"]), 1 - 1 / 6, 1 - 1 / 6),
        # A row and its two cells are gone.
        (html(["<td>lamp</td>", "<td>12.50</td>"]), 1 - 3 / 6, 1 - 3 / 6),
        # A row with two cells more: nine nodes.
        (TRUTH.replace("</table>", "<tr><td>a</td><td>b</td></tr></table>"), 1 - 3 / 9, 1 - 3 / 9),
        # A cell that spans two replaces two: one is deleted, the other's span differs.
        (TRUTH.replace("<td>lamp</td><td>12.50</td>", "<td colspan=2>lamp</td>"), 1 - 2 / 6, 1 - 2 / 6),
        ("", 0, 0),
    ],
)
def test_the_score_is_the_one_that_the_paper_defines(reading, teds, structure):
    (score,) = TedsScorer().score_page(TRUTH, reading)
    assert (score.teds, score.structure) == (pytest.approx(teds), pytest.approx(structure))


def test_tables_are_matched_by_their_texts_and_each_once():
    scorer = TedsScorer()
    assert scorer.score_page(TRUTH + OTHER, OTHER + TRUTH) == [TableScore(1, 1)] * 2
    assert scorer.score_page(TRUTH + TRUTH, TRUTH) == [TableScore(1, 1), TableScore(0, 0)]
    assert scorer.score_page(TRUTH, OTHER + TRUTH) == [TableScore(1, 1)]
    assert pairs(text_tables(TRUTH), text_tables(OTHER + TRUTH)) == [(0, 1)]


def test_a_tree_has_rows_spans_and_only_what_xml_can_hold():
    (table,) = text_tables("<table><thead><tr><th colspan=2 rowspan=3>a\x00 & b</th></tr></thead></table>")
    assert tree_of(table) == b'<table><tr><td colspan="2" rowspan="3">a &amp; b</td></tr></table>'


def test_a_tier_has_the_mean_over_its_tables_and_pages_without_one_do_not_count(tmp_path):
    pages = [
        ("a.png", "page", TRUTH + OTHER),
        ("b.png", "page", TRUTH),
        ("c.png", "page", "no table"),
        ("d.png", "line", "no table"),
    ]
    sample_set = load_set(write_set(tmp_path / "set", pages))
    reader = TableReader("r", {"a.png": TRUTH, "b.png": TRUTH.replace("lamp", ""), "c.png": "", "d.png": TRUTH})
    result, read = evaluate([sample_set], [reader], io.StringIO())
    assert has_tables([sample_set])
    assert not has_tables([load_set(tmp_path / "set", tiers=["line"])])
    tiers = with_teds(result, read, TedsScorer()).readers[0].tiers
    assert tiers["page"].tables == 3
    assert tiers["page"].teds == pytest.approx((1 + 0 + 5 / 6) / 3)
    assert tiers["page"].teds_structure == pytest.approx(2 / 3)
    # Resamples are of one page twice, or both.
    assert tiers["page"].intervals["teds"] == (pytest.approx(1 / 2), pytest.approx(5 / 6))
    assert (tiers["line"].tables, tiers["line"].teds) == (None, None)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "docling_metrics_table.utils.teds", None)
    with pytest.raises(ReaderError, match=r"deepsynth-ocr\[trainer\].*--no-teds"):
        TedsScorer()
