"""PAGE-XML, ALTO and hOCR as sources: pages and lines, the search for images, and what is refused."""

from __future__ import annotations

import io
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.images.digest import pixels_sha256
from tests.support.transcriptions import (
    LINE_PX,
    SIZE,
    alto,
    boxes,
    draw_page,
    hocr,
    page_lines,
    page_xml,
    write_page_xml,
)
from trainer.cli import main
from trainer.data.errors import DataError, RowCode, RowError
from trainer.data.prepare.manifest import load_manifest
from trainer.data.sources.alto import read_alto
from trainer.data.sources.columns import Columns
from trainer.data.sources.hocr import read_hocr
from trainer.data.sources.kinds import SourceKind
from trainer.data.sources.page_xml import read_page_xml
from trainer.data.sources.rejected_rows import RejectedRows
from trainer.data.sources.resolve import SourceOptions, open_source
from trainer.data.sources.samples import read_samples

LINES = ["Zum Ersten & <besten>", "zum Zweiten", "zum Dritten"]
TEXT = "Zum Ersten & <besten>\nzum Zweiten\n\nzum Dritten"


def samples_of(folder, **options):
    rejected = RejectedRows()
    source = open_source(str(folder), SourceOptions(**options))
    return list(read_samples(source, Columns(), rejected)), rejected.broken


def write(folder, form, image="scan.png", lines=LINES):
    folder.mkdir(parents=True, exist_ok=True)
    text = {"page-xml": page_xml(image, lines), "alto": alto(image, lines), "hocr": hocr([(image, lines)])}[form]
    suffix = ".hocr" if form == "hocr" else ".xml"
    (folder / f"scan{suffix}").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("form", ["page-xml", "alto", "hocr"])
@pytest.mark.parametrize(("where", "named"), [("scan.png", "scan.png"), ("img/scan.png", "scan.png"),
                                              ("scan.png", "C:\\old\\scan.tif"), ("scan.png", "")])  # fmt: skip
def test_a_page_is_one_sample_in_reading_order(tmp_path, form, where, named):
    image = draw_page(tmp_path / where, LINES)
    write(tmp_path, form, named)
    samples, broken = samples_of(tmp_path)
    assert broken == []
    assert [sample.text for sample in samples] == [TEXT]
    assert samples[0].images[0].pixels_sha256 == pixels_sha256(Image.open(image).convert("RGB"))


@pytest.mark.parametrize("form", ["page-xml", "alto", "hocr"])
def test_lines_are_cut_out_of_their_page(tmp_path, form):
    image = np.asarray(Image.open(draw_page(tmp_path / "scan.png", LINES)))
    write(tmp_path, form)
    samples, broken = samples_of(tmp_path, level="line")
    assert broken == []
    assert [sample.text for sample in samples] == LINES
    assert {sample.group for sample in samples} == {samples[0].name.partition(" ")[0]}
    for sample, (x, top, w, h, _) in zip(samples, boxes(LINES), strict=True):
        shown = sample.images[0]
        assert abs(shown.width_px - w) <= 1
        assert abs(shown.height_px - h) <= 1
        assert image[top : top + h, x : x + w].min() == 0


def test_what_is_outside_of_a_lines_outline_is_paper(tmp_path):
    draw_page(tmp_path / "scan.png", LINES)
    text = page_xml("scan.png", LINES)
    x, top, w, h, _ = boxes(LINES)[0]
    outline = f"{x},{top} {x + w},{top} {x + w},{top + h} {x},{top + h}"
    assert outline in text
    (tmp_path / "scan.xml").write_text(text.replace(outline, f"{x},{top} {x + 1},{top} {x + 1},{top + h}"))
    samples, _ = samples_of(tmp_path, level="line")
    assert [sample.text for sample in samples][-1] == LINES[2]
    (tmp_path / "scan.xml").write_text(text.replace(outline, f"{x},{top} {x + w},{top} {x},{top + h * 2}"))
    samples, _ = samples_of(tmp_path, level="line")
    shown = np.asarray(Image.open(io.BytesIO(samples[0].images[0].data)).convert("L"))
    assert shown[-4:, -40:].min() == 255


def test_units_of_alto_are_those_of_its_page(tmp_path):
    draw_page(tmp_path / "scan.png", LINES)
    (tmp_path / "scan.xml").write_text(alto("scan.png", ["first word-", "b", "c"], scale=7.3))
    samples, broken = samples_of(tmp_path, level="line")
    assert broken == []
    assert samples[0].text == "first word-"
    assert abs(samples[0].images[0].width_px - (SIZE[0] - 20)) <= 2


