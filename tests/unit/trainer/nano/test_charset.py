import pytest

from trainer.nano.corpus.charset import REQUIRED, SUPPORTED, clean_text, shorten_runs


def test_white_space_of_every_kind_becomes_single_spaces():
    assert clean_text(" a\u00a0b\n\n c\u2009d ") == "a b c d"


def test_decomposed_letters_are_composed():
    assert clean_text("e\u0301") == "é"


def test_text_of_another_script_is_refused():
    assert clean_text("привет") is None


def test_soft_hyphens_vanish_and_ligatures_open():
    assert clean_text("of\u00adfice \ufb01n") == "office fin"


def test_every_supported_character_survives_cleaning():
    assert all(clean_text(f"a{character}b") == f"a{character}b" for character in SUPPORTED - {" "})


def test_required_characters_are_supported():
    assert REQUIRED < SUPPORTED


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ("Contents ......... 17", "Contents ... 17"),
        ("Contents . . . . . 17", "Contents ... 17"),
        ("Contents …… 17", "Contents ... 17"),
        ("Name: ______________", "Name: ___"),
        ("-----------------x\n- an item", "--- x\n- an item"),
        ("==========", "==="),
        ("card ****1234, wait... what -- or a---b", "card ****1234, wait... what -- or a---b"),
    ],
)
def test_leaders_and_rules_are_told_as_three_signs(printed, told):
    assert shorten_runs(printed) == told
    assert shorten_runs(told) == told
