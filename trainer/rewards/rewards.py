"""Rewards of an answer that its page's true text can verify; no model judges another.

Each is from -1 to 1, a perfect reading gets the most there is. Pure. `trainer.training.policy` weighs them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from shared.contract.answer import FinishReason
from shared.contract.text import cer
from trainer.evaluation.overlap import words
from trainer.evaluation.page_tests import PageTest, passed_ratio
from trainer.evaluation.text_tables import text_tables

_TAG: Final = re.compile(r"<(/?)([a-z][a-z0-9]*)\b[^<>]*?(/?)>", re.IGNORECASE)
_VOID: Final = frozenset({"br", "hr", "img", "image", "input", "wbr"})
_HEADING: Final = re.compile(r"#{1,6} \S")


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer, and what is known of its page.

    Attributes:
        truth: the page's true text.
        text: the answer.
        finish_reason: how it ended.
        tests: of the page.
    """

    truth: str
    text: str
    finish_reason: FinishReason = FinishReason.STOP
    tests: Sequence[PageTest] = field(default=())


def reading_reward(answer: Judged) -> float:
    """1 - CER, at least 0."""
    return max(1.0 - cer(answer.truth, answer.text), 0.0)


def tests_reward(answer: Judged) -> float:
    """Share of the page's tests that pass."""
    return passed_ratio(answer.tests, answer.text)


def format_reward(answer: Judged) -> float:
    """Mean of: tags are closed, tables have rows of one length, headings and tables are as many as in the truth.

    0 for an answer without a word: silence has no format.
    """
    if not answer.text.strip() and answer.truth.strip():
        return 0.0
    tables = [table.grid() for table in text_tables(answer.text)]
    return (
        is_closed(answer.text)
        + all(len({len(row) for row in table}) <= 1 for table in tables)
        + (_structure(answer.truth) == _structure(answer.text))
    ) / 3


def loop_reward(answer: Judged) -> float:
    """-1 for an answer that repeated itself or never ended, else 0."""
    return 0.0 if answer.finish_reason is FinishReason.STOP else -1.0


def invented_reward(answer: Judged) -> float:
    """Share of the answer's words that the page does not have, or not so often, as a negative number."""
    return -invented_ratio(answer.truth, answer.text)


REWARDS: Final[Mapping[str, Callable[[Judged], float]]] = {
    "cer": reading_reward,
    "tests": tests_reward,
    "format": format_reward,
    "loop": loop_reward,
    "invented": invented_reward,
}
"""By the names that `--rewards` takes."""


def invented_ratio(truth: str, text: str) -> float:
    """Share of a text's words that the truth does not have, or not so often."""
    read = Counter(words(text))
    return (read - Counter(words(truth))).total() / max(read.total(), 1)


def is_closed(text: str) -> bool:
    """Whether every HTML tag in a text is closed, in order."""
    opened: list[str] = []
    for slash, name, empty in _TAG.findall(text):
        tag = name.lower()
        if tag in _VOID or empty:
            continue
        if not slash:
            opened.append(tag)
        elif not opened or opened.pop() != tag:
            return False
    return not opened


def _structure(text: str) -> tuple[int, int]:
    return len(text_tables(text)), sum(1 for line in text.splitlines() if _HEADING.match(line))
