from random import Random

import numpy as np
import pytest

from trainer.nano.fonts.glyphs import GlyphSet
from trainer.nano.pages.blocks import FixedLines, Heading, Items, Paragraph, Table
from trainer.nano.pages.layout import Column, Sheet, TextStyle, break_line, set_block

LONG = "Several reasonably ordinary sentences follow one another without saying anything extraordinary at all."


@pytest.fixture
def glyphs(library):
    return GlyphSet(library.load(library.faces[0], 18), 18)


@pytest.fixture
def style(glyphs):
    return TextStyle(glyphs, glyphs, glyphs)


def column_of(width=300, height=400, **limits: int):
    return Column(Sheet.blank(width + 20, height), 10, width, 10, height - 10, **limits)


def test_broken_lines_fit_and_lose_no_word(glyphs, style):
    words, lines = LONG.split(), []
    while words:
        line, words = break_line(words, glyphs, 160, style, Random(1))
        assert glyphs.width(line) <= 160
        lines.append(line)
    assert len(lines) > 3
    assert " ".join(lines) == LONG


def test_hyphenated_words_can_be_put_together_again(glyphs):
    style = TextStyle(glyphs, glyphs, glyphs, hyphenate=True)
    words, lines = LONG.split(), []
    while words:
        line, words = break_line(words, glyphs, 130, style, Random(5))
        lines.append(line)
    assert any(line.endswith("-") for line in lines)
    assert "\n".join(lines).replace("-\n", "").replace("\n", " ") == LONG


def test_a_word_wider_than_the_column_is_cut_without_loss(glyphs, style):
    line, rest = break_line(["x" * 200], glyphs, 100, style, Random(1))
    assert line + "".join(rest) == "x" * 200
    assert 0 < glyphs.width(line) <= 100


def test_all_ink_of_a_line_arrives_on_the_sheet(glyphs, style):
    column = column_of()
    assert set_block(column, Paragraph("gypsum (jug)"), style, Random(1))
    assert column.sheet.is_border_blank()
    assert column.sheet.page().sum() == glyphs.draw("gypsum (jug)").ink.sum()


def test_letters_set_apart_are_marked_where_they_are(glyphs):
    column = column_of()
    set_block(column, FixedLines(("ll ll",)), TextStyle(glyphs, glyphs, glyphs, spacing=16), Random(0))
    inked = np.flatnonzero(column.sheet.page().any(axis=0))
    letters = np.split(inked, np.flatnonzero(np.diff(inked) > 1) + 1)
    middles = [(letter[0] + letter[-1]) / 2 for letter in letters]
    assert [x for x, _, _ in column.sheet.marks] == pytest.approx(middles, abs=2)


def test_ink_beyond_the_page_is_noticed(glyphs):
    sheet = Sheet.blank(100, 100)
    sheet.place(glyphs.draw("edge").ink, 90, 50)
    assert not sheet.is_border_blank()


def test_truth_has_lines_and_blank_lines_between_blocks(style):
    column = column_of(width=500)
    for block in (Heading("Title"), FixedLines(("one", "two")), Paragraph("three")):
        set_block(column, block, style, Random(1))
    assert column.text() == "Title\n\none\ntwo\n\nthree"


def test_table_rows_are_cells_joined_by_one_space(style):
    column = column_of(width=500)
    set_block(column, Table((("a b", "1"), ("c", "2")), header=True), style, Random(1))
    assert column.text() == "a b 1\nc 2"


def test_a_table_too_wide_loses_columns_in_image_and_truth_alike(style):
    column = column_of(width=200)
    set_block(column, Table((("left", "m" * 30),)), style, Random(1))
    assert column.text() == "left"


def test_items_keep_their_marks(style):
    column = column_of(width=500)
    set_block(column, Items(("1. first", "2. second")), style, Random(1))
    assert column.text() == "1. first\n2. second"


@pytest.mark.parametrize("limits", [{"lines": 2}, {"characters": 40}])
def test_limits_end_a_paragraph_at_a_word(style, limits):
    column = column_of(**limits)
    set_block(column, Paragraph(LONG), style, Random(1))
    text = column.text()
    assert LONG.startswith(text.replace("\n", " "))
    assert len(text) <= limits.get("characters", 1000)
    assert text.count("\n") < limits.get("lines", 1000)


def test_a_full_column_takes_no_further_block(style):
    column = column_of(height=60)
    set_block(column, Paragraph(LONG), style, Random(1))
    truth = column.text()
    assert not set_block(column, Paragraph("more"), style, Random(1))
    assert column.text() == truth
