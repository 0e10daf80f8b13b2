from __future__ import annotations

import math

import pytest

from shared.contract.confidence import MonotoneMap, TokenScores, score_tokens, score_words


def scores(*tokens: tuple[str | bytes, float]) -> TokenScores:
    pieces = [piece.encode() if isinstance(piece, str) else piece for piece, _ in tokens]
    return score_tokens(pieces, (math.log(chance) for _, chance in tokens))


def words(text: str, tokens: TokenScores) -> list[tuple[str, float, int]]:
    found = score_words(text, text, ((0, len(text)),), tokens)
    return [(text[word.start : word.end], round(math.exp(word.log_probability), 6), word.line) for word in found]


def test_word_is_as_probable_as_its_tokens_together():
    tokens = scores(("Gra", 0.5), ("nd", 0.5), (" total", 0.9), ("\n", 0.1), ("12", 0.8), (".", 0.5))
    assert words("Grand total\n12.", tokens) == [("Grand", 0.25, 1), ("total", 0.9, 1), ("12.", 0.4, 2)]


def test_character_of_several_tokens_counts_them_all():
    euro = "€".encode()
    tokens = scores((" a", 1.0), (b" " + euro[:1], 0.5), (euro[1:2], 0.5), (euro[2:], 0.5), ("b c", 0.1))
    assert (tokens.starts, tokens.ends) == ((0, 2, 3, 3, 4), (2, 4, 4, 4, 7))
    assert words(" a €b c", tokens) == [("a", 1.0, 1), ("€b", 0.0125, 1), ("c", 0.1, 1)]


def test_bytes_that_are_no_text_count_for_the_character_that_replaces_them():
    tokens = scores((b"x\xff", 0.5), (b"y\xe2", 0.25))
    text = b"x\xffy\xe2".decode(errors="replace")
    assert words(text, tokens) == [(text, 0.125, 1)]


def test_digits_have_scores_of_their_own():
    text = "no 4\u0663b"
    tokens = scores(("no", 1.0), (" 4", 0.5), ("\u0663", 0.25), ("b", 0.9))
    word = score_words(text, text, ((0, len(text)),), tokens)[1]
    assert [(text[each.start : each.end], round(math.exp(each.log_probability), 6)) for each in word.digits] == [
        ("4", 0.5), ("\u0663", 0.25),
    ]  # fmt: skip


def test_offsets_are_those_of_the_clean_text():
    answer = "<|x|>  one<|y|>\n\n\n\ntwo  "
    tokens = scores(("<|x|>", 0.01), ("  one", 0.5), ("<|y|>", 0.01), ("\n\n\n\n", 0.01), ("two", 0.75), ("  ", 0.01))
    found = score_words("one\n\ntwo", answer, ((5, 10), (15, 24)), tokens)
    assert [(word.start, word.end, word.line) for word in found] == [(0, 3, 1), (5, 8, 3)]
    assert [round(math.exp(word.log_probability), 6) for word in found] == [0.5, 0.75]


def test_text_that_is_not_of_its_sources_has_no_scores():
    assert score_words("other", "answer", ((0, 6),), scores(("answer", 0.5))) == []


def test_map_is_linear_between_its_points_and_constant_beyond():
    fitted = MonotoneMap(0.0, (-4.0, -2.0, 0.0), (0.1, 0.5, 0.9))
    assert [fitted.share(score, -1.0) for score in (-9.0, -4.0, -3.0, -1.0, 0.0, 1.0)] == pytest.approx(
        [0.1, 0.1, 0.3, 0.7, 0.9, 0.9]
    )


def test_word_is_more_doubtful_on_a_page_that_is_hard_to_read():
    fitted = MonotoneMap(2.0, (-4.0, 0.0), (0.0, 1.0))
    assert fitted.share(-1.0, 0.0) == pytest.approx(0.75)
    assert fitted.share(-1.0, -1.0) == pytest.approx(0.25)


@pytest.mark.parametrize(
    "values",
    [
        (0.0, (), ()),
        (0.0, (0.0,), (0.5, 0.6)),
        (0.0, (0.0, 0.0), (0.5, 0.6)),
        (0.0, (-1.0, 0.0), (0.6, 0.5)),
        (0.0, (0.0,), (1.5,)),
        (-1.0, (0.0,), (0.5,)),
        (0.0, (math.nan,), (0.5,)),
    ],
)
def test_map_that_is_not_monotone_is_refused(values: tuple):
    with pytest.raises(ValueError, match=r"share|score"):
        MonotoneMap(*values)
