"""Synthetic blocks: tables, lists, code and invoices, composed of synthetic lines."""

from __future__ import annotations

from random import Random

from trainer.nano.corpus.corpus import Corpus
from trainer.nano.corpus.synthetic_text import (
    LineMaker,
    address,
    amount,
    any_line,
    code_line,
    date,
    iban,
    person,
    phone,
)
from trainer.nano.corpus.words import LABELS
from trainer.nano.pages.blocks import Block, FixedLines, Items, Table


def number_table(rng: Random, corpus: Corpus, columns: int, rows: int) -> Table:
    """A table of labels and numbers with at least two columns; rows are counted without the header."""
    header = rng.random() < 0.7
    plain = rng.random() < 0.5
    places = rng.choice((0, 1, 2))

    def cell(column: int) -> str:
        if column == 0:
            return " ".join(corpus.words(rng, rng.randint(1, 2)))[:22].strip()
        if plain:
            return f"{rng.random() * 10 ** rng.randint(1, 4):.{places}f}"
        return rng.choice((amount, amount, date, iban))(rng)[:14].strip()

    body = [tuple(cell(column) for column in range(columns)) for _ in range(rows)]
    if header:
        body.insert(0, tuple(rng.choice(LABELS)[:14].strip() for _ in range(columns)))
    return Table(tuple(body), header)


def pairs_table(rng: Random, corpus: Corpus, rows: int) -> Table:
    """A table of two columns, labels and values."""
    mark = rng.choice((":", ":", "", "."))
    makers: tuple[LineMaker, ...] = (amount, amount, date, phone, iban, person)
    return Table(tuple((rng.choice(LABELS) + mark, rng.choice(makers)(rng, corpus)) for _ in range(rows)))


def listing(rng: Random, corpus: Corpus, count: int) -> Items:
    """A list with bullets or numbers."""
    mark = rng.choice(("•", "-", "–", "*", "1.", "1)", "(1)", "a)", "I.", "[ ]", "»"))
    items = []
    for index in range(count):
        shown = (
            mark.replace("1", str(index + 1)).replace("a", chr(ord("a") + index % 26)).replace("I", _roman(index + 1))
        )
        body = any_line(rng, corpus) if rng.random() < 0.4 else corpus.passage(rng).text[:70].rpartition(" ")[0]
        items.append(f"{shown} {body or person(rng)}")
    return Items(tuple(items))


def code_block(rng: Random, corpus: Corpus, count: int) -> FixedLines:
    """Lines of code, for a fixed-pitch face."""
    return FixedLines(tuple(code_line(rng, corpus) for _ in range(count)), monospaced=rng.random() < 0.8)


def invoice(rng: Random, corpus: Corpus, rows: int) -> list[Block]:
    """An invoice: address, labels, positions and sums."""
    positions = number_table(rng, corpus, rng.randint(3, 4), rows)
    parts: list[Block] = [
        FixedLines(tuple(address(rng, corpus))),
        pairs_table(rng, corpus, rng.randint(2, 4)),
        positions,
    ]
    parts.append(pairs_table(rng, corpus, rng.randint(2, 3)))
    return parts


def _roman(number: int) -> str:
    text = ""
    for value, sign in ((10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")):
        text += sign * (number // value)
        number %= value
    return text
