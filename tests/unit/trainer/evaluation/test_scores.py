"""Error rates of pages and tiers against values worked out by hand."""

from __future__ import annotations

import pytest

from shared.contract.text import ErrorCount
from trainer.evaluation.scores import PageScore, Reading, score_page, score_tier


def page(edits: int, length: int, *, words: tuple[int, int] = (0, 1), ended: bool = True, seconds: float = 1.0):
    return PageScore(ErrorCount(edits, length), ErrorCount(*words), edits == 0, ended, seconds)


def test_a_page_counts_edits_in_characters_and_words():
    score = score_page("kitten sat down", Reading("sitting sat", 0.5))
    # k->s, e->i, +g, and " down" missing.
    assert score.chars == ErrorCount(8, 15)
    assert score.words == ErrorCount(2, 3)
    assert not score.is_exact


def test_white_space_and_composition_do_not_count_but_case_does():
    assert score_page("caf\u00e9\nau  lait ", Reading("cafe\u0301 au lait", 0.1)).is_exact
    assert score_page("Word", Reading("word", 0.1)).chars.edits == 1


# pragma: allowlist nextline secret
def test_a_tiers_rate_weighs_pages_by_length_and_its_median_does_not():
    tier = score_tier([page(0, 100), page(10, 100), page(8, 10)])
    assert tier.cer == pytest.approx(18 / 210)
    assert tier.cer_median == pytest.approx(0.1)
    assert (tier.pages, tier.characters) == (3, 210)
    assert tier.exact_ratio == pytest.approx(1 / 3)


def test_the_capped_rate_counts_a_runaway_page_as_wholly_wrong_once():
    tier = score_tier([page(300, 30), page(0, 70)])
    assert tier.cer == pytest.approx(3.0)
    assert tier.cer_capped == pytest.approx(0.3)


def test_word_rate_loops_and_seconds_are_over_the_tier():
    tier = score_tier(
        [page(0, 5, words=(1, 4), seconds=1.0), page(0, 5, words=(2, 6), ended=False, seconds=2.0)],
    )
    assert tier.wer == pytest.approx(0.3)
    assert tier.unfinished_ratio == pytest.approx(0.5)
    assert tier.seconds_per_page == pytest.approx(1.5)


def test_a_tier_without_pages_is_refused():
    with pytest.raises(ValueError, match="without pages"):
        score_tier([])


def interval(counts):
    tier = score_tier([page(count.edits, count.length) for count in counts])
    return tier.cer_low, tier.cer_high


def test_the_interval_of_equal_pages_is_a_point():
    assert interval([ErrorCount(3, 20)] * 7) == pytest.approx((0.15, 0.15))


def test_the_interval_is_as_wide_as_binomial_theory_says_and_always_the_same():
    # 200 pages of one character, half of them wrong: standard error sqrt(0.25 / 200) = 0.0354.
    counts = [ErrorCount(number % 2, 1) for number in range(200)]
    low, high = interval(counts)
    assert (low, high) == interval(counts)
    assert low == pytest.approx(0.5 - 1.96 * 0.0354, abs=0.012)
    assert high == pytest.approx(0.5 + 1.96 * 0.0354, abs=0.012)


def test_the_interval_resamples_pages_not_characters():
    # One bad page of two: half of all resamples hold it once, a quarter twice.
    low, high = interval([ErrorCount(100, 100), ErrorCount(0, 100)])
    assert (low, high) == (0.0, 1.0)


def test_every_figure_has_its_interval_and_lies_in_it():
    truths = ["one two three", "four five six", "seven eight nine", "ten eleven twelve"]
    readings = ["one two three", "four fine six", "seven", "ten eleven twelve"]
    tier = score_tier(
        [score_page(truth, Reading(text, 1.0, text != "seven")) for truth, text in zip(truths, readings, strict=True)]
    )
    for name in ("cer_capped", "wer", "exact_ratio", "unfinished_ratio", "rouge_1", "rouge_2", "rouge_l"):
        low, high = tier.intervals[name]
        assert low < getattr(tier, name) < high, name


def test_a_change_is_judged_page_by_page():
    # Pages differ much more from each other than the two readers do: apart their intervals overlap, together they
    # show that one reader is better on every page.
    base = [page(10 + number, 100) for number in range(0, 80, 4)]
    adapter = [page(9 + number, 100) for number in range(0, 80, 4)]
    alone, beside = score_tier(base), score_tier(adapter, base)
    assert beside.cer_high > alone.cer_low
    assert beside.intervals["cer_change"] == pytest.approx((-0.01, -0.01))
    assert "cer_change" not in alone.intervals
