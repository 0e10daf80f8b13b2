"""Typography of books and typescripts, and their size in scans, for the tiers of scans.

Knows kinds of faces, widths and typography; `trainer.nano.pages.render` draws.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Final

from trainer.nano.corpus.corpus import Corpus
from trainer.nano.pages.blocks import Block, Paragraph
from trainer.nano.pages.documents import heading, line_content, small_block
from trainer.nano.pages.layout import TextStyle

KIND_WEIGHTS: Final = {"serif": 0.5, "typewriter": 0.2, "sans": 0.2, "mono": 0.1}
# Crops at 200 to 300 dpi, by how many tiles of 640 px they are wide.
CROP_WIDTHS_PX: Final = ((650, 1280), (1290, 1920), (1930, 2560))
CROP_WIDTH_WEIGHTS: Final = (0.25, 0.4, 0.35)
# No page has wider text, in ems; this limits the width of small print.
MOST_EMS: Final = 60
_OPENING: Final = re.compile(r"(^|[\s(\[—–])([\"'])")


def pick_kind(rng: Random) -> str:
    """A random kind of face, one of `fonts.KINDS`."""
    return rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]


def crop_width_px(rng: Random, size_px: int) -> int:
    """A random width in pixels of a crop's text, for an em size."""
    least, most = rng.choices(CROP_WIDTHS_PX, CROP_WIDTH_WEIGHTS)[0]
    return min(rng.randint(least, most) - 50, MOST_EMS * size_px)


def crop_lines(rng: Random) -> int:
    """A random number of a crop's lines: half of the crops are strips of one to three."""
    return rng.randint(1, 3) if rng.random() < 0.5 else rng.randint(4, 16)


def book_style(style: TextStyle, rng: Random) -> TextStyle:
    """The style as in books and letters, with the same faces: mostly justified, hyphenated, indented."""
    size = style.glyphs.size_px
    indented = rng.random() < 0.6
    return replace(
        style,
        align=rng.choices(("justify", "left", "center"), (0.55, 0.4, 0.05))[0],
        hyphenate=rng.random() < 0.6,
        indent=round(size * rng.uniform(0.8, 2.5)) if indented else 0,
        leading=rng.uniform(1.02, 1.5),
        spacing=rng.randint(1, max(size // 12, 1)) if rng.random() < 0.15 else 0,
        gap=rng.choice((0.0, 0.1, 0.5) if indented else (0.4, 0.8)),
        ruled=0,
    )


def book_content(rng: Random, corpus: Corpus) -> Iterator[Block]:
    """Random blocks of a crop without end: mostly running text with typographic dashes and quotes."""
    if rng.random() < 0.25:
        while True:
            yield line_content(rng, corpus) if rng.random() < 0.5 else small_block(rng, corpus)
    if rng.random() < 0.15:
        yield heading(rng, corpus)
    while True:
        words = corpus.passage(rng).text.split()
        start = rng.randrange(max(len(words) - 8, 1)) if rng.random() < 0.6 else 0
        yield Paragraph(typographic(" ".join(words[start:]), rng))


def typographic(text: str, rng: Random) -> str:
    """Replace typed dashes and quotes by typographic ones, each in most texts."""
    if rng.random() < 0.8:
        text = re.sub(r"\s?--+\s?", "—", text)
    elif rng.random() < 0.5:
        text = text.replace(" - ", "—")
    if rng.random() < 0.7:
        text = _OPENING.sub(lambda match: match[1] + ("“" if match[2] == '"' else "‘"), text)
        text = text.replace('"', "”").replace("'", "’")
    return text
