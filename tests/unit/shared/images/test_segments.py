"""Lines of print on drawn pages: each found once, in the order in which a person reads, with true boxes."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from shared.images.page_lines import lines_of_page
from shared.images.reading_order import reading_order
from shared.images.segments import find_segments
from shared.images.strip_text import page_text, word_boxes

Box = tuple[int, int, int, int]
PROSE = (
    "The queue belongs to one task and",
    "drops what has been cancelled before",
    "it forms a batch of those that are left",
)


class Sheet:
    """A page that knows where its lines are."""

    def __init__(self, width: int = 1200, height: int = 900, paper: int = 255) -> None:
        self.image = Image.new("RGB", (width, height), (paper,) * 3)
        self.draw = ImageDraw.Draw(self.image)
        self.lines: list[tuple[str, Box]] = []

    def write(self, x: int, y: int, text: str, size: int = 22, fill: int = 0) -> None:
        font = ImageFont.load_default(size)
        self.draw.text((x, y), text, fill=(fill,) * 3, font=font)
        self.lines.append((text, tuple(map(round, self.draw.textbbox((x, y), text, font=font)))))


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (area - shared)


def read(image: Image.Image, lines: list[tuple[str, Box]]) -> str:
    """The page's text as a perfect reader would give it: each strip reads as the words in its box."""
    strips = lines_of_page(image)

    def text_of(box: Box) -> str:
        words = []
        for text, place in lines:
            parts = text.split()
            step = (place[2] - place[0]) / max(len(text), 1)
            at = float(place[0])
            for word in parts:
                middle = at + step * len(word) / 2, (place[1] + place[3]) / 2
                if box[0] <= middle[0] <= box[2] and box[1] - 3 <= middle[1] <= box[3] + 3:
                    words.append(word)
                at += step * (len(word) + 1)
        return " ".join(words)

    return page_text(strips, [text_of(strip.box_px) for strip in strips]).text


def test_lines_have_true_boxes():
    sheet = Sheet()
    for number, size in enumerate((14, 22, 22, 40)):
        sheet.write(80, 60 + 90 * number, PROSE[number % 3], size)
    strips = lines_of_page(sheet.image)
    found: dict[int, Box] = {}
    for strip in strips:
        box = found.get(strip.row, strip.box_px)
        found[strip.row] = (
            min(box[0], strip.box_px[0]), min(box[1], strip.box_px[1]),
            max(box[2], strip.box_px[2]), max(box[3], strip.box_px[3]),
        )  # fmt: skip
    overlaps = [overlap(box, truth) for box, (_, truth) in zip(found.values(), sheet.lines, strict=True)]
    assert np.mean(overlaps) > 0.8


def test_words_have_true_boxes_once_their_text_is_known():
    sheet = Sheet()
    font = ImageFont.load_default(24)
    sheet.write(80, 60, "Numbers, (such as) 12,345.00 or words: done.", 24)
    (text, _), x, overlaps = sheet.lines[0], 80.0, []
    (strip,) = lines_of_page(sheet.image)
    boxes = word_boxes(strip.parts_px, len(text.split()))
    for word, box in zip(text.split(), boxes, strict=True):
        left, _, right, _ = sheet.draw.textbbox((x, 60), word, font=font)
        overlaps.append(overlap((round(left), 0, round(right), 1), (box[0], 0, box[2], 1)))
        x += font.getlength(word + " ")
    assert min(overlaps) > 0.85


@pytest.mark.parametrize("degrees", [-3.0, 1.2, 4.0])
def test_turned_page_is_levelled_and_boxes_are_on_it(degrees):
    sheet = Sheet(paper=240)
    for number in range(9):
        sheet.write(120, 120 + 60 * number, PROSE[number % 3] + " " + PROSE[(number + 1) % 3])
    matrix = cv2.getRotationMatrix2D((600, 450), degrees, 1.0)
    turned = Image.fromarray(cv2.warpAffine(np.asarray(sheet.image), matrix, (1200, 900), borderValue=(240,) * 3))
    level = find_segments(turned)
    assert level.turn is not None
    rows = [row for block in reading_order(level.segments) for row in block]
    assert len(rows) == 9
    # The middle of each line, where the turn put it.
    for row, (_, (x1, y1, x2, y2)) in zip(rows, sheet.lines, strict=True):
        boxes = [level.on_page(segment.box) for segment in row]
        x, y = matrix @ np.array([(x1 + x2) / 2, (y1 + y2) / 2, 1.0])
        around = min(box[0] for box in boxes), min(box[1] for box in boxes), boxes[-1][2], max(box[3] for box in boxes)
        assert around[0] < x < around[2]
        assert around[1] - 12 < y < around[3] + 12


