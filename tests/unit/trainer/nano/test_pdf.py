"""Pages of PDFs: words and their order, what is refused, cut-outs, packing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pikepdf
import pypdfium2 as pdfium  # type: ignore[import-untyped] # ships no types
import pytest

from shared.deepseek_ocr.nano_config import NANO_GEOMETRY
from trainer.nano.corpus.charset import SUPPORTED
from trainer.nano.pdf.pack import EVALUATION_LINES, check_page, drop_pictures, pack_document
from trainer.nano.pdf.pages import INDEX_NAME, PdfPages
from trainer.nano.pdf.text import Box, Glyph, PageText, RefusedPageError, Word, line_key, make_words, read_page

LEFT = [f"left line number {n} of the first column" for n in range(12)]
RIGHT = [f"right line {n} belongs to the second one" for n in range(12)]


def column(x: int, top: int, lines: list[str]) -> list[tuple[int, int, str]]:
    return [(x, top - 14 * i, line) for i, line in enumerate(lines)]


def pdf_of(*pages: list[tuple[int, int, str]], grey: float = 0.0) -> bytes:
    """A PDF of lines at given places, in the order given, set in Helvetica 10."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects.append(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode())
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>")
    for i, page in enumerate(pages):
        shown = "\n".join(f"BT /F1 10 Tf {grey} g {x} {y} Td ({text}) Tj ET" for x, y, text in page).encode("cp1252")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {5 + 2 * i} 0 R"
            " /Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(shown), shown))
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    start = len(data)
    data += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}".encode()
    return data + f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF".encode()


def first_page(data: bytes) -> pdfium.PdfPage:
    return pdfium.PdfDocument(data)[0]


def test_two_columns_are_read_one_after_the_other_and_the_head_comes_first():
    page = [
        *column(50, 700, LEFT),
        *column(320, 700, RIGHT),
        (50, 800, "A title above both of the columns, printed last"),
    ]
    text = read_page(first_page(pdf_of(page))).text()
    assert text.split("\n\n") == [page[-1][2], "\n".join(LEFT), "\n".join(RIGHT)]


def test_pages_whose_file_tells_another_order_are_refused():
    with pytest.raises(RefusedPageError, match="order"):
        read_page(first_page(pdf_of([*column(320, 700, RIGHT), *column(50, 700, LEFT)])))


def test_cells_of_a_row_are_joined_by_a_space():
    cells = [(x, 700 - 14 * row, f"r{row}c{i}") for row in range(6) for i, x in enumerate((50, 200, 400))]
    text = read_page(first_page(pdf_of(cells))).text()
    assert text.splitlines() == [f"r{row}c0 r{row}c1 r{row}c2" for row in range(6)]


def test_cells_of_several_lines_are_read_cell_by_cell():
    cells = []
    for row in range(3):
        for i, x in enumerate((50, 300)):
            cells += column(x, 700 - 60 * row, [f"cell {row} {i} {part}" for part in ("one", "two", "three")])
    lines = read_page(first_page(pdf_of(cells))).text().replace("\n\n", "\n").splitlines()
    assert lines == [f"cell {row} {i} {part}" for row in range(3) for i in range(2) for part in ("one", "two", "three")]


def test_leaders_are_told_as_three_dots():
    page = [*column(50, 700, LEFT), (50, 400, "Chapter one . . . . . . . . . . . . . . 17")]
    assert read_page(first_page(pdf_of(page))).text().endswith("\n\nChapter one ... 17")


def test_overlapping_text_is_refused():
    with pytest.raises(RefusedPageError, match=r"overlap|no cut"):
        read_page(first_page(pdf_of([*column(50, 700, LEFT), *column(52, 704, RIGHT)])))


def glyph(text: str | None, x: float, *, spaced: bool = False, upright: bool = True) -> Glyph:
    return Glyph(text, Box(x, 0, x + 5, 10), 10, spaced, upright)


def test_words_end_at_spaces_and_gaps_and_keep_their_ligatures():
    words = make_words([glyph("o", 0), glyph("ffi", 5), glyph("ce", 10), glyph("a", 16, spaced=True), glyph("b", 30)])
    assert [word.text for word in words] == ["office", "a", "b"]
    assert [character for _, _, character in words[0].marks] == list("office")
    assert words[0].marks[1][0] < words[0].marks[2][0] < words[0].marks[3][0]


