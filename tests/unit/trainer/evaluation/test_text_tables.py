"""Tables in a text, in both forms, also where they are malformed."""

from __future__ import annotations

import pytest

from trainer.evaluation.text_tables import MAX_PLACES, Side, text_tables


def grids(text, **options):
    return [table.grid() for table in text_tables(text, **options)]


def test_spanned_cells_are_in_each_of_their_places():
    html = '<table><tr><td colspan="2">a</td></tr><tr><td rowspan=2>b</td><td>c</td></tr><tr><td>d</td></tr></table>'
    assert grids(html) == [[["a", "a"], ["b", "c"], ["b", "d"]]]
    assert grids("<table><tr><td rowspan=0>a</td><td>b</td></tr><tr><td>c</td></tr></table>") == [
        [["a", "b"], ["a", "c"]]
    ]


@pytest.mark.parametrize("digits", ["99999999", "9" * 5000])
def test_a_span_that_no_page_has_is_cut(digits):
    assert grids(f'<table><tr><td colspan="{digits}">a</td>') == [[["a"] * 100]]


def test_many_large_spans_do_not_make_a_huge_table():
    (table,) = text_tables("<table>" + "<tr><td colspan=99 rowspan=99>a</td></tr>" * 500)
    assert len(table.covered) < MAX_PLACES + 500


def test_rows_of_different_lengths_are_kept():
    assert grids("<table><tr><td>a<td>b<tr><td>c</table>") == [[["a", "b"], ["c"]]]


def test_a_break_within_a_cell_is_a_space():
    assert grids("<table><tr><td>a<br>b</td></tr></table>") == [[["a b"]]]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("| a | b |\n|---|:-:|\n| c | d |", [[["a", "b"], ["c", "d"]]]),
        ("a | b\n--|--\nc | d", [[["a", "b"], ["c", "d"]]]),
        ("| a |\n|-|\n| - |\n| -- |", [[["a"], ["-"], ["--"]]]),
        (r"| a \| b | c |", [[["a | b", "c"]]]),
        ("| a | |\n| | b |", [[["a", ""], ["", "b"]]]),
        ("a | b\nc | d", []),
        ("|", []),
    ],
)
def test_markdown_has_pipes_at_both_ends_or_a_row_of_dashes(text, found):
    assert grids(text) == found


def test_two_lines_with_pipes_are_enough_where_any_pipes_are():
    assert grids("a | b\nc | d\n\nalone | here", any_pipes=True) == [[["a", "b"], ["c", "d"]]]


def test_neighbours_pass_over_gaps_and_are_one_for_each_row():
    (table,) = text_tables("<table><tr><td rowspan=2>a<td>b<td>c<tr><td>d<td>e</table>")
    a, b, c, *_ = table.cells
    assert [cell.text for cell in table.neighbours(a, Side.RIGHT)] == ["b", "d"]
    assert [cell.text for cell in table.neighbours(c, Side.LEFT)] == ["b"]
    assert table.neighbours(b, Side.UP) == []
    (gapped,) = text_tables("<table><tr><td>a<td>b<tr><td>c<tr><td>d<td>e</table>")
    assert [cell.text for cell in gapped.neighbours(gapped.cells[1], Side.DOWN)] == ["e"]
