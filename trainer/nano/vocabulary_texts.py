"""Texts to learn nano's vocabulary from: what pages will hold, in about the shares in which they hold it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import assert_never

from trainer.data.blocks import Block, FixedLines, Heading, Items, Paragraph, Table
from trainer.data.corpus import Corpus
from trainer.data.documents import block_content, line_content, page_content

BLOCKS_A_PAGE = 12
NUM_PAGES = 6000
"""Some tens of megabytes of text, far more than a vocabulary of a few thousand ids needs to settle."""


def sample_texts(corpus_folder: Path, num_pages: int = NUM_PAGES, seed: int = 0) -> Iterator[str]:
    """Draw the texts of pages, small images and lines in turn.

    Args:
        corpus_folder: a packed corpus.
        num_pages: how many of each kind.
        seed: where chance starts.

    Yields:
        Texts of blocks, as they would be printed.
    """
    corpus, rng = Corpus(corpus_folder), Random(seed)
    for _ in range(num_pages):
        yield from map(block_text, islice(page_content(rng, corpus), BLOCKS_A_PAGE))
        yield from map(block_text, islice(block_content(rng, corpus), BLOCKS_A_PAGE // 3))
        yield block_text(line_content(rng, corpus))


def block_text(block: Block) -> str:
    """A block as it would be printed, if no line had to be broken."""
    match block:
        case Paragraph() | Heading():
            return block.text
        case FixedLines():
            return "\n".join(block.lines)
        case Items():
            return "\n".join(block.items)
        case Table():
            return "\n".join(" ".join(row) for row in block.rows)
        case _:
            assert_never(block)