@pytest.mark.parametrize("strange", [glyph("\u0414", 5), glyph(None, 5), glyph("b", 5, upright=False)])
def test_words_that_nano_cannot_write_have_no_text(strange):
    assert all("\u0414" not in (word.text or "") for word in make_words([glyph("a", 0), strange]))
    assert any(word.text is None and word.marks == () for word in make_words([glyph("a", 0), strange]))


def test_invisible_words_are_refused():
    page = first_page(pdf_of(column(50, 700, [*LEFT, *RIGHT]), grey=0.98))
    with pytest.raises(RefusedPageError, match="invisible"):
        check_page(page, read_page(page), frozenset())


def test_no_page_with_a_line_of_an_evaluation_page_is_packed(tmp_path):
    data = pdf_of(column(50, 700, [*LEFT, *RIGHT]))
    page = first_page(data)
    check_page(page, read_page(page), frozenset())
    key = line_key("  Right LINE 3, belongs to the second one!")
    assert key is not None
    counts: Counter[str] = Counter()
    assert pack_document(data, tmp_path / "out.pdf", frozenset({key}), set(), counts, 3) == 0
    assert counts == {"refused_evaluation": 1}
    assert not (tmp_path / "out.pdf").exists()


def test_the_list_of_evaluation_lines_holds_keys_alone():
    keys = EVALUATION_LINES.read_text().split()
    assert len(keys) == len(set(keys)) > 500
    assert all(len(key) == 16 and set(key) <= set("0123456789abcdef") for key in keys)
    assert line_key("too short") is None


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    pages = [[(x, y, f"{text} {n}") for x, y, text in column(50, 780, LEFT * 3)] for n in range(4)]
    count = pack_document(pdf_of(*pages), tmp_path / "a.pdf", frozenset(), set(), Counter(), 3)
    assert count == 3
    (tmp_path / INDEX_NAME).write_text(json.dumps({"files": {"a.pdf": list(range(count))}}))
    return tmp_path


@pytest.mark.parametrize("kind", ["whole", "cut"])
def test_samples_tell_what_their_image_shows(packed, kind):
    source, again = PdfPages(packed, NANO_GEOMETRY, 5), PdfPages(packed, NANO_GEOMETRY, 5)
    for _ in range(6):
        sample = getattr(source, kind)()
        same = getattr(again, kind)()
        assert sample.text == same.text
        assert np.array_equal(sample.ink, same.ink)
        assert sample.ink.dtype == np.uint8
        assert set(sample.text) <= SUPPORTED | {"\n"}
        written = sample.text.replace("\n", "").replace(" ", "")
        assert len(sample.marks) == len(written)
        height, width = sample.ink.shape
        assert all(0 <= x < width and 0 <= y < height for x, y, _ in sample.marks)
        near = [sample.ink[int(y) - 6 : int(y) + 7, max(int(x) - 6, 0) : int(x) + 7].min() for x, y, _ in sample.marks]
        assert np.mean(np.array(near) < 128) > 0.95


def test_text_of_a_window_holds_whole_words_only():
    def word(text: str, x: float) -> Word:
        return Word(text, Box(x, 0, x + 20, 10), 10, ())

    from trainer.nano.pdf.text import Block

    page = PageText(100, 20, (Block([[word("one", 0), word("two", 30), word("six", 60)]]),), ())
    assert page.text() == "one two six"
    assert page.text(Box(10, -1, 90, 20)) == "two six"


def test_pictures_of_a_packed_document_are_one_point_and_stay_where_they_are(tmp_path):
    document = pikepdf.new()
    page = document.add_blank_page(page_size=(200, 200))
    picture = pikepdf.Stream(document, bytes(64 * 64 * 3), Width=64, Height=64, BitsPerComponent=8)
    picture.Type, picture.Subtype, picture.ColorSpace = pikepdf.Name.XObject, pikepdf.Name.Image, pikepdf.Name.DeviceRGB
    page.Resources = pikepdf.Dictionary(XObject=pikepdf.Dictionary(P=picture))
    page.Contents = pikepdf.Stream(document, b"q 80 0 0 60 40 50 cm /P Do Q")
    document.save(tmp_path / "a.pdf", compress_streams=False)
    before = first_page((tmp_path / "a.pdf").read_bytes())
    drop_pictures(tmp_path / "a.pdf")
    after = first_page((tmp_path / "a.pdf").read_bytes())
    (old,), (new,) = (list(page.get_objects()) for page in (before, after))
    assert old.get_bounds() == new.get_bounds()
    assert old.get_px_size() == (64, 64)
    assert new.get_px_size() == (1, 1)
    assert (tmp_path / "a.pdf").stat().st_size < 2000