def test_columns_are_read_one_after_the_other():
    sheet = Sheet()
    sheet.write(80, 40, "A heading across both of the columns", 30)
    for number in range(8):
        sheet.write(80, 120 + 36 * number, f"left{number} " + PROSE[number % 3][:30])
        sheet.write(620, 131 + 36 * number, f"right{number} " + PROSE[number % 3][:30])
    text = read(sheet.image, sheet.lines)
    places = [text.index(f"{side}{number} ") for side in ("left", "right") for number in range(8)]
    assert places == sorted(places)
    assert text.startswith("A heading")


def test_rows_of_a_ruled_table_are_lines():
    sheet = Sheet()
    for row in range(7):
        top = 80 + 40 * row
        for column, text in enumerate((f"Article number {row}", f"{row},50", "-", f"{3 * row}.00 EUR")):
            sheet.write(90 + 250 * column, top + 8, text)
        sheet.draw.line((80, top, 1090, top), fill=0, width=2)
    for x in (80, 330, 580, 830, 1090):
        sheet.draw.line((x, 80, x, 360), fill=0, width=2)
    lines = [line for line in read(sheet.image, sheet.lines).split("\n") if line]
    assert lines == [f"Article number {row} {row},50 - {3 * row}.00 EUR" for row in range(7)]


def test_light_print_on_a_dark_bar_is_found_and_cut_out_dark():
    sheet = Sheet()
    sheet.draw.rectangle((80, 80, 900, 122), fill=(60, 60, 60))
    sheet.write(100, 88, "Description and quantity", fill=255)
    sheet.write(100, 150, "An ordinary line of print below it")
    strips = lines_of_page(sheet.image)
    assert len({strip.row for strip in strips}) == 2
    for strip in strips:
        assert np.median(strip.pixels_HW) > 240
        assert strip.pixels_HW.min() < 80


def test_negative_page_is_read():
    sheet = Sheet(paper=20)
    for number in range(5):
        sheet.write(80, 80 + 50 * number, PROSE[number % 3], fill=235)
    assert len({strip.row for strip in lines_of_page(sheet.image)}) == 5


def test_rules_frames_pictures_and_dust_are_no_lines():
    sheet = Sheet()
    sheet.draw.rectangle((60, 60, 1100, 400), outline=0, width=3)
    sheet.draw.line((60, 200, 1100, 200), fill=0, width=1)
    chance = np.random.default_rng(1)
    for x, y in chance.integers(20, 880, (60, 2)):
        sheet.draw.point((int(x), int(y)), fill=(0, 0, 0))
    clouds = Image.fromarray(chance.integers(60, 200, (6, 8), dtype=np.uint8)).resize(
        (300, 200), Image.Resampling.BICUBIC
    )
    sheet.image.paste(clouds.convert("RGB"), (600, 500))
    sheet.write(100, 110, "The only line in this frame")
    assert {strip.row for strip in lines_of_page(sheet.image)} == {0}


def test_blank_page_has_no_strips():
    assert lines_of_page(Sheet().image) == ()


def test_neighbours_are_not_on_a_strip():
    sheet = Sheet()
    for number in range(4):
        sheet.write(80, 80 + 21 * number, "gypsy jumping quickly" if number % 2 else "tall bridled blithe", 24)
    for strip in lines_of_page(sheet.image):
        ink = (strip.pixels_HW < 128).sum(axis=1)
        # The line's own ink is one run of rows; another line's remains would be a second one.
        runs = np.flatnonzero(np.diff(np.concatenate([[0], (ink > 0).astype(int), [0]])) == 1)
        assert len(runs) == 1


def test_underlined_text_is_one_line():
    sheet = Sheet()
    sheet.write(80, 80, "Underlined and read")
    left, _, right, bottom = sheet.lines[0][1]
    sheet.draw.line((left, bottom + 1, right, bottom + 1), fill=0, width=2)
    sheet.write(80, 150, "Not underlined")
    assert read(sheet.image, sheet.lines).split("\n") == ["Underlined and read", "", "Not underlined"]


@pytest.mark.parametrize("degrees", [-8.0, 7.0, 9.0])
def test_page_that_lies_askew_is_levelled(degrees):
    sheet = Sheet()
    for number in range(9):
        sheet.write(160, 160 + 60 * number, PROSE[number % 3] + " " + PROSE[(number + 1) % 3])
    turned = sheet.image.rotate(degrees, resample=Image.Resampling.BICUBIC, fillcolor=(255,) * 3)
    strips = lines_of_page(turned)
    assert len({strip.row for strip in strips}) == 9
    # A strip of a line that is not level would be higher than its print.
    assert max(strip.pixels_HW.shape[0] for strip in strips) < 32


