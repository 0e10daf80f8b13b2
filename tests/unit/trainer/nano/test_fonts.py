from random import Random

import pytest

from trainer.nano.fonts.library import FontFace, FontLibrary, write_index


def library_of(folder, faces):
    write_index(folder, faces)
    return FontLibrary(folder)


def test_faces_that_can_draw_the_text_are_preferred(tmp_path):
    poor = FontFace("poor.ttf", "Poor", "regular", "sans", "abc")
    rich = FontFace("rich.ttf", "Rich", "regular", "sans", "abcé")
    library = library_of(tmp_path, [poor, rich])
    picks = [library.pick(Random(seed), "é") for seed in range(20)]
    assert all(face.family == "Rich" for face in picks)


def test_an_unknown_kind_falls_back_to_the_kinds_there_are(tmp_path):
    face = FontFace("a.ttf", "A", "regular", "serif", "abc")
    assert library_of(tmp_path, [face]).pick(Random(0), kind="mono") == face


def test_companions_are_the_other_faces_of_the_family(tmp_path):
    faces = [FontFace(f"{style}.ttf", "A", style, "serif", "abc") for style in ("regular", "bold", "italic")]
    library = library_of(tmp_path, [*faces, FontFace("b.ttf", "B", "bold", "serif", "abc")])
    assert library.companions(library.faces[0]) == faces[1:]


def test_an_empty_index_is_an_error(tmp_path):
    write_index(tmp_path, [])
    with pytest.raises(ValueError, match="empty"):
        FontLibrary(tmp_path)


def test_missing_characters_are_named(tmp_path):
    library = library_of(tmp_path, [FontFace("a.ttf", "A", "regular", "serif", "abc")])
    assert library.missing(library.faces[0], "a bé\nc") == {"é"}