def test_several_pages_of_a_file(tmp_path):
    for name in ("a", "b"):
        draw_page(tmp_path / f"{name}.png", [f"{name} one", "two", "three"])
    pages = [(f"{name}.png", [f"{name} one", "two", "three"]) for name in ("a", "b")]
    (tmp_path / "both.html").write_text(hocr(pages), encoding="utf-8")
    samples, broken = samples_of(tmp_path)
    assert broken == []
    assert [sample.name for sample in samples] == ["both.html page 1", "both.html page 2"]
    assert [sample.text.split()[0] for sample in samples] == ["a", "b"]


def test_every_fault_is_named(tmp_path):
    for name in ("ok", "gap", "size", "secret"):
        draw_page(tmp_path / f"{name}.png", LINES)
    (tmp_path / "ok.xml").write_text(page_xml("ok.png", LINES))
    (tmp_path / "gap.xml").write_text(page_xml("gap.png", ["one", "", "three"]))
    (tmp_path / "lost.xml").write_text(page_xml("lost.png", LINES))
    (tmp_path / "none.xml").write_text(page_xml("ok.png", ["", "", ""]))
    (tmp_path / "torn.xml").write_text(page_xml("ok.png", LINES)[:-20])
    samples, broken = samples_of(tmp_path)
    assert [sample.name for sample in samples] == ["ok.xml"]
    assert {row.name: row.code for row in broken} == {
        "gap.xml": RowCode.TEXT_MISSING, "lost.xml": RowCode.IMAGE_MISSING, "none.xml": RowCode.TEXT_MISSING,
        "torn.xml": RowCode.ROW_UNREADABLE,
    }  # fmt: skip
    assert "1 of its 3 lines" in next(row.reason for row in broken if row.name == "gap.xml")
    samples, broken = samples_of(tmp_path, level="line")
    gaps = [row for row in broken if row.name.startswith("gap.xml")]
    assert [(row.name, row.code) for row in gaps] == [("gap.xml line 2", RowCode.TEXT_EMPTY)]
    assert sum(sample.name.startswith("gap.xml") for sample in samples) == 2


def test_lines_of_a_fax_are_in_the_pixels_of_its_file(tmp_path):
    draw_page(tmp_path / "sent.png", LINES)
    with Image.open(tmp_path / "sent.png") as page:
        page.save(tmp_path / "scan.tif", dpi=(200, 100))
    (tmp_path / "scan.xml").write_text(page_xml("scan.tif", LINES))
    (tmp_path / "sent.xml").write_text(page_xml("sent.png", LINES))
    samples, broken = samples_of(tmp_path, level="line")
    assert broken == []
    size_of = {sample.name: (sample.images[0].width_px, sample.images[0].height_px) for sample in samples}
    for number in range(1, len(LINES) + 1):
        width, height = size_of[f"sent.xml line {number}"]
        fax_width, fax_height = size_of[f"scan.xml line {number}"]
        assert fax_width == width
        assert abs(fax_height - 2 * height) <= 2


def test_lines_of_another_image_are_refused(tmp_path):
    draw_page(tmp_path / "scan.png", LINES)
    (tmp_path / "scan.xml").write_text(page_xml("scan.png", LINES, size=(SIZE[1], SIZE[0])))
    _, broken = samples_of(tmp_path, level="line")
    assert "another image, or turned" in broken[0].reason


@pytest.mark.parametrize("named", ["img/scan.png", "../img/scan.png", "scan.png", "C:\\old\\scan.tif"])
@pytest.mark.parametrize("root", ["img", "."])
@pytest.mark.parametrize("level", ["page", "line"])
def test_images_may_be_in_another_folder_that_is_named(tmp_path, monkeypatch, named, root, level):
    monkeypatch.chdir(tmp_path)
    draw_page(tmp_path / "img" / "scan.png", LINES)
    write(Path("xml"), "page-xml", named)
    samples, broken = samples_of(Path("xml"), image_root=Path(root), level=level)
    assert broken == []
    assert "\n".join(sample.text for sample in samples).replace("\n\n", "\n") == "\n".join(LINES)
    _, broken = samples_of(Path("xml"), level=level)
    assert {row.code for row in broken} <= {RowCode.IMAGE_OUTSIDE, RowCode.IMAGE_MISSING}
    assert len(broken) == 1