def test_columns_of_a_newspaper_are_read_one_after_the_other():
    sheet = Sheet(1500, 1100)
    for column in range(4):
        x = 60 + 350 * column
        if column:
            sheet.draw.line((x - 16, 40, x - 16, 1060), fill=0, width=2)
        for part in range(2):
            # Wider than the gap of its letters to the next heading.
            sheet.write(x, 50 + 510 * part, f"HEADING {column}{part} OF A", 31)
            for number in range(12):
                sheet.write(x, 110 + 510 * part + 33 * number, f"c{column}p{part}n{number} queue belongs to one", 19)
    text = read(sheet.image, sheet.lines)
    places = [text.index(f"c{c}p{p}n{n} ") for c in range(4) for p in range(2) for n in range(12)]
    assert places == sorted(places)
    assert [line.count("HEADING") for line in text.split("\n") if "HEADING" in line] == [1] * 8


@pytest.mark.parametrize("kind", ["boxes", "comb"])
def test_letters_in_cells_are_a_word(kind):
    sheet = Sheet()
    sheet.write(60, 60, "Membership number and name of the applicant", 18)
    font = ImageFont.load_default(30)
    for row, word in enumerate(("KPD17E", "REMBRU", "50X841")):
        top = 110 + 90 * row
        for cell, letter in enumerate(word):
            left = 60 + 46 * cell
            if kind == "boxes":
                sheet.draw.rectangle((left, top, left + 40, top + 48), outline=(0,) * 3, width=2)
            else:
                sheet.draw.line((left, top + 30, left, top + 48), fill=(0,) * 3, width=2)
            sheet.draw.text((left + 12, top + 6), letter, fill=(0,) * 3, font=font)
        if kind == "comb":
            sheet.draw.line((60, top + 48, 60 + 46 * 6, top + 48), fill=(0,) * 3, width=2)
            sheet.draw.line((60 + 46 * 6, top + 30, 60 + 46 * 6, top + 48), fill=(0,) * 3, width=2)
    strips = lines_of_page(sheet.image)
    assert len({strip.row for strip in strips}) == 4
    for strip in strips[-3:]:
        columns = np.flatnonzero((strip.pixels_HW < 128).any(axis=0))
        gaps = np.diff(columns)
        # Six letters with narrow gaps, and nothing of the cells.
        assert (gaps > 1).sum() == 5
        assert gaps.max() < 9


def test_leaders_are_left_out_however_many_a_page_has():
    sheet = Sheet(1600, 1500)
    for number in range(30):
        sheet.write(80, 60 + 46 * number, f"Chapter about {PROSE[number % 3][:12]}", 24)
        for x in range(480, 1400, 9):
            sheet.draw.rectangle((x, 82 + 46 * number, x + 2, 84 + 46 * number), fill=(0,) * 3)
        sheet.write(1420, 60 + 46 * number, str(100 + number), 24)
    strips = lines_of_page(sheet.image)
    assert len({strip.row for strip in strips}) == 30
    # Leaders would make strips too long for the text to be as large.
    assert max(strip.pixels_HW.shape[1] for strip in strips) < 420


def test_print_that_runs_up_the_edge_is_no_line():
    sheet = Sheet()
    for number in range(12):
        sheet.write(150, 80 + 60 * number, PROSE[number % 3])
    note = Image.new("RGB", (700, 40), (255,) * 3)
    ImageDraw.Draw(note).text(
        (5, 5), "Received by the harbour office 14 Feb 2023", fill=(90,) * 3, font=ImageFont.load_default(26)
    )
    sheet.image.paste(note.rotate(90, expand=True), (60, 120))
    strips = lines_of_page(sheet.image)
    assert len({strip.row for strip in strips}) == 12
    assert min(strip.box_px[0] for strip in strips) > 120


def test_letters_keep_their_feet_where_an_underline_touches_them():
    plain, underlined = Sheet(), Sheet()
    for sheet in (plain, underlined):
        for number in range(6):
            sheet.write(100, 80 + 70 * number, "gladly helping many quiet people", 30)
            left, _, right, _ = sheet.lines[-1][1]
            # Through the feet of all letters, across the tails of some.
            base = 80 + 70 * number + ImageFont.load_default(30).getmetrics()[0]
            if sheet is underlined:
                sheet.draw.line((left, base - 1, right, base - 1), fill=(0,) * 3, width=3)
    heights = [
        sorted({strip.row: strip.pixels_HW.shape[0] * strip.scale**-1 for strip in lines_of_page(sheet.image)}.values())
        for sheet in (plain, underlined)
    ]
    assert len(heights[0]) == len(heights[1]) == 6
    assert heights[1][0] > 0.85 * heights[0][0]


