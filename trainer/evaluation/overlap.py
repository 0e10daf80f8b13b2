"""Word overlap of two texts: ROUGE, and the counts for BLEU.

ROUGE is the arithmetic of Lin's paper, over words as they are written in any script; the package that most people use
for it drops every letter that is not Latin and takes almost a second for a page. BLEU is sacrebleu's, where it is
installed. Pure; texts are normalised as everywhere (`shared.contract.text`), and for ROUGE their case is folded.

Source: C.-Y. Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004 (F1 of each page); M. Post, A Call for
Clarity in Reporting BLEU Scores, 2018 (sacrebleu).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from shared.contract.text import normalise

BLEU_ORDER = 4
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Thai, Lao, Burmese, Khmer, kana and Han: scripts that put no spaces between words. Their letters stand for words."""
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


@dataclass(frozen=True, slots=True)
class Overlap:
    """Word overlap of a reading with the truth."""

    rouge_1: float
    """F1 of single words, 0 to 1."""
    rouge_2: float
    """F1 of word pairs."""
    rouge_l: float
    """F1 of the longest common subsequence of words."""
    bleu: tuple[int, ...] | None
    """Matches of 1 to 4 words, their possible numbers, both lengths; None without sacrebleu."""


def overlap(truth: str, reading: str) -> Overlap:
    """Compare a reading's words with the truth's."""
    expected, read = words(truth), words(reading)
    pairs = list(pairwise(expected)), list(pairwise(read))
    rouge_1 = _f1((Counter(expected) & Counter(read)).total(), len(expected), len(read))
    has_pairs = any(pairs)
    return Overlap(
        rouge_1=rouge_1,
        # Two texts of at most one word have no pairs, so the word decides.
        rouge_2=_f1((Counter(pairs[0]) & Counter(pairs[1])).total(), *map(len, pairs)) if has_pairs else rouge_1,
        rouge_l=_f1(common_subsequence(expected, read), len(expected), len(read)),
        bleu=_bleu_counts(normalise(truth), normalise(reading)),
    )


def words(text: str) -> list[str]:
    """Words in folded case without punctuation at their ends; letters of scripts without spaces one by one."""
    found = map(_without_punctuation, _WORD.findall(normalise(text).casefold()))
    return [word for word in found if word]


def common_subsequence(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence.

    Source: Bit-parallel, H. Hyyro, Bit-Parallel LCS-length Computation Revisited, 2004.
    """
    places: dict[Hashable, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    mask = (1 << len(first)) - 1
    row = mask
    for word in second:
        common = row & places.get(word, 0)
        row = ((row + common) | (row - common)) & mask
    return len(first) - row.bit_count()


def corpus_bleu(counts: Sequence[float]) -> float | None:
    """Corpus BLEU, 0 to 1, from the sum of the pages' `Overlap.bleu`; None without sacrebleu."""
    module = _sacrebleu()
    if module is None:
        return None
    whole = [round(count) for count in counts]
    correct, total = whole[:BLEU_ORDER], whole[BLEU_ORDER : 2 * BLEU_ORDER]
    read_words, true_words = whole[2 * BLEU_ORDER :]
    if not read_words or not true_words:
        return float(read_words == true_words)
    score = module.BLEU.compute_bleu(
        correct=correct, total=total, sys_len=read_words, ref_len=true_words, effective_order=True
    )
    # Rounding may leave a perfect score slightly above 100.
    return min(score.score / 100, 1.0)


def _without_punctuation(word: str) -> str:
    """A word without punctuation and symbols at its ends."""
    kept = [place for place, letter in enumerate(word) if unicodedata.category(letter)[0] not in "PS"]
    return word[kept[0] : kept[-1] + 1] if kept else ""


def _f1(common: int, expected: int, read: int) -> float:
    if not expected and not read:
        return 1.0
    return 2 * common / (expected + read)


def _bleu_counts(truth: str, reading: str) -> tuple[int, ...] | None:
    if _sacrebleu() is None:
        return None
    unspaced = len(re.findall(rf"[{_UNSPACED}]", truth))
    score = _metric("char" if 2 * unspaced > len(truth) else "intl").sentence_score(reading, [truth])
    return (*score.counts, *score.totals, score.sys_len, score.ref_len)


@cache
def _metric(tokenize: str) -> Any:
    module = _sacrebleu()
    assert module is not None
    return module.BLEU(tokenize=tokenize, effective_order=True)


@cache
def _sacrebleu() -> Any | None:
    try:
        from sacrebleu import metrics
    except ImportError:
        return None
    return metrics
