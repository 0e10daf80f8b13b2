"""ROUGE against the figures of the reference package, BLEU against sacrebleu's own for a whole corpus."""

from __future__ import annotations

import random

import pytest
from sacrebleu import corpus_bleu as whole_corpus_bleu

from trainer.evaluation import overlap as overlap_module
from trainer.evaluation.overlap import common_subsequence, corpus_bleu, overlap, words
from trainer.evaluation.scores import Reading, score_page, score_tier


@pytest.mark.parametrize(
    ("truth", "reading", "expected"),
    [  # F1 of rouge-score 0.1.2: rouge1, rouge2, rougeL
        (
            "the quick brown fox jumps over the lazy dog",
            "the brown quick fox jumped over a lazy dog today",
            (0.736842, 0.117647, 0.631579),
        ),
        ("one two three four", "four three two one one", (0.888889, 0.0, 0.222222)),
        ("a b c", "x y", (0.0, 0.0, 0.0)),
        ("The the the, cat!", "the cat the", (0.857143, 0.4, 0.571429)),
    ],
)
def test_rouge_is_that_of_the_reference_package(truth, reading, expected):
    score = overlap(truth, reading)
    assert (score.rouge_1, score.rouge_2, score.rouge_l) == pytest.approx(expected, abs=1e-6)


def test_the_longest_common_subsequence_is_that_of_the_table():
    def by_table(first, second):
        rows = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
        for i, one in enumerate(first):
            for j, other in enumerate(second):
                rows[i + 1][j + 1] = rows[i][j] + 1 if one == other else max(rows[i][j + 1], rows[i + 1][j])
        return rows[-1][-1]

    chance = random.Random(0)
    for _ in range(200):
        first, second = ([chance.choice("abcd") for _ in range(chance.randrange(90))] for _ in range(2))
        assert common_subsequence(first, second) == by_table(first, second)


def test_words_are_those_of_any_script():
    assert words("Don\u2019t (stop) \u2013 now.") == ["don\u2019t", "stop", "now"]
    assert words("\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!") == ["\u043f\u0440\u0438\u0432\u0435\u0442", "\u043c\u0438\u0440"]  # fmt: skip  # noqa: E501
    assert words("\u65e5\u672c OCR") == ["\u65e5", "\u672c", "ocr"]
    # A vowel sign is no letter of its own.
    assert words("\u0939\u093f\u0928\u094d\u0926\u0940") == ["\u0939\u093f\u0928\u094d\u0926\u0940"]


def test_empty_pages_are_right_only_when_read_empty():
    assert overlap("", "").rouge_l == 1.0
    assert overlap("", "word").rouge_l == overlap("word", "").rouge_1 == 0.0


def test_bleu_of_a_tier_is_sacrebleus_of_the_corpus():
    truths = ["the cat sat on the mat today", "a bridge, closed for repairs until the end", "one two"]
    readings = ["the cat sat on a mat today", "a bridge closed for repairs until the the end", "one two"]
    tier = score_tier([score_page(truth, Reading(text, 1.0)) for truth, text in zip(truths, readings, strict=True)])
    expected = whole_corpus_bleu(readings, [truths], tokenize="intl").score / 100
    assert tier.bleu == pytest.approx(expected, abs=1e-6)
    low, high = tier.intervals["bleu"]
    assert low <= tier.bleu <= high
    assert low < high


def test_bleu_counts_letters_where_words_are_not_spaced():
    truth = "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3092\u8aad\u3080"
    score = overlap(truth, truth[:-1] + "\u66f8")
    assert 0.7 < corpus_bleu(score.bleu) < 1.0


def test_an_unread_tier_has_no_bleu_and_a_right_one_all_of_it():
    assert score_tier([score_page("some words here", Reading("", 1.0))]).bleu == 0.0
    assert score_tier([score_page("some words here", Reading("some words here", 1.0))]).bleu == 1.0


def test_without_sacrebleu_only_bleu_is_missing(monkeypatch):
    monkeypatch.setattr(overlap_module, "_sacrebleu", lambda: None)
    tier = score_tier([score_page("some words", Reading("some word", 1.0))])
    assert tier.bleu is None
    assert tier.rouge_1 == pytest.approx(0.5)
    assert "bleu" not in tier.intervals
