import numpy as np
import pytest
from PIL import Image, ImageDraw

from trainer.nano.fonts.glyphs import FineGlyphSet, GlyphSet


def drawn_whole(font, text, shape, x, baseline):
    rows, columns = shape
    canvas = Image.new("L", (columns, rows), 0)
    ImageDraw.Draw(canvas).text((x, baseline), text, font=font, fill=255, anchor="ls")
    return np.asarray(canvas)


@pytest.mark.parametrize("text", ["Hxnmu olive", "jgyp|(Q)", "fff WWW ijl"])
@pytest.mark.parametrize("size", [11, 24, 47])
def test_a_line_from_cells_equals_single_glyphs_side_by_side(library, text, size):
    font = library.load(library.faces[0], size)
    line = GlyphSet(font, size).draw_cells(text)
    expected = np.zeros_like(line.ink)
    x = line.origin
    for character in text:
        glyph = drawn_whole(font, character, line.ink.shape, x, line.baseline)
        expected = np.maximum(expected, glyph)
        x += round(font.getlength(character))
    np.testing.assert_array_equal(line.ink, expected)
    assert line.width == x - line.origin


def test_width_is_what_a_line_from_cells_takes(library):
    glyphs = GlyphSet(library.load(library.faces[0], 20), 20)
    assert glyphs.width("some words", 2) == glyphs.draw_cells("some words", 2).width


def test_stretched_lines_are_exactly_as_wide_as_asked(library):
    glyphs = GlyphSet(library.load(library.faces[0], 20), 20)
    natural = glyphs.width("one two three")
    assert glyphs.draw("one two three", stretch_to=natural + 17).width == natural + 17


def test_glyphs_drawn_together_equal_glyphs_drawn_alone(library):
    font = library.load(library.faces[0], 23)
    together, alone = GlyphSet(font, 23), GlyphSet(font, 23)
    together.ensure("quick brown (fox)")
    np.testing.assert_array_equal(
        together.draw_cells("quick brown (fox)").ink, alone.draw_cells("quick brown (fox)").ink
    )


def test_halving_keeps_size_and_amount_of_ink(library):
    face = library.faces[0]
    double = GlyphSet(library.load(face, 40), 40)
    fine = FineGlyphSet(double)
    whole, half = double.draw_cells("Halved text"), fine.draw_cells("Halved text")
    assert half.width == fine.width("Halved text") == -(-whole.width // 2)
    assert int(half.ink.sum()) * 4 == pytest.approx(int(whole.ink.sum()), rel=0.01)