def test_another_folder_of_images_counts_in_the_fingerprint_and_has_to_exist(tmp_path):
    draw_page(tmp_path / "img" / "scan.png", LINES)
    write(tmp_path / "xml", "page-xml")
    options = SourceOptions(image_root=tmp_path / "img")
    before = open_source(str(tmp_path / "xml"), options).fingerprint()
    draw_page(tmp_path / "img" / "scan.png", LINES[:2])
    assert open_source(str(tmp_path / "xml"), options).fingerprint() != before
    with pytest.raises(DataError, match="--image-root"):
        open_source(str(tmp_path / "xml"), SourceOptions(image_root=tmp_path / "none"))
    with pytest.raises(DataError, match="--image-root would have no effect"):
        open_source(str(tmp_path / "img"), options)


def test_images_and_entities_outside_of_the_folder_stay_there(tmp_path):
    folder = tmp_path / "in"
    draw_page(tmp_path / "secret.png", LINES)
    (tmp_path / "secret.txt").write_text("a secret")
    write(folder, "page-xml", "../secret.png")
    _, broken = samples_of(folder)
    assert [row.code for row in broken] == [RowCode.IMAGE_OUTSIDE]
    draw_page(folder / "scan.png", LINES)
    entity = f'<!DOCTYPE x [<!ENTITY e SYSTEM "{(tmp_path / "secret.txt").as_uri()}">]><PcGts'
    text = page_xml("scan.png", ["one", "&e; two", "three"]).replace("&amp;e;", "&e;").replace("<PcGts", entity, 1)
    (folder / "scan.xml").write_text(text)
    samples, _ = samples_of(folder)
    assert not any("secret" in sample.text for sample in samples)


@pytest.mark.parametrize("level", ["page", "line"])
@pytest.mark.parametrize(
    ("what", "instead"),
    [
        ('<TextEquiv index="0">', '<TextEquiv index="first">'),
        ("<TextRegion", '<ReadingOrder><OrderedGroup><RegionRefIndexed index="x" regionRef="r"/></OrderedGroup>'
                        "</ReadingOrder><TextRegion"),
        ('imageWidth="', 'imageWidth="inf" x="'),
        ('imageHeight="', 'imageHeight="nan" x="'),
        ('points="', 'points="nan,nan '),
        ('points="', 'points="inf,0 '),
        ('points="', 'points="1e400,0 '),
        ('points="', 'points="left,top '),
    ],
)  # fmt: skip
def test_attributes_that_are_no_numbers_cost_a_line_at_most(tmp_path, level, what, instead):
    for name in ("odd", "plain"):
        draw_page(tmp_path / f"{name}.png", LINES)
        (tmp_path / f"{name}.xml").write_text(page_xml(f"{name}.png", LINES))
    text = (tmp_path / "odd.xml").read_text()
    assert what in text
    (tmp_path / "odd.xml").write_text(text.replace(what, instead, 1))
    samples, broken = samples_of(tmp_path, level=level)
    assert sum(sample.name.startswith("plain.xml") for sample in samples) == (3 if level == "line" else 1)
    assert len(samples) + len(broken) == (6 if level == "line" else 2)
    assert {row.code for row in broken} <= {RowCode.IMAGE_MISSING}


@pytest.mark.parametrize("number", ["nan", "inf", "-1e400", "wide"])
def test_sizes_of_alto_that_are_no_numbers_cost_a_line_at_most(tmp_path, number):
    draw_page(tmp_path / "scan.png", LINES)
    text = alto("scan.png", LINES)
    (tmp_path / "scan.xml").write_text(re.sub(r'(HPOS|WIDTH)="[^"]*"', rf'\1="{number}"', text))
    samples, broken = samples_of(tmp_path, level="line")
    assert len(samples) + len(broken) == 3


@pytest.mark.parametrize("far", ["-1e12", "1e12", "99999", "-300"])
def test_an_outline_far_from_the_page_is_no_picture_of_its_line(tmp_path, far):
    draw_page(tmp_path / "scan.png", LINES)
    text = page_xml("scan.png", LINES)
    (tmp_path / "scan.xml").write_text(text.replace('<Coords points="', f'<Coords points="{far},0 '))
    samples, broken = samples_of(tmp_path, level="line")
    assert samples == []
    assert {row.code for row in broken} == {RowCode.IMAGE_MISSING}


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_lines_of_an_image_that_its_exif_data_turns_are_not_guessed_at(tmp_path, orientation):
    drawn = Image.open(draw_page(tmp_path / "scan.png", LINES))
    exif = Image.Exif()
    exif[0x0112] = orientation
    drawn.save(tmp_path / "scan.jpg", exif=exif)
    (tmp_path / "scan.xml").write_text(page_xml("scan.jpg", LINES))
    samples, broken = samples_of(tmp_path, level="line")
    assert samples == []
    assert "EXIF" in broken[0].reason


