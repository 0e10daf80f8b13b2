from __future__ import annotations

from dataclasses import replace

import pytest

from service.ocr.logprobs import Piece, text_pieces
from shared.contract.confidence import TokenScores, score_tokens
from shared.deepseek_ocr.grounding import parse_grounded


def scored(*tokens: bytes) -> TokenScores:
    return score_tokens(tokens, [-1.0 / 2**place for place in range(len(tokens))])


def test_tokens_of_a_text_without_markers_are_its_pieces() -> None:
    pieces = text_pieces("one two\n", "one two\n", ((0, 8),), scored(b"one", b" two", b"\n"))
    assert pieces == [Piece("one", -1.0), Piece(" two", -0.5), Piece("\n", -0.25)]


def test_tokens_that_share_a_character_are_one_piece() -> None:
    answer = "a\u20acb"
    scores = scored(b"a", b"\xe2\x82", b"\xac", b"b")
    pieces = text_pieces(answer, answer, ((0, 3),), scores)
    assert pieces == [Piece("a", -1.0), Piece("\u20ac", -0.75), Piece("b", -0.125)]
    tops = tuple(((bytes([97 + place]), -0.5),) for place in range(4))
    with_tops = text_pieces(answer, answer, ((0, 3),), replace(scores, alternatives=tops))
    assert [piece.alternatives for piece in with_tops] == [tops[0], (), tops[3]]


def test_markers_and_boxes_are_left_out_and_white_space_goes_with_what_follows() -> None:
    tokens = (
        b"<|ref|>",
        b"text",
        b"<|/ref|>",
        b"<|det|>",
        b"[[1,2,3,4]]",
        b"<|/det|>",
        b"\n",
        b"Hel",
        b"lo",
        b"\n\n\n\n",
        b"x",
    )
    answer = b"".join(tokens).decode()
    grounded = parse_grounded(answer, 100, 100)
    scores = scored(*tokens)
    pieces = text_pieces(grounded.text, answer, grounded.sources, scores)
    assert [piece.text for piece in pieces] == ["Hel", "lo", "\n\nx"]
    assert [piece.log_probability for piece in pieces] == [scores.log_probabilities[place] for place in (7, 8, 10)]


@pytest.mark.parametrize("text", ["other", "on"])
def test_text_that_is_not_the_answers_is_one_piece(text: str) -> None:
    assert text_pieces(text, "one", ((0, 3),), scored(b"o", b"ne")) == [Piece(text, -1.5)]
