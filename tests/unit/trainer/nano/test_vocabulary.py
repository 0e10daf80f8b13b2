import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.deepseek_ocr.tokenizer import OcrTokenizer
from trainer.nano.corpus.tokenizer import SPECIAL_TOKENS, train_tokenizer

SAMPLE = [
    "The invoice of 2024-10-31, no. 4711.\nTotal: 1,234.50 EUR (incl. 19 % VAT)...",
    "the total of the invoices",
] * 20
BACKEND = train_tokenizer(SAMPLE, 420)
TOKENIZER = OcrTokenizer(BACKEND)


def pieces(text: str) -> list[str]:
    return [TOKENIZER.token_bytes(token_id).decode() for token_id in TOKENIZER.encode_plain(text)]


def test_special_tokens_have_the_first_ids():
    assert [TOKENIZER.token_id(token) for token in SPECIAL_TOKENS] == list(range(9))
    assert (TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.pad_id, TOKENIZER.image_id) == (0, 1, 2, 3)


def test_vocabulary_has_the_size_asked_for():
    assert TOKENIZER.vocab_size <= 420
    assert TOKENIZER.vocab_size > 265


def test_digits_and_line_breaks_stand_alone():
    assert pieces("2024\n\n31") == ["2", "0", "2", "4", "\n", "\n", "3", "1"]
    digits_or_breaks = [token for token in BACKEND.get_vocab() if any(sign in "0123456789Ċ" for sign in token)]
    assert all(len(token) == 1 for token in digits_or_breaks)


def test_runs_of_signs_are_split():
    assert pieces("...") == [".", ".", "."]


def test_words_take_the_space_before_them():
    assert pieces("of the the") == ["of", " the", " the"]


def test_no_token_is_long():
    learned = [token for token in BACKEND.get_vocab() if token not in SPECIAL_TOKENS]
    assert max(map(len, learned)) == 6


def test_training_twice_gives_the_same_vocabulary():
    assert train_tokenizer(SAMPLE, 420).get_vocab() == BACKEND.get_vocab()


@given(st.text())
def test_any_text_survives_a_round_trip(text: str):
    assert TOKENIZER.decode(TOKENIZER.encode_plain(text)) == text


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match="at least 265"):
        train_tokenizer(SAMPLE, 264)