def test_texture_takes_no_longer_than_a_page():
    grains = np.clip(np.random.default_rng(2).normal(200, 30, (1600, 1200)), 0, 255).astype(np.uint8)
    page = find_segments(Image.fromarray(grains).convert("RGB"))
    start_s = time.process_time()
    reading_order(page.segments[:1500])
    assert time.process_time() - start_s < 5


def test_small_print_under_large_print_keeps_its_letters():
    sheet = Sheet()
    for number in range(5):
        sheet.write(80, 40 + 170 * number, "12,95 EUR 48,50 EUR", 62)
        sheet.write(80, 125 + 170 * number, "a new museum can see our sea or one", 15)
        alone = Sheet()
        alone.write(80, 125, "a new museum can see our sea or one", 15)
    rows = {}
    for strip in lines_of_page(sheet.image):
        rows.setdefault(strip.row, []).append(strip)
    assert len(rows) == 10
    (whole,) = {len(strip.parts_px) for strip in lines_of_page(alone.image)}
    for number in range(5):
        assert sum(len(strip.parts_px) for strip in rows[2 * number + 1]) == whole


def test_punch_holes_are_no_lines_but_bullets_are_read():
    sheet = Sheet()
    for number in range(4):
        y = 100 + 200 * number
        sheet.draw.ellipse((30, y, 52, y + 22), fill=(60,) * 3)
    assert lines_of_page(sheet.image) == ()
    sheet.write(160, 100, "An entry of a list", 24)
    sheet.draw.ellipse((130, 112, 142, 124), fill=(0,) * 3)
    (strip,) = lines_of_page(sheet.image)
    assert strip.box_px[0] in range(126, 134)


@pytest.mark.parametrize("size", [18, 22, 26])
def test_print_of_uneven_ink_is_found(size):
    # As needles print: between their rows the ink is faint.
    sheet = Sheet(height=500)
    for number, text in enumerate(PROSE):
        sheet.write(80, 60 + 60 * number, text.upper(), size)
    depth_HWC = 255 - np.asarray(sheet.image).astype(np.float32)
    depth_HWC[np.arange(len(depth_HWC)) % 6 < 2] *= 0.35
    printed = Image.fromarray((255 - depth_HWC).astype(np.uint8))
    assert read(printed, sheet.lines).split() == " ".join(PROSE).upper().split()


def test_dotted_rules_are_no_lines():
    sheet = Sheet(height=500)
    sheet.write(80, 60, PROSE[0], 18)
    for x in (60, 300, 700):
        for y in range(40, 460, 4):
            sheet.draw.rectangle((x, y, x + 1, y + 1), fill=(0,) * 3)
    for y in (140, 240, 340):
        for x in range(60, 700, 4):
            sheet.draw.rectangle((x, y, x + 1, y + 1), fill=(0,) * 3)
    assert [segment.box[1] > 50 and segment.box[3] < 90 for segment in find_segments(sheet.image).segments] == [True]


def test_stems_of_a_large_headline_are_no_rules():
    sheet = Sheet(height=1100)
    sheet.write(80, 40, "Elections will fill the hall", 64)
    for number in range(24):
        sheet.write(80, 180 + 36 * number, " ".join(PROSE), 16)
    page = find_segments(sheet.image)
    x1, y1, x2, y2 = (round(side / page.scale) for side in sheet.lines[0][1])
    assert (page.owner_hw[y1:y2, x1:x2] > 0).any()
    assert not (page.owner_hw[y1:y2, x1:x2] < 0).any()


@pytest.mark.parametrize("size_px", range(9, 18))
def test_round_letters_of_small_print_are_no_boxes(size_px):
    page = Image.new("L", (900, 700), 255)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size_px)
    for number in range(12):
        place = 60, 40 + 3 * number * size_px
        draw.text(place, "Der Doktor ging D g Q O mit der Bahn nach Gouda", fill=0, font=font)
    is_ink_HW = np.asarray(page) < 128
    is_found_HW = np.zeros_like(is_ink_HW)
    for strip in lines_of_page(page.convert("RGB")):
        for left, top, right, bottom in strip.parts_px:
            is_found_HW[max(top - 2, 0) : bottom + 3, max(left - 2, 0) : right + 3] = True
    assert (is_ink_HW & is_found_HW).sum() > 0.99 * is_ink_HW.sum()
