from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.ocr.extraction import Cut, Kept, cut_out, tables_of
from service.ocr.outcome import PageStatus
from service.ocr.reader import PageResult
from service.ocr.tables import TableFormat, find_tables

HTML = "<table><tr><td>a</td><td>b</td></tr></table>"
PIPES = "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_a_text_without_cuts_is_untouched() -> None:
    assert cut_out(" as it is\n", []) == (" as it is\n", (Kept(0, 10, 0),))


def test_links_stand_where_something_was() -> None:
    left, kept = cut_out("one\n\ntwo three", [Cut(8, 9), Cut(5, 5, "[x](x)"), Cut(14, 14, "[y](y)")])
    assert left == "one\n\n[x](x)\n\ntwo\n\nthree\n\n[y](y)"
    assert [(each.moved(0, 3), each.moved(9, 14)) for each in kept] == [(0, None), (None, None), (None, 18)]


@given(
    st.text("ab \n", max_size=40),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted), max_size=5),
)
def test_what_is_kept_is_where_it_says(text: str, places: list[list[int]]) -> None:
    cuts = [Cut(min(start, len(text)), min(end, len(text))) for start, end in places]
    left, kept = cut_out(text, cuts)
    removed = {place for cut in cuts for place in range(cut.start, cut.end)}
    stays = "".join(each for place, each in enumerate(text) if place not in removed)
    assert "".join(left.split()) == "".join(stays.split())
    for part in kept:
        assert left[part.at : part.at + part.end - part.start] == text[part.start : part.end]


def test_tables_of_both_forms_are_found_in_order() -> None:
    text = f"Before\n\n{PIPES}\n\nbetween\n\n{HTML} after"
    assert [(each.text, each.form) for each in find_tables(text)] == [
        (PIPES, TableFormat.MARKDOWN),
        (HTML, TableFormat.HTML),
    ]
    page = PageResult(1, PageStatus.OK, 9, 9, text)
    tables = tables_of(page, TableFormat.HTML, 3)
    assert [(each.name, each.is_as_read) for each in tables] == [("tbl-3.html", False), ("tbl-4.html", True)]
    assert [text[each.start : each.end] for each in tables] == [PIPES, HTML]
    assert [each.name for each in tables_of(page, TableFormat.MARKDOWN, 0, [Cut(0, 20)])] == ["tbl-0.md"]


def test_a_table_that_cannot_be_written_in_the_form_stays() -> None:
    text = "<table><tr><td><img src=x></td></tr></table> and <table><tr><td colspan=999>a</td></tr></table>"
    page = PageResult(1, PageStatus.OK, 9, 9, text)
    assert tables_of(page, TableFormat.MARKDOWN, 0) == []
    assert [each.start for each in tables_of(page, TableFormat.HTML, 0)] == [49]
