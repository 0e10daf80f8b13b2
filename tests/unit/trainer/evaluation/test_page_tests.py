"""Tests of a page's text: what they accept, and what they are made of."""

from __future__ import annotations

import pytest

from trainer.evaluation.page_tests import (
    Absent,
    Answer,
    Baseline,
    Cell,
    Order,
    Present,
    derive_tests,
    occurrences,
    passed_ratio,
    plain,
    repeats_at_end,
)
from trainer.evaluation.text_tables import Side

TRUTH = """Invoice 2041
Paid by the end of March

| item | price |
|---|---|
| lamp | 12.50 |
| desk | 230.00 |

Thank you for your order"""
PRICES = "<table><thead><tr><td></td><td colspan=2>price</td></tr></thead><tr><th>lamp</th><td>12</td><td>13</td></tr>\
<tr><th>desk</th><td>230</td><td>240</td></tr></table>"
FAR = "Page 3. " + "word " * 50 + "the end"


@pytest.mark.parametrize(
    ("test", "passing", "failing"),
    [
        (Present("end of March"), "by the **end**\n of March", "by the end of May"),
        (Present("it's 5-6"), "it\u2019s 5\u20136", "its 5-6"),
        (Present("end of March", max_diffs=1), "by the end of Narch", "by the erd of Narch"),
        (Present("a long phrase", max_diffs=2), "a long phrase", " "),
        (Present("Total", is_case_sensitive=False), "TOTAL", "TOTA1"),
        (Present("Page 3", first_n=20), FAR, f"the beginning of it. {FAR}"),
        (Present("the end", last_n=20), FAR, f"{FAR} and more than that"),
        (Absent("Page 3"), "text alone", "text Page 3"),
        (Absent("Page 3"), "", "Page 3"),
        (Absent("Page 3", max_diffs=1), "Pan of three", "Pace 3"),
        (Absent("page 3", is_case_sensitive=False), "page", "PAGE 3"),
        (Absent("the end", first_n=20, last_n=3), FAR, f"the end. {FAR}"),
        (Order("Invoice", "Thank you"), "Invoice 1. Thank you", "Thank you. Invoice 1"),
        (Order("Invoice", "Thank you"), "Invoice Thank you", "Invoice"),
        (Order("b", "a"), "a b a", "a a b"),
        (Order("Invoice", "Thank you", max_diffs=1), "Invoce 1. Thenk you", "Thenk you. Invoce 1"),
        (Baseline(), "one", ". - ."),
        (Baseline(), "a" * 30, "a" * 31),
        (Baseline(), "row of it, " * 40, "abcde" * 31),
        (Baseline(max_repeats=3), "ab ab\nab", "a ab ab ab ab ab"),
        (Baseline(), "plain", "plain \u6f22"),
        (Baseline(is_latin=False), "\u6f22", ""),
        (Baseline(max_length=3), "", "four"),
        (Baseline(max_length=3, skips_images=True), "![a long text](a.png)", "![a](a.png) four"),
    ],
)
def test_a_test_passes_where_the_text_has_it_and_says_why_it_fails(test, passing, failing):
    assert test.failure(Answer(passing)) is None
    assert test.failure(Answer(failing))


@pytest.mark.parametrize(
    ("cell", "passes"),
    [
        (Cell("12.50", ((Side.LEFT, "lamp"), (Side.UP, "price"))), True),
        (Cell("12.50", ((Side.DOWN, "230.00"),)), True),
        (Cell("lamp", ((Side.RIGHT, "12.50"),)), True),
        (Cell("12.50", ((Side.LEFT, "desk"),)), False),
        (Cell("12.50", ((Side.RIGHT, "lamp"),)), False),
        (Cell("13.50"), False),
        (Cell("13.50", max_diffs=1), True),
        (Cell("12.50", ((Side.LEFT, "camp"),), max_diffs=1), True),
        # Half of a cell has to agree, whatever may differ.
        (Cell("xyz", max_diffs=3), False),
        (Cell("230.00", headings=((Side.UP, "price"), (Side.LEFT, "desk"))), True),
        (Cell("230.00", headings=((Side.UP, "12.50"),)), False),
        (Cell("12.50", ignores_markdown=True), False),
    ],
)
def test_a_cell_is_where_its_neighbours_and_headings_say(cell, passes):
    assert (cell.failure(Answer(TRUTH)) is None) is passes


@pytest.mark.parametrize(
    ("cell", "passes"),
    [
        (Cell("240", headings=((Side.UP, "price"), (Side.LEFT, "desk"))), True),
        (Cell("price", ((Side.DOWN, "12"),)), True),
        (Cell("price", ((Side.DOWN, "13"),)), True),
        (Cell("13", ((Side.UP, "price"),)), True),
        # The next cell is another one.
        (Cell("240", ((Side.UP, "price"),)), False),
        (Cell("240", headings=((Side.UP, "lamp"),)), False),
        (Cell("price", ignores_markdown=True), True),
    ],
)
def test_spans_and_heads_of_html_count(cell, passes):
    assert (cell.failure(Answer(PRICES)) is None) is passes


def test_without_headings_the_edge_of_the_table_is_one():
    body = "<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr><tr><td>e</td><td>f</td></tr></table>"
    assert Cell("f", headings=((Side.UP, "b"), (Side.LEFT, "e"))).failure(Answer(body)) is None
    assert Cell("f", headings=((Side.UP, "d"),)).failure(Answer(body))


def test_the_reason_names_what_was_read_instead():
    failure = Cell("12.50", ((Side.LEFT, "desk"),)).failure(Answer(TRUTH))
    assert failure == "'12.50' has 'lamp' as next cell left, not 'desk'"
    assert Cell("9").failure(Answer("text")) == "there is no table"


def test_marks_of_markdown_and_kinds_of_quotes_do_not_count():
    assert plain("**a** _b_<br>c\n\u201cd\u201d \u2014 <b>e</b>\u00b5") == 'a b c "d" - e\u03bc'


def test_occurrences_are_found_with_edits_of_every_kind():
    assert occurrences("abc", "abc xabc abd", 0) == [0, 5]
    assert sorted(occurrences("abcdef", "abcdef, abXdef, abdef, abcXdef, uvwxyz", 1)) == [0, 8, 16, 23]
    assert occurrences("abcdef", "uvwxyz", 1) == occurrences("abcdef", "", 1) == []


def test_repeats_are_counted_at_the_end_alone():
    assert [repeats_at_end("aab aab aab", size) for size in (1, 2, 4)] == [1, 1, 2]
    assert repeats_at_end("ab\n\nab", 1) == 1
    assert repeats_at_end("", 1) == 0


@pytest.mark.parametrize(
    "truth", [TRUTH, PRICES, "one", "", "same line\nsame line\nanother", "| a | b |\n|--|--|\n| c | d |"]
)
def test_the_truth_passes_the_tests_made_of_it(truth):
    assert passed_ratio(derive_tests(truth), truth) == 1


def test_tests_made_of_a_truth_see_lines_lost_moved_and_cells_swapped():
    tests = derive_tests(TRUTH)
    lost = TRUTH.replace("Paid by the end of March\n", "")
    moved = "Thank you for your order\n" + TRUTH.replace("Thank you for your order", "")
    swapped = TRUTH.replace("12.50", "x").replace("230.00", "12.50").replace("x", "230.00")
    assert all(passed_ratio(tests, text) < 1 for text in (lost, moved, swapped, ""))
