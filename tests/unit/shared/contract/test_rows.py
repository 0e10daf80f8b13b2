"""The loop rule asks the page: a reader that is given token by token, and what is kept of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.contract.answer import AnswerTokens, FinishReason, Rewind, TokenJudge
from shared.contract.repetition import LoopRule
from shared.contract.rows import find_rows
from shared.images.ink import find_ink
from shared.images.page_ink import InkLine
from tests.support.printed import LEFT, RIGHT, ROW, TITLE, TOTAL, register, two_columns

EOS = 0
RULE = LoopRule()


def tokens(text: str) -> list[int]:
    """A token for every byte."""
    return [byte + 1 for byte in text.encode()]


def pieces(ids: object) -> list[bytes]:
    return [bytes([token - 1]) for token in ids]  # type: ignore[attr-defined]


class Reader:
    """Says a text, and after a second attempt has begun another one."""

    def __init__(self, first: Iterator[int], second: str, lines: tuple[InkLine, ...]) -> None:
        self.answer = AnswerTokens(
            RULE, (lambda before, period: find_rows(pieces(before), pieces(period), lines)) if lines else None
        )
        self.judge = TokenJudge(EOS, 8000, RULE)
        self.source = first
        self.second = second
        self.attempts = 1
        self.resumed = 0

    def read(self) -> tuple[FinishReason, str]:
        outcome: FinishReason | Rewind | None = None
        while not isinstance(outcome, FinishReason):
            token = next(self.source, EOS)
            outcome = self.answer.push(token, -0.01, *self.judge.push(token))
            if isinstance(outcome, Rewind):
                self.judge.rewind(outcome.kept, outcome.forbidden)
                assert self.judge.tokens[-1] == outcome.newest_token
                if outcome.forbidden is None:
                    self.resumed += 1
                else:
                    self.attempts += 1
                    self.source = iter(tokens(self.second))
        return outcome, b"".join(pieces(self.answer.tokens)).decode()


def endless(head: str, unit: str) -> Iterator[int]:
    yield from tokens(head)
    while True:
        yield from tokens(unit)


@pytest.mark.parametrize("rows", [4, 14, 20])
def test_true_rows_are_kept_and_what_follows(rows: int) -> None:
    text = "\n".join([TITLE, *[ROW] * rows, TOTAL])
    reader = Reader(iter(tokens(text)), "", find_ink(register(rows)).lines)
    assert reader.read() == (FinishReason.STOP, text)
    assert reader.attempts == 1
    assert (reader.resumed > 0) == (rows > 7)


@pytest.mark.parametrize("rows", [4, 14, 20])
def test_rows_that_the_page_does_not_have_are_cut_and_reading_goes_on_below(rows: int) -> None:
    reader = Reader(endless(f"{TITLE}\n", f"{ROW}\n"), TOTAL, find_ink(register(rows)).lines)
    assert reader.read() == (FinishReason.STOP, "\n".join([TITLE, *[ROW] * rows, TOTAL]))
    assert reader.attempts == 2


def test_line_that_the_page_has_once_is_kept_once() -> None:
    head = "\n".join(LEFT[:3]) + "\n"
    reader = Reader(endless(head, f"{LEFT[3]}\n"), "\n".join(RIGHT), find_ink(two_columns()).lines)
    _, text = reader.read()
    assert text.count(LEFT[3]) == 1


def test_without_the_page_the_rule_is_what_it_was() -> None:
    reader = Reader(endless(f"{TITLE}\n", f"{ROW}\n"), TOTAL, ())
    _, text = reader.read()
    assert text.count(ROW) == 1