def test_an_image_is_found_however_its_name_was_composed(tmp_path):
    draw_page(tmp_path / unicodedata.normalize("NFD", "Müller.png"), LINES)
    (tmp_path / "scan.xml").write_text(page_xml("Müller.png", LINES), encoding="utf-8")
    samples, broken = samples_of(tmp_path)
    assert broken == []
    assert [sample.text for sample in samples] == [TEXT]


@pytest.mark.parametrize("level", ["page", "line"])
@pytest.mark.parametrize("damaged", [b"", b"<", b"\xff\xfe\x00", b"<PcGts><Page/></PcGts>",
                                     b'<?xml version="1.0" encoding="UTF-8"?><PcGts><Page>\xe4'])  # fmt: skip
def test_a_file_without_a_row_is_named_and_not_passed_over(tmp_path, level, damaged):
    draw_page(tmp_path / "scan.png", LINES)
    (tmp_path / "scan.xml").write_text(page_xml("scan.png", LINES))
    (tmp_path / "damaged.xml").write_bytes(damaged)
    (tmp_path / "mets.xml").write_text("<mets/>")
    samples, broken = samples_of(tmp_path, level=level)
    assert samples
    assert [row.name for row in broken] == ["damaged.xml"]
    assert open_source(str(tmp_path)).passed_over == {".xml files": 1}


def test_two_transcriptions_of_one_page_are_not_guessed_at(tmp_path):
    draw_page(tmp_path / "scan.png", LINES)
    write(tmp_path / "page", "page-xml")
    write(tmp_path / "alto", "alto")
    (tmp_path / "mets.xml").write_text("<mets/>")
    with pytest.raises(DataError, match=r"alto .1 files., page-xml .1 files."):
        open_source(str(tmp_path))
    samples, _ = samples_of(tmp_path, kind=SourceKind.ALTO)
    assert [sample.text for sample in samples] == [TEXT]


def test_words_and_regions_give_the_text_where_lines_have_none():
    text = (
        '<PcGts xmlns="x"><Page imageFilename="a.png" imageWidth="9" imageHeight="9"><TextRegion id="a"><TextLine>'
        '<Coords points="1,1 2,2 3,3"/><Word><TextEquiv><Unicode>two</Unicode></TextEquiv></Word>'
        "<Word><TextEquiv><Unicode>words</Unicode></TextEquiv></Word></TextLine></TextRegion>"
        '<TextRegion id="b"><TextEquiv><Unicode>no lines\nhere</Unicode></TextEquiv></TextRegion></Page></PcGts>'
    )
    assert read_page_xml(text.encode())[0].text == "two words\n\nno lines\nhere"


@pytest.mark.parametrize("read", [read_page_xml, read_alto, read_hocr])
def test_other_files_are_refused(read):
    for data in (b"", b"<x/>", b"\x00\x01", b"<html></html>"):
        with pytest.raises(RowError):
            read(data)


def test_a_folder_of_page_xml_becomes_a_set_whose_pages_are_whole_in_one_split(tmp_path, capsys):
    folder = write_page_xml(tmp_path / "export", 12)
    out = tmp_path / "set"
    words = ["--level", "line", "--validation-share", "0.3", "--out", str(out)]
    assert main(["prepare", str(folder), *words]) == 0, capsys.readouterr().err
    splits = {}
    for sample in samples_of(out)[0]:
        number = next(n for n in range(12) for line in page_lines(n)[:2] if line == sample.text) if (
            sample.text != page_lines(0)[2]) else None  # fmt: skip
        if number is not None:
            splits.setdefault(number, set()).add(sample.split)
    assert {len(named) for named in splits.values()} == {1}
    manifest = load_manifest(out)
    written = sum(split["num_samples"] for split in manifest["splits"].values())
    assert manifest["num_rows"] == 36 == written + manifest["num_duplicates"] + sum(manifest["broken_rows"].values())
    assert SIZE[1] > LINE_PX * 3
