"""Drawn papers: court papers, invoices, tables; what their truth says is what they show."""

from collections import Counter
from random import Random

import numpy as np
import pytest

from trainer.nano.fonts.glyphs import GlyphSet
from trainer.nano.pages.court import CourtRenderer
from trainer.nano.pages.invoices import InvoiceRenderer
from trainer.nano.pages.layout import Sheet, TextStyle
from trainer.nano.pages.mosaic import BandedPage
from trainer.nano.pages.receipts import ReceiptRenderer
from trainer.nano.pages.rows import Cell, Rows
from trainer.nano.pages.tables import TableRenderer


@pytest.mark.parametrize(
    ("renderer", "draw"),
    [
        (CourtRenderer, CourtRenderer.render_court),
        (InvoiceRenderer, InvoiceRenderer.render_invoice),
        (ReceiptRenderer, ReceiptRenderer.render_receipt),
        (TableRenderer, TableRenderer.render_table),
    ],
)
def test_papers_tell_all_that_they_show(library, corpus, renderer, draw):
    first, again = renderer(library, corpus, seed=5), renderer(library, corpus, seed=5)
    for _ in range(8):
        page, same = draw(first), draw(again)
        assert page.text == same.text
        assert np.array_equal(page.ink, same.ink)
        marked, written = Counter(c for _, _, c in page.marks), Counter("".join(page.text.split()))
        assert marked == written
        height, width = page.ink.shape
        near = [
            int(np.ptp(page.ink[max(y - 12, 0) : y + 13, max(x - 8, 0) : x + 9].astype(int)))
            for x, y, _ in page.marks
            if 0 <= x < width and 0 <= y < height
        ]
        assert len(near) == len(page.marks)
        assert np.mean(np.array(near) > 60) > 0.98


@pytest.fixture
def page(library) -> BandedPage:
    glyphs = GlyphSet(library.load(library.faces[0], 18), 18)
    style = TextStyle(glyphs, glyphs, glyphs)
    return BandedPage(Sheet.blank(400, 200), 10, 380, 10, 190, 1000, [], style, style, frozenset("abcdef0123456789:) "))


def test_cells_of_a_row_are_one_line_and_what_has_no_room_is_neither_drawn_nor_told(page):
    rows = Rows(page, page.style, Random(1), 24)
    assert rows.add(Cell("abc", 10, 100), Cell(":", 150, 20), Cell("def 12", 200, 100))
    assert rows.add(Cell("abc zzz", 10, 100), Cell("fed cab", 200, 40))
    assert rows.add()
    assert rows.add(Cell(":", 150, 20))
    rows.close()
    assert page.texts == ["abc : def 12\nabc fed\n\n:"]
    assert len(page.sheet.marks) == len("abc:def12abcfed:")


def test_rows_end_where_the_page_does(page):
    rows = Rows(page, page.style, Random(1), 24)
    set_rows = sum(rows.add(Cell("abc", 10, 100)) for _ in range(20))
    assert set_rows == 7
    assert page.sheet.is_border_blank()


def test_numbers_in_the_margin_count_rows(page):
    rows = Rows(page, page.style, Random(1), 24)
    rows.margin = lambda row: Cell(str(row + 1), 10, 20)
    rows.prose("abc def cab fed ade bed", 40, 80)
    rows.close()
    lines = page.texts[0].splitlines()
    assert [line.split()[0] for line in lines] == [str(i + 1) for i in range(len(lines))]
    assert " ".join(" ".join(line.split()[1:]) for line in lines) == "abc def cab fed ade bed"


def test_inverted_ground_shows_text_in_white():
    sheet = Sheet.blank(40, 20)
    sheet.rule(10, 5, 20, 15)
    sheet.invert(0, 0, 40, 20, 200)
    assert sheet.page()[10, 15] == 0
    assert sheet.page()[10, 30] == 200
    assert sheet.is_border_blank()
