from itertools import islice
from random import Random

import pytest

from trainer.nano.corpus import synthetic_text
from trainer.nano.corpus.charset import SUPPORTED
from trainer.nano.pages import synthetic_blocks
from trainer.nano.pages.blocks import FixedLines, Items, Paragraph, Table
from trainer.nano.pages.documents import adapt_block, block_content, page_content

ASCII = frozenset(chr(code) for code in range(32, 127))


@pytest.mark.parametrize(
    "maker",
    [
        synthetic_text.amount,
        synthetic_text.date,
        synthetic_text.person,
        synthetic_text.email,
        synthetic_text.url,
        synthetic_text.phone,
        synthetic_text.iban,
        synthetic_text.code_line,
        synthetic_text.random_string,
        synthetic_text.confusable_string,
        synthetic_text.random_words,
        synthetic_text.labelled,
    ],
)
def test_made_up_lines_are_varied_and_in_the_character_set(corpus, maker):
    lines = {maker(Random(seed), corpus) for seed in range(40)}
    assert len(lines) > 25
    assert all(line.strip() and SUPPORTED.issuperset(line) for line in lines)


def test_tables_are_rectangular(corpus):
    for seed in range(20):
        table = synthetic_blocks.number_table(Random(seed), corpus, 4, 3)
        assert {len(row) for row in table.rows} == {4}


def test_streams_of_blocks_do_not_end(corpus):
    for content in (block_content, page_content):
        assert len(list(islice(content(Random(1), corpus), 50))) == 50


def test_words_that_cannot_be_drawn_are_left_out():
    assert adapt_block(Paragraph("a café there"), ASCII) == Paragraph("a there")
    assert adapt_block(Items(("• one", "- two")), ASCII) == Items(("- two",))
    assert adapt_block(Table((("é", "1"),)), ASCII) == Table((("", "1"),))


def test_a_block_with_nothing_left_is_none():
    assert adapt_block(FixedLines(("é", "ü")), ASCII) is None
