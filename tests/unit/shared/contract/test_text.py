import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contract.text import ErrorCount, cer, char_errors, edit_distance, normalise, total, wer, word_errors

few_letters = st.text("abc ", max_size=20)


def by_table(first: str, second: str) -> int:
    """The textbook's table."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("a" * 500, "b", 500)],
)
def test_known_distances(first: str, second: str, distance: int):
    assert edit_distance(first, second) == distance


@given(few_letters, few_letters)
def test_distance_equals_the_textbooks(first: str, second: str):
    assert edit_distance(first, second) == by_table(first, second)


def test_distance_equals_rapidfuzz_on_long_texts():
    levenshtein = pytest.importorskip("rapidfuzz.distance").Levenshtein
    first = "the quick brown fox jumps over the lazy dog, 0123456789. " * 40
    second = first.replace("o", "").replace("fox", "dog and fox")[100:] + "tail"
    assert edit_distance(first, second) == levenshtein.distance(first, second)


def test_rates_equal_jiwers():
    jiwer = pytest.importorskip("jiwer")
    reference, reading = "the cat sat on the mat", "the bat sat on a mat today"
    assert cer(reference, reading) == pytest.approx(jiwer.cer(reference, reading))
    assert wer(reference, reading) == pytest.approx(jiwer.wer(reference, reading))


def test_distance_takes_words():
    assert edit_distance(["the", "cat"], ["a", "cat", "sat"]) == 2


def test_normalise_joins_accents_and_white_space():
    assert normalise(" e\u0301 \t\n a\u00a0b ") == "\u00e9 a b"


def test_normalise_keeps_case_punctuation_and_compatibility_forms():
    assert normalise("A, a. \ufb01") == "A, a. \ufb01"


def test_layout_does_not_count_as_errors():
    assert cer("a\n\nb  c", "a b\nc\n") == 0


def test_character_errors_count_spaces():
    assert char_errors("ab cd", "abcd") == ErrorCount(1, 5)
    assert word_errors("ab cd", "abcd") == ErrorCount(2, 2)
    assert wer("ab cd", "abcd") == 1.0


def test_an_empty_reference_counts_what_was_read():
    assert cer("", "abc") == 3.0
    assert cer("", "") == 0.0
    assert char_errors("", "abc").capped == ErrorCount(1, 0)


def test_capped_errors_never_exceed_the_reference():
    assert char_errors("ab", "x" * 100).capped == ErrorCount(2, 2)
    assert char_errors("abcd", "abxd").capped == ErrorCount(1, 4)


def test_micro_rate_weighs_by_length_not_by_sample():
    counts = [ErrorCount(1, 1), ErrorCount(0, 99)]
    assert total(counts) == ErrorCount(1, 100)
    assert total(counts).rate == 0.01
    assert total([]).rate == 0.0
