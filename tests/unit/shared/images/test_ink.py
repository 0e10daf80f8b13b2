"""Print is told from dirty paper; the whole set is measured by `benchmarks/outcomes.py`."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.outcome_pages import BLANK_KINDS, TEXT_KINDS, Drawer, OutcomePage
from shared.images import ink
from shared.images.ink import find_ink
from shared.images.page_ink import MOST_MARKS

OF_EACH = 3


@pytest.fixture(scope="module")
def pages() -> list[OutcomePage]:
    # Pillow's own face, so that the pages are the same on every machine.
    return list(Drawer(5, [], []).pages(OF_EACH))


@pytest.mark.parametrize("kind", BLANK_KINDS)
def test_paper_without_print_is_blank(pages: list[OutcomePage], kind: str) -> None:
    marks = [find_ink(page.image).marks for page in pages if page.kind == kind]
    assert len(marks) == OF_EACH
    # Dust may look like a letter; the model then has to read nothing.
    assert sum(count > 0 for count in marks) <= (1 if kind in {"dust", "speckle"} else 0)


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_page_with_print_is_not_blank(pages: list[OutcomePage], kind: str) -> None:
    found = [find_ink(page.image) for page in pages if page.kind == kind]
    assert len(found) == OF_EACH
    assert not any(each.is_blank for each in found)


def text_page(text: str, colours: tuple[str, str], size: tuple[int, int] = (900, 600)) -> Image.Image:
    page = Image.new("RGB", size, colours[0])
    ImageDraw.Draw(page).text((60, 60), text, font=ImageFont.load_default(24), fill=colours[1])
    return page


@pytest.mark.parametrize(
    "colours",
    [("white", "black"), ("black", "white"), ("white", "yellow"), ("#fffbe6", "#c8b400"), ("navy", "#8080ff"),
     ("#dddddd", "red"), ("black", "#505050")],
)  # fmt: skip
def test_colours_do_not_hide_print(colours: tuple[str, str]) -> None:
    assert find_ink(text_page("Total 318", colours)).marks >= 6
    assert find_ink(text_page("", colours)).is_blank


@pytest.mark.parametrize("tone", [200, 235])
def test_print_on_a_dithered_ground_is_not_called_blank(tone: int) -> None:
    page = Image.new("L", (900, 600), tone)
    ImageDraw.Draw(page).multiline_text((60, 60), "Total 318 kg, paid\n" * 8, font=ImageFont.load_default(26), fill=0)
    assert not find_ink(page.convert("1").convert("RGB")).is_blank


@pytest.mark.parametrize("grain", [15, 30, 45])
def test_print_under_grain_is_not_called_blank(grain: int) -> None:
    page = np.asarray(text_page("Total 318 kg, paid\n" * 6, ("#c8c8c8", "black")), np.float64)
    noise = np.random.default_rng(0).normal(0, grain, page.shape[:2])
    grainy = np.clip(page + noise[:, :, None], 0, 255).astype(np.uint8)
    assert not find_ink(Image.fromarray(grainy)).is_blank


@pytest.mark.parametrize(("ground", "ink"), [("#ffffff", "#eeeeee"), ("#ebebeb", "#dedede")])
def test_faint_print_on_a_page_that_was_never_paper_is_found(ground: str, ink: str) -> None:
    assert not find_ink(text_page("Total 318 kg, paid", (ground, ink))).is_blank


def test_marks_are_counted_up_to_a_page_of_print() -> None:
    few, many = text_page("Total 318", ("white", "black")), text_page("Total 318 kg\n" * 15, ("white", "black"))
    assert find_ink(few).marks <= 9
    assert find_ink(many).marks == MOST_MARKS
    assert 0 < find_ink(few).ink_ratio < find_ink(many).ink_ratio < 0.2


def test_parts_of_a_page_tell_what_all_of_it_would(pages: list[OutcomePage], monkeypatch: pytest.MonkeyPatch) -> None:
    by_parts = [find_ink(page.image) for page in pages]
    monkeypatch.setattr(ink, "_PARTS", (1,))
    assert by_parts == [find_ink(page.image) for page in pages]
    assert {found.marks == MOST_MARKS for found in by_parts} == {True, False}


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 2), (3, 40), (4000, 3)])
def test_any_size_is_looked_at(size: tuple[int, int]) -> None:
    assert find_ink(Image.new("RGB", size, "white")).is_blank
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    assert find_ink(Image.fromarray(noise)).ink_ratio >= 0


def test_a_letter_alone_counts_in_a_crop_and_so_does_a_small_one() -> None:
    assert not find_ink(text_page("a", ("white", "black"), (150, 150))).is_blank


@pytest.mark.parametrize("size_px", [20, 40, 80, 160, 240])
@pytest.mark.parametrize("margin_px", [0, 1, 12])
@pytest.mark.parametrize("text", ["4711", "of 5", "Total 12.50", "gyp"])
def test_a_line_that_was_cut_out_is_not_blank(size_px: int, margin_px: int, text: str) -> None:
    font = ImageFont.load_default(size_px)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    strip = Image.new("RGB", (right - left + 2 * margin_px, bottom - top + 2 * margin_px), "white")
    ImageDraw.Draw(strip).text((margin_px - left, margin_px - top), text, font=font, fill="black")
    assert not find_ink(strip).is_blank
    # The same on a long strip, as a line of a page has it.
    line = Image.new("RGB", (size_px * 20, strip.height), "white")
    line.paste(strip, (size_px, 0))
    assert not find_ink(line).is_blank


def test_a_line_in_a_shadow_is_told_from_a_shadow() -> None:
    strips = [(strip.kind, find_ink(strip.image).marks) for strip in Drawer(7, [], []).strips(20)]
    assert min(marks for kind, marks in strips if kind == "line in shadow") > 0
    # Grain and cloth may look like letters; the model then has to read nothing.
    bare = [marks for kind, marks in strips if kind in {"shaded strip", "smooth strip", "back of a line"}]
    assert (len(bare), max(bare)) == (60, 0)


def test_a_shadow_may_hide_blurred_print() -> None:
    strip = Image.new("L", (160, 60), 255)
    ImageDraw.Draw(strip).text((40, 14), "paid", font=ImageFont.load_default(26), fill=110)
    light = np.linspace(0.95, 0.25, strip.width)[None, :] * np.linspace(1, 0.6, strip.height)[:, None]
    blurred = strip.filter(ImageFilter.GaussianBlur(3))
    ink = find_ink(Image.fromarray((np.asarray(blurred) * light).astype(np.uint8)))
    assert (ink.marks, ink.is_in_shadow, ink.is_blank) == (0, True, False)
    assert find_ink(Image.new("L", (160, 60), 200)).is_blank


@pytest.mark.parametrize("darkest", [0.5, 0.8])
def test_words_in_a_shadow_are_told_apart(darkest: float) -> None:
    strip = Image.new("L", (400, 40), 255)
    ImageDraw.Draw(strip).text((20, 4), "Total 12.50 paid", font=ImageFont.load_default(26), fill=0)
    light = np.linspace(1, darkest, strip.height)[:, None]
    ink = find_ink(Image.fromarray((np.asarray(strip) * light).astype(np.uint8)))
    # The point is no letter.
    assert ink.marks == len("Total1250paid")
    (line,) = ink.lines
    assert len(line.words_px) == 3


def test_the_frame_of_an_empty_cell_is_not_print() -> None:
    for size in ((220, 64), (480, 90), (300, 300)):
        cell = Image.new("L", size, 255)
        ImageDraw.Draw(cell).rectangle((0, 0, size[0] - 1, size[1] - 1), outline=0, width=2)
        assert find_ink(cell).is_blank


def test_print_of_separate_dashes_is_print() -> None:
    page = Image.new("L", (900, 1200), 255)
    draw = ImageDraw.Draw(page)
    for row in range(12):
        draw.text((60, 60 + 80 * row), "Linen cover, dark green 8.40", font=ImageFont.load_default(44), fill=0)
    # As needles print: rows of ink with paper between them.
    for y in range(0, page.height, 4):
        draw.rectangle((0, y, page.width, y + 1), fill=255)
    assert not find_ink(page).is_blank
    assert not find_ink(page.crop((0, 50, 900, 130))).is_blank
