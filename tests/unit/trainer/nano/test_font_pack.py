from pathlib import Path

import pytest

from trainer.nano.corpus.charset import REQUIRED
from trainer.nano.fonts.pack import HELD_OUT_FAMILIES, check_glyphs


def test_a_face_without_accents_is_refused_by_name_of_what_it_lacks(fonts_dir):
    characters, problem = check_glyphs(fonts_dir / "default.ttf", "abcdefghijklmnopqrstuvwxyzXH")
    assert set(characters) == set("abcdefghijklmnopqrstuvwxyzXH")
    assert problem.startswith("draws nothing for")


def test_a_sound_face_passes(fonts_dir):
    characters, problem = check_glyphs(fonts_dir / "default.ttf", "".join(REQUIRED))
    if not REQUIRED.issubset(characters):
        pytest.skip("the bundled face has no accents")
    assert problem == ""


def test_a_file_that_is_no_font_is_refused(tmp_path):
    path: Path = tmp_path / "broken.ttf"
    path.write_bytes(b"no font")
    assert check_glyphs(path, "abc")[1].startswith("cannot be drawn")


def test_families_of_several_kinds_are_held_out():
    assert {"Vollkorn", "Lato", "Fira Code", "Courier Prime"} <= HELD_OUT_FAMILIES
