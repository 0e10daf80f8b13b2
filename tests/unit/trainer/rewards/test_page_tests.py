"""Tests of a page's text: what they accept, what they are made of, files of them."""

from __future__ import annotations

import json

import pytest

from trainer.rewards.page_tests import (
    Absent,
    Answer,
    Cell,
    Order,
    Present,
    derive_tests,
    load_tests,
    passed_ratio,
    tables_of,
)
from trainer.training.errors import TrainingCode, TrainingError

TRUTH = """Invoice 2041
Paid by the end of March

| item | price |
|---|---|
| lamp | 12.50 |
| desk | 230.00 |

Thank you for your order"""


@pytest.mark.parametrize(
    ("test", "passing", "failing"),
    [
        (Present("end of March"), "by the end\n of March", "by the end of May"),
        (Present("end of March", max_diffs=1), "by the end of Narch", "by the erd of Narch"),
        (Absent("Page 3"), "text alone", "text Page 3"),
        (Order("Invoice", "Thank you"), "Invoice 1. Thank you", "Thank you. Invoice 1"),
        (Order("Invoice", "Thank you"), "Invoice Thank you", "Invoice"),
    ],
)
def test_a_test_passes_where_the_text_has_it(test, passing, failing):
    assert test.passes(Answer.of(passing))
    assert not test.passes(Answer.of(failing))


def test_a_cell_is_where_its_neighbours_say():
    cell = Cell("12.50", (("left", "lamp"), ("up", "price")))
    assert cell.passes(Answer.of(TRUTH))
    assert not cell.passes(Answer.of(TRUTH.replace("| lamp | 12.50 |", "| 12.50 | lamp |")))
    html = "<table><tr><th>item</th><th>price</th></tr><tr><td>lamp<td>12.50</table>"
    assert cell.passes(Answer.of(html))


def test_spanned_cells_are_in_each_of_their_places():
    html = '<table><tr><td colspan="2">a</td></tr><tr><td rowspan=2>b</td><td>c</td></tr><tr><td>d</td></tr></table>'
    assert list(tables_of(html)) == [[["a", "a"], ["b", "c"], ["b", "d"]]]
    assert list(tables_of('<table><tr><td colspan="99999999">a</td>')) == [[["a"] * 100]]


@pytest.mark.parametrize("truth", [TRUTH, "one", "", "same line\nsame line\nanother", "| a | b |\n|--|--|\n| c | d |"])
def test_the_truth_passes_the_tests_made_of_it(truth):
    assert passed_ratio(derive_tests(truth), truth) == 1


def test_tests_made_of_a_truth_see_lines_lost_moved_and_cells_swapped():
    tests = derive_tests(TRUTH)
    lost = TRUTH.replace("Paid by the end of March\n", "")
    moved = "Thank you for your order\n" + TRUTH.replace("Thank you for your order", "")
    swapped = TRUTH.replace("12.50", "x").replace("230.00", "12.50").replace("x", "230.00")
    assert all(passed_ratio(tests, text) < 1 for text in (lost, moved, swapped, ""))


def test_a_file_as_olmocr_bench_has_it_is_read(tmp_path):
    rows = [
        {"pdf": "a.pdf", "page": 1, "id": "1", "type": "present", "text": "Total  due", "max_diffs": 2},
        {"pdf": "a.pdf", "page": 1, "id": "2", "type": "absent", "text": "Page 3"},
        {"page": "b.png", "type": "order", "before": "first", "after": "second"},
        {"page": "b.png", "type": "table", "cell": "4", "up": "price", "left": None, "heading": "x"},
    ]
    path = tmp_path / "tests.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    assert load_tests(path) == {
        "a.pdf": (Present("Total due", 2), Absent("Page 3")),
        "b.png": (Order("first", "second"), Cell("4", (("up", "price"),))),
    }


@pytest.mark.parametrize("line", ["{", "[]", '{"page": "a", "type": "math"}', '{"type": "present", "text": "a"}'])
def test_a_line_that_is_no_test_is_named(tmp_path, line):
    path = tmp_path / "tests.jsonl"
    path.write_text(f"\n{line}\n", encoding="utf-8")
    with pytest.raises(TrainingError, match="line 2") as refused:
        load_tests(path)
    assert refused.value.code is TrainingCode.OPTION_INVALID
    with pytest.raises(TrainingError, match="cannot be read"):
        load_tests(tmp_path / "none.jsonl")
