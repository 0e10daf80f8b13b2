from random import Random

import pytest

from tests.unit.trainer.conftest import ENGLISH, GERMAN
from trainer.nano.corpus.corpus import Corpus


def test_passages_are_the_packed_lines_word_for_word(corpus):
    rng = Random(1)
    seen = {corpus.passage(rng).text for _ in range(200)}
    assert seen == {*ENGLISH, *GERMAN}


def test_about_seventy_percent_are_english(corpus):
    rng = Random(2)
    english = sum(corpus.passage(rng).language == "en" for _ in range(2000))
    assert 1300 < english < 1500


def test_words_come_from_the_dictionary_where_there_is_one(corpus):
    assert set(corpus.words(Random(3), 50, "en")) <= {"apple", "bridge", "candle", "dragon", "engine"}


def test_words_come_from_paragraphs_where_there_is_none(corpus):
    words = corpus.words(Random(3), 5, "de")
    assert len(words) == 5
    assert set(words) <= set(GERMAN[0].split())


def test_a_folder_without_texts_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no packed paragraphs"):
        Corpus(tmp_path)
