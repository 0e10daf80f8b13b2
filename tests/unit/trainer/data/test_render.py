"""Texts on pages: faces and their stand-ins, direction, joined letters, line breaks, pages."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from PIL import features

from tests.support.fonts import write_font
from trainer.data.errors import DataCode, DataError, RowCode, RowError
from trainer.data.render import bidi
from trainer.data.render.bidi import base_level, levels, visual_order
from trainer.data.render.faces import BUILT_IN, FaceSet
from trainer.data.render.language import JAPANESE, KOREAN, SIMPLIFIED, TRADITIONAL, han_language
from trainer.data.render.lines import LineSetter, clusters
from trainer.data.render.pages import PageStyle, draw_pages, visible

needs_raqm = pytest.mark.skipif(not features.check("raqm"), reason="this Pillow finds no FriBiDi")
LATIN = "abcdefghijklmnopqrstuvwxyz .,()0123456789"
ARABIC = "ابتس"
HEBREW = "אבגד"
CJK = "漢字文書、。「」"
THAI = "กขาิเ่"
SIZE_PX = 100


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fonts")
    write_font(folder / "latin.ttf", dict.fromkeys(LATIN, 500))
    write_font(folder / "hebrew.ttf", dict.fromkeys(f"{HEBREW} ()0123456789", 400))
    write_font(folder / "more" / "cjk.otf", dict.fromkeys(CJK, 1000))
    write_font(folder / "thai.ttf", {**dict.fromkeys(THAI, 300), "ิ": 0, "่": 0})
    glyphs = {"beh.init": 100, "beh.medi": 200, "beh.fina": 300}
    rules = "languagesystem DFLT dflt; languagesystem arab dflt;" + "".join(
        f" feature {form} {{ sub u0628 by beh.{form}; }} {form};" for form in ("init", "medi", "fina")
    )
    write_font(folder / "arabic.ttf", {**dict.fromkeys(ARABIC, 900), " ": 500}, glyphs, rules)
    (folder / "broken.ttf").write_bytes(b"no font")
    (folder / "readme.txt").write_text("not a font")
    return FaceSet([folder])


def setter_for(fonts, text):
    return LineSetter(fonts, fonts.choose(text, Random(0)), SIZE_PX)


def test_broken_files_are_passed_over_and_collections_of_folders_searched(fonts):
    assert sorted(face.name for face in fonts.faces) == [
        "arabic.ttf",
        "cjk.otf",
        "hebrew.ttf",
        "latin.ttf",
        "thai.ttf",
    ]


def test_a_text_gets_the_face_that_has_most_of_it_and_stand_ins_for_the_rest(fonts):
    chosen = fonts.choose("abc defg 漢字 אב", Random(0))
    assert chosen[0].name == "latin.ttf"
    assert {face.name for face in chosen[1:]} == {"cjk.otf", "hebrew.ttf"}


def test_a_glyph_that_no_font_has_is_an_error_with_its_code_point(fonts):
    with pytest.raises(RowError, match=r"no font has U\+2603 SNOWMAN.*--fonts") as refused:
        fonts.choose("abc \u2603", Random(0))
    assert refused.value.code is RowCode.GLYPH_MISSING
    with pytest.raises(RowError, match=r"U\+00C4 .*, U\+00D6 .*, U\+00DC .* and 1 more"):
        fonts.choose("ÄÖÜß", Random(0))


def test_missing_fonts_are_said(tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError) as refused:
            FaceSet([folder])
        assert refused.value.code is DataCode.FONTS_MISSING


def test_without_folders_there_is_pillows_own_face():
    faces = FaceSet([])
    assert [face.name for face in faces.choose("Plain text, 5 words only.", Random(0))] == [BUILT_IN]


@needs_raqm
@pytest.mark.parametrize(
    ("text", "base", "expected"),
    [
        ("abc", 0, "000"),
        ("abאב", 0, "0011"),
        ("אב ab", 1, "11122"),
        ("אב 12", 1, "11122"),
        ("ab 12", 0, "00000"),
        ("אב 12", 0, "11122"),
        ("ab (אב)", 0, "0000110"),
        ("אב (ab)", 1, "1111221"),
        ("سع 12.5", 1, "1112222"),
        ("אב 5%", 1, "11122"),
        ("ab אב, גד ef", 0, "000111111000"),
    ],
)
def test_levels_are_those_of_the_unicode_algorithm(text, base, expected):
    assert "".join(map(str, levels(text, base))) == expected


@needs_raqm
@pytest.mark.parametrize(
    "text",
    ["המחיר הוא (USD) 45.50 [ref] לשעה (1) בלבד", "الوزن (kg) 12.5", 'סה"כ (EUR) 1,299.00', "ספר (ISBN) 978-3-16",
     "السعر 20% و 5-7 كم (km) 1/2", "שלום {a [b] c} 12"],
)  # fmt: skip
def test_brackets_of_a_pair_have_the_direction_of_their_paragraph(text):
    # Rule N0: a pair around letters of the other direction follows the text before it.
    found = levels(text, base_level(text))
    brackets = [level for character, level in zip(text, found, strict=True) if character in "()[]{}"]
    pairs = [level for character, level in zip(text, found, strict=True) if character in "()"] or brackets[:1]
    assert set(pairs) == {1}
    assert levels("Say (שלום) עולם", 0)[4] == levels("Say (שלום) עולם", 0)[9] == 0


def test_without_fribidi_lines_of_one_direction_are_drawn_and_others_refused(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", missing)
    bidi._fribidi.cache_clear()
    try:
        assert levels("ab (cd) 12", 0) == [0] * 10
        with pytest.raises(DataError, match="libfribidi0"):
            levels("אב", 1)
    finally:
        bidi._fribidi.cache_clear()


def test_visual_order_turns_inner_runs_first():
    pieces = [(1, "A"), (2, "1"), (2, "2"), (1, "B"), (0, "c")]
    assert [piece for _, piece in visual_order(pieces)] == ["B", "1", "2", "A", "c"]
    assert visual_order([]) == []
    assert (base_level("12 אב ab"), base_level("12 ab אב"), base_level("12")) == (1, 0, 0)


@needs_raqm
def test_arabic_letters_take_their_joined_forms(fonts):
    setter = setter_for(fonts, "ببب")
    # First, middle and last form are 100, 200 and 300 thousandths of an em wide, an unjoined letter 900.
    assert setter.width("ببب", 1) == 60
    assert setter.width("ب", 1) == 90
    assert setter.width("ب\u200cب", 1) >= 180


@needs_raqm
def test_a_line_of_several_faces_stands_in_visual_order(fonts):
    text = "ab אב (גד) 12 漢 cd"
    segments = setter_for(fonts, text).segments(text, 0)
    assert "".join(segment.text for segment in segments if not segment.is_rtl).replace(" ", "") == "ab12漢cd"
    assert [segment.text.strip() for segment in segments if segment.text.strip()] == ["ab", "12", "אב (גד)", "漢", "cd"]
    text = "אב ab"
    assert [segment.text.strip() for segment in setter_for(fonts, text).segments(text, 1)] == ["ab", "אב"]


def test_every_line_fits_and_nothing_is_lost(fonts):
    rng = Random(1)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(1, 12))) for _ in range(60)]
    text = " ".join(words)
    setter = setter_for(fonts, text)
    lines = list(setter.break_paragraph(text, 800))
    assert all(setter.width(line, 0) <= 800 for line in lines)
    assert " ".join(lines) == text
    # A word wider than the line is torn, and only such a word.
    lines = list(setter.break_paragraph("ab " + "c" * 40 + " de", 800))
    assert lines == ["ab", "c" * 16, "c" * 16, "c" * 8 + " de"]


def test_ideographs_break_anywhere_but_before_a_full_stop_and_after_a_bracket(fonts):
    setter = setter_for(fonts, CJK)
    assert list(setter.break_paragraph("漢字文書。漢「字文書", 400)) == ["漢字文", "書。漢", "「字文書"]


@needs_raqm
def test_marks_and_leading_vowels_stay_with_their_letters(fonts):
    setter = setter_for(fonts, THAI)
    assert clusters("กิ่ขเ") == ["กิ่", "ข", "เ"]
    assert list(setter.break_paragraph("กิ่ขเกาข", 90)) == ["กิ่ข", "เกา", "ข"]


def test_what_leaves_no_trace_on_paper_is_left_out_of_the_truth():
    assert visible("a\u00adb\u200bc\ufeff\u202ad\te\n\u200c") == "abcd e\n\u200c"


def test_scripts_that_need_a_shaper_are_refused_without_one(fonts, monkeypatch):
    monkeypatch.setattr(fonts, "has_shaper", False)
    for text in ("abc ب", "אב", "กิ"):
        with pytest.raises(DataError, match=r"U\+0[56E].*libfribidi0") as refused:
            list(draw_pages(text, fonts, PageStyle(), Random(0)))
        assert refused.value.code is DataCode.SHAPING_MISSING


def test_a_long_text_takes_pages_and_each_has_its_own_lines(fonts):
    style = PageStyle(width_px=400, height_px=300, margin_px=20, size_px=(20, 30))
    text = "\n\n".join(" ".join(["some words that go on"] * 12) for _ in range(4))
    pages = list(draw_pages(text, fonts, style, Random(3)))
    assert len(pages) > 3
    assert " ".join(" ".join(page.text for page in pages).split()) == " ".join(text.split())
    for page in pages:
        assert page.image.width == 400
        assert page.image.height <= 300
        assert not page.text.startswith("\n")
        assert not page.text.endswith("\n")
        ink = np.asarray(page.image) < 128
        assert not ink[:19].any()
        assert not ink[-19:].any()
        assert not ink[:, :19].any()
        assert not ink[:, -19:].any()
        # As many inked bands as lines with text.
        rows = ink.any(axis=1)
        assert int((rows[1:] & ~rows[:-1]).sum()) == len([line for line in page.text.split("\n") if line])
    again = list(draw_pages(text, fonts, style, Random(3)))
    assert [page.image.tobytes() for page in again] == [page.image.tobytes() for page in pages]


@needs_raqm
def test_a_right_to_left_paragraph_stands_at_the_right(fonts):
    (page,) = draw_pages("אב\nab", fonts, PageStyle(400, 400, 20, (30, 30)), Random(0))
    ink = np.asarray(page.image) < 128
    bands = [band for band in np.split(ink, np.flatnonzero(np.diff(ink.any(axis=1))) + 1) if band.any()]
    columns = [np.flatnonzero(band.any(axis=0)) for band in bands]
    assert columns[0].min() > 300
    assert columns[1].max() < 100


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("東京の駅で", JAPANESE),
        ("한국어 漢字", KOREAN),
        ("图书馆里有很多书", SIMPLIFIED),
        ("圖書館裡有很多書", TRADITIONAL),
        ("駅前広場", JAPANESE),
        ("人口大小", None),
        ("plain text", None),
        ("かな", None),
    ],
)
def test_the_language_of_han_characters_is_guessed_by_those_that_tell(text, language):
    assert han_language(text) == language


@pytest.fixture(scope="module")
def han_faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("han")
    letters = dict.fromkeys("人口図图圖の ", 1000)
    for word in ("JP", "SC", "TC"):
        write_font(folder / f"{word}.ttf", letters, family=f"Some Sans {word}")
    write_font(folder / "pages.ttf", letters, family="By Pages", code_pages=1 << 19)
    return FaceSet([folder])


@pytest.mark.parametrize(
    ("text", "given", "family"),
    [
        ("人口の", None, "Some Sans JP"),
        ("图人", None, "Some Sans SC"),
        ("圖人", None, "Some Sans TC"),
        ("人口", "zh-Hans", "Some Sans SC"),
        ("人口の", "ko", "By Pages"),
    ],
)
def test_han_characters_are_drawn_with_a_face_of_their_language(han_faces, text, given, family):
    drawn = {han_faces.choose(text, Random(seed), given)[0].family for seed in range(12)}
    assert drawn == {family}


def test_families_are_equally_likely_however_many_files_they_have(tmp_path):
    for weight in range(1, 10):
        write_font(tmp_path / f"many-{weight}.ttf", dict.fromkeys(LATIN, 500), family="Many", weight=100 * weight)
    write_font(tmp_path / "one.ttf", dict.fromkeys(LATIN, 500), family="One")
    faces, rng = FaceSet([tmp_path]), Random(0)
    chosen = [faces.choose("abc", rng)[0] for _ in range(400)]
    assert 160 < sum(face.family == "One" for face in chosen) < 240
    assert len({face.name for face in chosen}) == 10


def test_a_face_that_stands_in_has_the_weight_of_the_main_one(tmp_path):
    for weight in (300, 700):
        write_font(tmp_path / f"latin-{weight}.ttf", dict.fromkeys("abc ", 500), family="Latin", weight=weight)
    for weight in (900, 300, 700):
        write_font(tmp_path / f"greek-{weight}.ttf", dict.fromkeys("λ ", 500), family=f"Greek {weight}", weight=weight)
    faces = FaceSet([tmp_path])
    pairs = {tuple(face.weight for face in faces.choose("abc λ", Random(seed))) for seed in range(20)}
    assert pairs == {(300, 300), (700, 700)}


@pytest.mark.parametrize("follower", ["ゃ", "ッ", "ー", "々", "」", "％", "ｮ", "〟"])
def test_no_line_begins_with_what_belongs_to_the_one_before(tmp_path, follower):
    write_font(tmp_path / "kana.ttf", dict.fromkeys(f"あ {follower}", 1000))
    setter = setter_for(FaceSet([tmp_path]), f"あ{follower}")
    assert list(setter.break_paragraph(f"ああ{follower}あ", 2 * SIZE_PX)) == ["あ", f"あ{follower}", "あ"]


def mixed_phrases(count):
    """Everyday phrases of both directions: words, brackets, numbers, prices, dates, percentages."""
    rng = Random(7)
    parts = [
        ["שלום", "מחיר", "לשעה", "ספר", 'סה"כ'],
        ["سعر", "كيلو", "الوزن", "كتاب"],
        ["abc", "USD", "km", "ISBN", "A4"],
        ["12.5", "1,299.00", "978-3-16", "20%", "1/2", "5-7", "$45"],
        ["(", ")", "[", "]", "-", ":", ".", ",", "!"],
    ]
    for _ in range(count):
        words = [rng.choice(rng.choice(parts)) for _ in range(rng.randint(2, 8))]
        if rng.random() < 0.5:
            at = rng.randrange(len(words))
            words[at] = f"({words[at]})"
        yield " ".join(words) if rng.random() < 0.7 else "".join(words)


@needs_raqm
def test_two_thousand_mixed_phrases_are_ordered_as_another_implementation_does():
    """python-bidi is the algorithm of unicode-bidi, in Rust; it gives no levels, so what is compared are characters."""
    from bidi import get_display

    def unmirrored(text):
        # One of them turns brackets itself, of the other the shaper does it.
        return text.translate(str.maketrans(")]", "(["))

    for phrase in mixed_phrases(2000):
        base = base_level(phrase)
        ordered = "".join(letter for _, letter in visual_order(list(zip(levels(phrase, base), phrase, strict=True))))
        expected = get_display(phrase, base_dir="R" if base else "L")
        assert unmirrored(ordered) == unmirrored(expected), phrase
