from __future__ import annotations

import pytest

from service.errors import InvalidFieldError
from service.ocr.outcome import PageStatus
from service.ocr.reader import PageResult
from service.ocr.tables import TableFormat
from service.routes.mistral import find_figures, pages_from_zero, take_apart
from shared.deepseek_ocr.grounding import parse_grounded


def page_of(number: int, answer: str) -> PageResult:
    grounded = parse_grounded(answer, 1000, 1000)
    return PageResult(number, PageStatus.OK, 1000, 1000, grounded.text, grounded.regions)


def tag(label: str, box: str = "[[0, 0, 99, 49]]") -> str:
    return f"<|ref|>{label}<|/ref|><|det|>{box}<|/det|>\n"


REPORT = f"{tag('title')}# Report\n\n{tag('image')}\n{tag('image_caption')}A ship.\n\n{tag('figure')}\n"
PAGES = [page_of(1, REPORT), page_of(2, "plain"), page_of(3, f"{tag('image')}\n{tag('text')}Last.")]


def test_figures_are_numbered_through_the_document_and_linked_where_they_are():
    figures = find_figures(PAGES, None, 0)
    assert [(figure.name, figure.page) for figure in figures] == [
        ("img-0.jpeg", 1),
        ("img-1.jpeg", 1),
        ("img-2.jpeg", 3),
    ]
    assert take_apart(PAGES[0], figures[:2]).markdown == (
        "# Report\n\n![img-0.jpeg](img-0.jpeg)\n\nA ship.\n\n![img-1.jpeg](img-1.jpeg)"
    )
    assert take_apart(PAGES[2], figures[2:]).markdown == "![img-2.jpeg](img-2.jpeg)\n\nLast."


def test_text_without_figures_is_untouched():
    page = page_of(1, "  as it is \n")
    assert take_apart(page, find_figures([page], None, 0)).markdown == page.text == "  as it is \n"


def test_figures_are_limited_in_number_and_size():
    assert len(find_figures(PAGES, 2, 0)) == 2
    assert find_figures(PAGES, 0, 0) == []
    assert len(find_figures(PAGES, None, 49)) == 3
    assert find_figures(PAGES, None, 50) == []
    assert find_figures([page_of(1, tag("image", "[[5, 5, 5, 90]]"))], None, 0) == []


def test_headers_footers_and_tables_are_taken_out():
    table = "<table><tr><td>a</td><td>b</td></tr></table>"
    page = page_of(
        1,
        f"{tag('header')}Annual report\n\n{tag('title')}# Ships\n\n{tag('table')}{table}\n\n{tag('text')}Below.\n\n"
        f"{tag('footer')}Confidential\n\n{tag('page_number')}7",
    )
    parts = take_apart(page, [], table_format=TableFormat.MARKDOWN, first_table=4, header=True, footer=True)
    assert parts.markdown == "# Ships\n\n[tbl-4.md](tbl-4.md)\n\nBelow."
    assert (parts.header, parts.footer) == ("Annual report", "Confidential\n7")
    assert [(each.name, each.content) for each in parts.tables] == [("tbl-4.md", "| a | b |\n| --- | --- |")]
    for kept in parts.kept:
        length = kept.end - kept.start
        assert page.text[kept.start : kept.end] == parts.markdown[kept.at : kept.at + length]
    as_read = take_apart(page, [], table_format=TableFormat.HTML)
    assert [each.content for each in as_read.tables] == [table]
    assert as_read.markdown.startswith("Annual report\n\n# Ships\n\n[tbl-0.html](tbl-0.html)")
    assert (as_read.header, as_read.footer) == (None, None)


@pytest.mark.parametrize(
    ("pages", "selection"),
    [
        (None, None),
        ([0], "1"),
        ([4, 0, 2], "5,1,3"),
        ("0", "1"),
        ("0,1,2", "1,2,3"),
        ("0-5", "1-6"),
        ("0, 2-4", "1,3-5"),
    ],
)
def test_pages_count_from_zero(pages: list[int] | str | None, selection: str | None):
    assert pages_from_zero(pages) == selection


@pytest.mark.parametrize("pages", [[], "", ",", "-1", "1-", "a", "1;2", "0x1", "999999", "1-2-3"])
def test_pages_that_cannot_be_read_are_refused(pages: list[int] | str):
    with pytest.raises(InvalidFieldError) as caught:
        pages_from_zero(pages)
    assert caught.value.public["field"] == "pages"
