"""`benchmarks/circle.py`: how far a served answer and the trainer's agree."""

import pytest

from benchmarks.circle import ServedPiece, compare

SERVED = [
    ServedPiece("The", -0.1, {"The": -0.1, "A": -2.5}),
    ServedPiece(" circle", -0.7, {"circle": -0.7, "square": -0.72}),
    ServedPiece(" closes", -0.2, {"closes": -0.2}),
]


def test_same_tokens_are_compared() -> None:
    found = compare(SERVED, [("The", -0.1), ("circle", -0.75), ("closes", -0.2)])
    assert found == {"same_tokens": 3, "tokens": 3, "max_difference": pytest.approx(0.05)}


def test_a_tie_is_compared_with_the_alternative() -> None:
    found = compare(SERVED, [("The", -0.1), ("square", -0.69), ("one", -9.0)])
    assert found == {"same_tokens": 1, "tokens": 3, "max_difference": pytest.approx(0.03)}


def test_a_token_that_was_much_less_likely_is_a_difference() -> None:
    assert compare(SERVED, [("A", -2.5)])["max_difference"] == pytest.approx(2.4)


def test_a_token_that_was_no_alternative_leaves_nothing_to_compare() -> None:
    assert compare(SERVED, [("The", -0.1), ("triangle", -0.7)])["max_difference"] is None


def test_empty_answers_are_not_equal() -> None:
    assert compare([], []) == {"same_tokens": 0, "tokens": 0, "max_difference": None}
