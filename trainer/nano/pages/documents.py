"""Content of pages: a stream of random blocks of natural and synthetic text.

About 35 % of lines are synthetic, so that reading cannot be replaced by guessing words.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

from trainer.nano.corpus import synthetic_text
from trainer.nano.corpus.corpus import Corpus
from trainer.nano.pages import synthetic_blocks
from trainer.nano.pages.blocks import Block, FixedLines, Heading, Items, Paragraph, Table

SYNTHETIC_SHARE: Final = 0.35


def line_content(rng: Random, corpus: Corpus) -> Block:
    """Random content of a single line: a paragraph at least as long as a line, or a synthetic line."""
    if rng.random() < SYNTHETIC_SHARE:
        return Paragraph(synthetic_text.any_line(rng, corpus))
    return Paragraph(_passage_from_anywhere(rng, corpus))


def block_content(rng: Random, corpus: Corpus) -> Iterator[Block]:
    """Random blocks of a small image without end, mostly of one kind."""
    kind = rng.random()
    if rng.random() < 0.2:
        yield heading(rng, corpus)
    if kind < 0.55:
        while True:
            yield Paragraph(_passage_from_anywhere(rng, corpus) if rng.random() < 0.3 else corpus.passage(rng).text)
            if rng.random() < 0.12:
                yield small_block(rng, corpus)
    if kind < 0.63:
        yield from synthetic_blocks.invoice(rng, corpus, rng.randint(2, 6))
    while True:
        yield small_block(rng, corpus)


def page_content(rng: Random, corpus: Corpus) -> Iterator[Block]:
    """Random blocks of a page without end: title, headings, paragraphs, lists, tables."""
    if rng.random() < 0.15:
        yield FixedLines(tuple(synthetic_text.address(rng, corpus)))
    if rng.random() < 0.12:
        yield from synthetic_blocks.invoice(rng, corpus, rng.randint(3, 9))
    language = corpus.passage(rng).language
    while True:
        if rng.random() < 0.25:
            yield heading(rng, corpus, level=1)
        for _ in range(rng.randint(1, 3)):
            yield Paragraph(corpus.paragraph(rng, language))
        if rng.random() < 0.45:
            yield small_block(rng, corpus)


def small_block(rng: Random, corpus: Corpus) -> Block:
    """A random list, table, address, code block or single lines."""
    kind = rng.random()
    if kind < 0.2:
        return synthetic_blocks.listing(rng, corpus, rng.randint(2, 6))
    if kind < 0.36:
        return synthetic_blocks.number_table(rng, corpus, rng.randint(2, 5), rng.randint(2, 8))
    if kind < 0.46:
        return synthetic_blocks.pairs_table(rng, corpus, rng.randint(2, 6))
    if kind < 0.56:
        return FixedLines(tuple(synthetic_text.address(rng, corpus)))
    if kind < 0.68:
        return synthetic_blocks.code_block(rng, corpus, rng.randint(2, 7))
    return FixedLines(tuple(synthetic_text.any_line(rng, corpus) for _ in range(rng.randint(1, 5))))


def heading(rng: Random, corpus: Corpus, level: int = 1) -> Heading:
    """A random heading of two to eight words, sometimes numbered or in capitals; level 0 is a title."""
    words = corpus.passage(rng).text.split()[: rng.randint(2, 8)]
    text = " ".join(words).rstrip(".,;:")
    shape = rng.random()
    if shape < 0.15:
        text = text.upper()
    elif shape < 0.3:
        text = text.title()
    if rng.random() < 0.2:
        number = ".".join(str(rng.randint(1, 12)) for _ in range(rng.randint(1, 3)))
        text = f"{number} {text}"
    return Heading(text, level)


def adapt_block(block: Block, drawable: frozenset[str]) -> Block | None:
    """The block without words that a page's faces cannot draw; None if nothing is left."""

    def kept(text: str) -> str:
        if drawable.issuperset(text):
            return text
        return " ".join(word for word in text.split() if drawable.issuperset(word))

    if isinstance(block, Paragraph):
        text = kept(block.text)
        return Paragraph(text) if text else None
    if isinstance(block, Heading):
        text = kept(block.text)
        return Heading(text, block.level) if text else None
    if isinstance(block, FixedLines):
        lines = tuple(line for line in map(kept, block.lines) if line)
        return FixedLines(lines, block.monospaced) if lines else None
    if isinstance(block, Items):
        items = tuple(item for item in map(kept, block.items) if " " in item)
        return Items(items) if items else None
    rows = tuple(tuple(kept(cell) for cell in row) for row in block.rows)
    return Table(rows, block.header)


def _passage_from_anywhere(rng: Random, corpus: Corpus) -> str:
    """A random passage from a random word on, so that lines do not all begin like sentences."""
    text = corpus.passage(rng).text
    words = text.split()
    start = rng.randrange(max(len(words) - 8, 1)) if rng.random() < 0.6 else 0
    picked = " ".join(words[start:])
    shape = rng.random()
    return picked.upper() if shape < 0.04 else picked.title() if shape < 0.07 else picked
