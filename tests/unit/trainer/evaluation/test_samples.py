"""Sets and scans on disk."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from trainer.evaluation.samples import (
    Layout,
    SampleError,
    layout_of_tier,
    load_scans,
    load_set,
    open_page,
    upright_size,
)


def write_set(folder, entries):
    """Entries as of an index, but with the truth itself as `text`."""
    lines = []
    for entry in entries:
        path = folder / entry["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 4), 255).save(path)
        path.with_suffix(".txt").write_text(entry["text"], encoding="utf-8")
        lines.append(json.dumps({**entry, "text": str(path.with_suffix(".txt").relative_to(folder))}))
    (folder / "index.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_pages_and_truths_come_in_the_order_of_the_index(tmp_path):
    write_set(
        tmp_path,
        [
            {"image": "sub/b.png", "tier": "page", "text": "zwei\nZeilen"},
            {"image": "a.png", "tier": "line", "text": "\u00e9in"},
        ],
    )
    assert [(sample.name, sample.tier, sample.truth) for sample in load_set(tmp_path).samples] == [
        ("sub/b.png", "page", "zwei\nZeilen"),
        ("a.png", "line", "\u00e9in"),
    ]


def test_tiers_and_limit_choose_the_first_samples_of_each_tier(tmp_path):
    entries = [
        {"image": f"{tier}{number}.png", "tier": tier, "text": "x"} for number in range(3) for tier in ("line", "page")
    ]
    write_set(tmp_path, entries)
    assert [sample.name for sample in load_set(tmp_path, limit=1).samples] == ["line0.png", "page0.png"]
    assert [sample.name for sample in load_set(tmp_path, ["page"], 2).samples] == ["page0.png", "page1.png"]


def test_layouts_follow_the_index_before_the_tiers_name(tmp_path):
    write_set(
        tmp_path,
        [
            {"image": "a.png", "tier": "degraded", "text": "x", "layout": "page"},
            {"image": "b.png", "tier": "degraded", "text": "x"},
        ],
    )
    assert [sample.layout for sample in load_set(tmp_path).samples] == [Layout.PAGE, Layout.BLOCK]
    assert layout_of_tier("degraded-line") is Layout.LINE


def test_the_checksum_changes_with_a_pixel_with_a_letter_and_with_nothing_else(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        write_set(folder, [{"image": "a.png", "tier": "line", "text": "abc"}])
    original = load_set(first).sha256
    assert load_set(second).sha256 == original
    (second / "a.txt").write_text("abd")
    assert load_set(second).sha256 != original
    image = Image.new("L", (8, 4), 255)
    image.putpixel((0, 0), 254)
    image.save(first / "a.png")
    assert load_set(first).sha256 != original


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"image": "a.png", "text": "a.txt"}\n', "line 1.*tier"),
        ("\n{broken\n", "line 2"),
        ('{"image": "none.png", "text": "a.txt", "tier": "line"}\n', "no none.png"),
        ('{"image": "a.png", "text": "none.txt", "tier": "line"}\n', "none.txt is missing"),
        ('{"image": "a.png", "text": "a.txt", "tier": "line", "layout": "spiral"}\n', "spiral"),
        ('{"image": "a.png", "text": "latin.txt", "tier": "line"}\n', "latin.txt cannot be read as UTF-8"),
        pytest.param("[" * 100_000, "line 1.*recursion", id="deep"),
        ("", "no samples"),
    ],
)
def test_broken_sets_say_what_is_wrong(tmp_path, index, message):
    Image.new("L", (8, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "index.jsonl").write_text(index)
    with pytest.raises(SampleError, match=message):
        load_set(tmp_path)


def test_missing_folders_and_tiers_are_named(tmp_path):
    with pytest.raises(SampleError, match=r"no index\.jsonl"):
        load_set(tmp_path)
    with pytest.raises(SampleError, match="images/"):
        load_scans(tmp_path)
    write_set(tmp_path, [{"image": "a.png", "tier": "line", "text": "x"}])
    with pytest.raises(SampleError, match="no tier page"):
        load_set(tmp_path, ["line", "page"])


def test_scans_pair_images_of_any_format_with_truths_by_name(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "truth").mkdir()
    for name in ("b.jpg", "a.tif"):
        Image.new("L", (8, 4)).save(tmp_path / "images" / name)
        (tmp_path / "truth" / f"{name[0]}.txt").write_text(name)
    scans = load_scans(tmp_path)
    assert [(sample.name, sample.tier, sample.truth) for sample in scans.samples] == [
        ("a.tif", "real", "a.tif"),
        ("b.jpg", "real", "b.jpg"),
    ]
    (tmp_path / "truth" / "b.txt").unlink()
    with pytest.raises(SampleError, match=r"b\.txt is missing"):
        load_scans(tmp_path)


def test_pages_open_upright_and_their_size_is_known_beforehand(tmp_path):
    image = Image.new("RGB", (6, 3), "white")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned clockwise by a quarter for viewing
    image.save(tmp_path / "turned.png", exif=exif)
    page = open_page(tmp_path / "turned.png")
    assert page.size == upright_size(tmp_path / "turned.png") == (3, 6)
    assert page.getpixel((2, 0)) == (255, 0, 0)


def test_transparency_is_white_and_sixteen_bits_keep_their_greys(tmp_path):
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("I;16", (2, 2), 128 * 256).save(tmp_path / "deep.png")
    Image.new("1", (2, 2), 1).save(tmp_path / "bits.tif")
    assert open_page(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    assert open_page(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)
    assert open_page(tmp_path / "bits.tif").getpixel((0, 0)) == (255, 255, 255)
