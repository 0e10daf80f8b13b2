"""Lines of print on drawn pages: each found once, in the order in which a person reads, with true boxes."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from shared.images.canvases import LARGE_EM_PX, MARGIN_PX, SIDE_PX
from shared.images.page_lines import lines_of_page
from shared.images.reading_order import reading_order
from shared.images.segments import find_segments
from shared.images.strip_text import word_boxes
from tests.support.sheets import PROSE, Box, Sheet, read


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (area - shared)


def test_a_grey_page_has_the_strips_of_the_same_page_in_colours():
    sheet = Sheet(paper=230)
    for number in range(4):
        sheet.write(80, 60 + 90 * number, PROSE[number % 3], fill=40)
    grey, coloured = lines_of_page(sheet.image.convert("L")), lines_of_page(sheet.image)
    assert len(grey) == 4
    for one, other in zip(grey, coloured, strict=True):
        assert one.parts_px == other.parts_px
        np.testing.assert_array_equal(one.pixels_HW, other.pixels_HW)


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


def test_headings_and_numerals_at_the_edge_of_an_image_are_lines():
    sheet = Sheet(900, 1200)
    sheet.write(6, 8, "4 Perform now", 52)
    for number in range(9):
        sheet.write(6, 110 + 40 * number, PROSE[number % 3][:50])
    for number, numeral in enumerate(("I.", "II.", "III.")):
        sheet.write(6, 520 + 40 * number, numeral)
        sheet.write(70, 520 + 40 * number, "of a list, wide of the edge")
    sheet.write(6, 700, "OF", 52)
    # Dirt at the edge.
    sheet.draw.rectangle((2, 800, 9, 870), fill=0)
    sheet.draw.ellipse((889, 300, 897, 330), fill=0)
    found = read(sheet.image, sheet.lines).split("\n")
    assert [line for line in found if line] == [
        "4 Perform now", *(PROSE[number % 3][:50].strip() for number in range(9)),
        *(f"{numeral} of a list, wide of the edge" for numeral in ("I.", "II.", "III.")), "OF",
    ]  # fmt: skip


def test_rows_are_the_same_in_larger_print():
    sheet = Sheet()
    for number, size in enumerate((14, 22, 40)):
        sheet.write(80, 60 + 90 * number, PROSE[number % 3], size)
    strips, larger = lines_of_page(sheet.image), lines_of_page(sheet.image, LARGE_EM_PX)
    for row in range(3):
        parts, large = ([strip for strip in each if strip.row == row] for each in (strips, larger))
        boxes = ([box for strip in each for box in strip.parts_px] for each in (parts, large))
        assert next(boxes) == next(boxes)
        heights = (np.mean([strip.pixels_HW.shape[0] for strip in each]) for each in (parts, large))
        assert next(heights) * 1.2 < next(heights)
        assert max(strip.pixels_HW.shape[1] for strip in large) <= SIDE_PX - 2 * MARGIN_PX


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
