"""Words and digits that were read, with their scores and whether they are right: what a calibration is fitted to.

A word is right if an alignment with the truth's words (fewest edits) pairs it with an equal one; a digit also if an
alignment of the characters does. Where a truth is in another order, words are looked for elsewhere too, and digits of
those that were misread in the word of the truth that is most like theirs. Texts are compared in NFC.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rapidfuzz.distance import Levenshtein

from shared.contract.confidence import ScoredWord, score_words
from trainer.evaluation.samples import Sample
from trainer.evaluation.scores import Reading

_LIKE: Final = 0.5
"""Share of characters in which a word and what it was may differ."""


@dataclass(frozen=True, slots=True)
class Case:
    """A word, or a digit, that was read."""

    log_probability: float
    page_mean: float
    is_right: bool
    is_elsewhere: bool = False
    """Whether it is right, but the truth has it in another place of its order."""


@dataclass(frozen=True, slots=True)
class PageCases:
    """What was read on one page."""

    words: tuple[Case, ...]
    digits: tuple[Case, ...]

    @property
    def is_readable(self) -> bool:
        """Whether the model reads such pages at all: half of the words are right."""
        return 2 * sum(word.is_right for word in self.words) >= len(self.words)


def cases_of(sample: Sample, reading: Reading, *, any_order: bool = False) -> PageCases:
    """Compare what was read on a page with its truth.

    Args:
        sample: The page.
        reading: With scores of its tokens.
        any_order: Whether a word is also right where the truth has it anywhere else, as often as the truth does, and
            digits where a word of the truth that is left has them: for truths that are not in reading order.

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
    in_order = _matches(words, truth)
    is_right = list(in_order)
    likest: dict[int, str] = {}
    if any_order:
        left = Counter(truth)
        left.subtract(word for word, right in zip(words, is_right, strict=True) if right)
        for place, word in enumerate(words):
            if not is_right[place] and left[word] > 0:
                left[word] -= 1
                is_right[place] = True
        likest = _likest(words, is_right, left)
    mean = reading.token_scores.mean
    return PageCases(
        tuple(
            Case(word.log_probability, mean, right, right and not ordered)
            for word, right, ordered in zip(scored, is_right, in_order, strict=True)
        ),
        tuple(_digit_cases(text, scored, (in_order, is_right, likest), " ".join(truth), mean)),
    )


def _likest(words: Sequence[str], is_right: Sequence[bool], left: Counter[str]) -> dict[int, str]:
    """For each wrong word with digits the word of the truth that it was, by its place among those read.

    Args:
        words: That were read.
        is_right: Which of them are right.
        left: Words of the truth that no word has; those that are given away are taken out.

    Returns:
        Each word of the truth is the likest of one word at most; words that are like none are left out.
    """
    wrong = [
        place
        for place, word in enumerate(words)
        if not is_right[place] and any(character.isdecimal() for character in word)
    ]
    others = [word for word in left if left[word] > 0 and any(character.isdecimal() for character in word)]
    pairs = [
        (distance, place, other)
        for place in wrong
        for other in others
        if (distance := Levenshtein.normalized_distance(words[place], other)) <= _LIKE
    ]
    found: dict[int, str] = {}
    for _, place, other in sorted(pairs):
        if place not in found and left[other] > 0:
            left[other] -= 1
            found[place] = other
    return found


def _digit_cases(
    text: str,
    words: Sequence[ScoredWord],
    judged: tuple[Sequence[bool], Sequence[bool], Mapping[int, str]],
    truth: str,
    mean: float,
) -> list[Case]:
    """One case for each digit.

    Args:
        text: That was read.
        words: Of it.
        judged: Which words are right at their place, which at any, and what wrong ones were by their place.
        truth: Words with a space between.
        mean: Of the page.

    Returns:
        The cases.
    """
    in_order, is_right, likest = judged
    # Words are joined again, so that white space does not count; NFC would move the digits, and changes none.
    starts, joined = [], ""
    for word in words:
        starts.append(len(joined))
        joined += text[word.start : word.end] + " "
    equal = _matches(joined.rstrip(" "), truth)
    cases = []
    for place, (word, start) in enumerate(zip(words, starts, strict=True)):
        like = _matches(text[word.start : word.end], likest.get(place, ""))
        for digit in word.digits:
            at = digit.start - word.start
            is_here = in_order[place] or equal[start + at]
            is_elsewhere = not is_here and (is_right[place] or like[at])
            cases.append(Case(digit.log_probability, mean, is_here or is_elsewhere, is_elsewhere))
    return cases


def _matches(read: Sequence[str], truth: Sequence[str]) -> list[bool]:
    """For each item read, whether the alignment with fewest edits pairs it with an equal one."""
    matched = [False] * len(read)
    for step in Levenshtein.opcodes(read, truth):
        if step.tag == "equal":
            matched[step.src_start : step.src_end] = [True] * (step.src_end - step.src_start)
    return matched
