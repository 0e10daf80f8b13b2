"""Splits by content: the same everywhere, in the shares asked for, and never the same page on both sides."""

from __future__ import annotations

import hashlib

import pytest

from trainer.data.sources.splits import SplitRegister, SplitShares, split_named, text_key


def keys(count):
    return [hashlib.sha256(str(number).encode()).digest() for number in range(count)]


def test_shares_are_met_and_repeat():
    shares = SplitShares(0.2, 0.1)
    splits = [shares.split_of(key) for key in keys(5000)]
    assert splits == [SplitShares(0.2, 0.1).split_of(key) for key in keys(5000)]
    assert abs(splits.count("validation") / 5000 - 0.2) < 0.02
    assert abs(splits.count("test") / 5000 - 0.1) < 0.02
    assert splits != [SplitShares(0.2, 0.1, "other").split_of(key) for key in keys(5000)]
    assert shares.wanted() == ("train", "validation", "test")
    assert SplitShares(0, 0).wanted() == ("train",)


def test_a_larger_share_only_adds_to_what_is_held_out():
    small, large = SplitShares(0.1), SplitShares(0.3)
    for key in keys(500):
        assert small.split_of(key) == "train" or large.split_of(key) == "validation"


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0), (0.5, 0.5), (1, 0)])
def test_impossible_shares_are_refused(validation, test):
    with pytest.raises(ValueError, match="leave nothing to train on"):
        SplitShares(validation, test)


def test_a_content_stands_in_one_split_only():
    register = SplitRegister()
    a, b, c = keys(3)
    assert register.clash((a, b), "train") is None
    assert register.clash((b, c), "test") == "train"
    # What was refused is not taken in.
    assert register.clash((c,), "test") is None
    assert register.clash((a,), "train") is None


def test_texts_count_as_the_same_whatever_their_spaces_but_short_ones_never():
    text = "A text of more than forty characters, which no other page will have"
    assert text_key(text) == text_key(text.replace(" ", " \n "))
    assert text_key("Total") is None


@pytest.mark.parametrize(
    ("name", "split"),
    [("train", "train"), ("VAL", "validation"), ("dev-000", "validation"), ("test.2", "test"), ("trainer", None)],
)
def test_names_of_splits(name, split):
    assert split_named(name) == split
