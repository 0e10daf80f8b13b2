"""The contact sheet: every image with its text under it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, features

from tests.support.fonts import write_font
from trainer.data.prepare.card import CAPTION_LINES, CELL_PX, caption, contact_sheet
from trainer.data.render.faces import FaceSet


def ink_rows(image):
    """Which lines of a caption have ink."""
    lines = np.array_split(np.asarray(image) < 128, CAPTION_LINES)
    return [bool(line.any()) for line in lines]


def test_a_caption_has_the_first_lines_of_a_text():
    faces = FaceSet([])
    assert ink_rows(caption("one\ntwo", 200, faces)) == [True, True, False, False]
    assert ink_rows(caption("many words " * 200, 200, faces)) == [True] * 4
    assert caption("", 200, faces).size == caption("a", 200, faces).size
    assert not any(ink_rows(caption("", 200, faces)))


def test_letters_that_no_face_has_are_seen_to_be_missing(tmp_path):
    if not features.check("raqm"):
        pytest.skip("this Pillow finds no FriBiDi")
    known = np.asarray(caption("漢字 שלום", 200, FaceSet([])))
    other = np.asarray(caption("文書 עולם", 200, FaceSet([])))
    assert (known < 128).any()
    assert np.array_equal(known, other), "both are boxes"
    write_font(tmp_path / "han.ttf", {"漢": 1000, "字": 500, "a": 500, " ": 300, "?": 400})
    drawn = np.asarray(caption("漢字", 200, FaceSet([tmp_path])))
    assert not np.array_equal(drawn, np.asarray(caption("字漢", 200, FaceSet([tmp_path]))))


def test_the_sheet_has_a_text_under_each_image():
    white = Image.new("RGB", (300, 100), "white")
    pages = [(white.copy(), "first"), (white.copy(), "")]
    with Image.open(io.BytesIO(contact_sheet(pages))) as sheet:
        pixels = np.asarray(sheet.convert("L"))
    left, right = np.array_split(pixels, 2, axis=1)
    below = 8 + 100 * CELL_PX[0] // 300
    assert (left[below:] < 100).any()
    assert not (right[below:] < 100).any()
