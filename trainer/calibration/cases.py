"""Words and digits that were read, with their scores and whether they are right: what a calibration is fitted to.

A word is right if an alignment with the truth's words (fewest edits) pairs it with an equal one; a digit also if an
alignment of the characters does. Texts are compared in NFC.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from shared.contract.confidence import ScoredWord, score_words
from trainer.evaluation.samples import Sample
from trainer.evaluation.scores import Reading


@dataclass(frozen=True, slots=True)
class Case:
    """A word, or a digit, that was read."""

    log_probability: float
    page_mean: float
    is_right: bool


@dataclass(frozen=True, slots=True)
class PageCases:
    """What was read on one page."""

    words: tuple[Case, ...]
    digits: tuple[Case, ...]


def cases_of(sample: Sample, reading: Reading, *, any_order: bool = False) -> PageCases:
    """Compare what was read on a page with its truth.

    Args:
        sample: The page.
        reading: With scores of its tokens.
        any_order: Whether a word is also right where the truth has it anywhere else, as often as the truth does: for
            truths that are not in reading order.

    Returns:
        A case for each word and each digit.

    Raises:
        ValueError: The reading has no scores.
    """
    if reading.token_scores is None:
        raise ValueError(f"{sample.name}: the reader gives no scores of its tokens")
    text = reading.text
    scored = score_words(text, text, ((0, len(text)),), reading.token_scores)
    words = [unicodedata.normalize("NFC", text[word.start : word.end]) for word in scored]
    truth = unicodedata.normalize("NFC", sample.truth).split()
    is_right = _matches(words, truth)
    if any_order:
        left = Counter(truth)
        left.subtract(word for word, right in zip(words, is_right, strict=True) if right)
        for place, word in enumerate(words):
            if not is_right[place] and left[word] > 0:
                left[word] -= 1
                is_right[place] = True
    mean = reading.token_scores.mean
    digits = _digit_cases(text, scored, is_right, " ".join(truth), mean)
    return PageCases(
        tuple(Case(word.log_probability, mean, right) for word, right in zip(scored, is_right, strict=True)),
        tuple(digits),
    )


def _digit_cases(
    text: str, words: Sequence[ScoredWord], is_right: Sequence[bool], truth: str, mean: float
) -> list[Case]:
    # Words are joined again, so that white space does not count; NFC would move the digits, and changes none.
    starts, joined = [], ""
    for word in words:
        starts.append(len(joined))
        joined += text[word.start : word.end] + " "
    equal = _matches(joined.rstrip(" "), truth)
    return [
        Case(digit.log_probability, mean, right or equal[start + digit.start - word.start])
        for word, start, right in zip(words, starts, is_right, strict=True)
        for digit in word.digits
    ]


def _matches(read: Sequence[str], truth: Sequence[str]) -> list[bool]:
    """For each item read, whether the alignment with fewest edits pairs it with an equal one."""
    matched = [False] * len(read)
    for step in Levenshtein.opcodes(read, truth):
        if step.tag == "equal":
            matched[step.src_start : step.src_end] = [True] * (step.src_end - step.src_start)
    return matched
