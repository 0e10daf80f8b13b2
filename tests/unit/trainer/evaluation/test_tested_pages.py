"""Where pages of tests are found, and what is said of those that are not."""

from __future__ import annotations

import pytest
from PIL import Image

from trainer.data.errors import DataCode, DataError
from trainer.evaluation.page_test_file import NamedTest, PageName, PageTests
from trainer.evaluation.page_tests import Present
from trainer.evaluation.samples import Layout, Sample
from trainer.evaluation.tested_pages import find_pages


def page_tests(*pages):
    return PageTests(tuple(NamedTest(str(place), "f", page, Present("a")) for place, page in enumerate(pages)))


def sheet(width_px=200, height_px=100, shade=255):
    return Image.new("L", (width_px, height_px), shade)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pages" / "pdfs" / "old").mkdir(parents=True)
    sheet().save(tmp_path / "pages" / "a.png")
    sheet().save(tmp_path / "pages" / "b.tiff", save_all=True, append_images=[sheet(90, 60)])
    sheet().save(
        tmp_path / "pages" / "pdfs" / "old" / "c.pdf", save_all=True, append_images=[sheet(72, 144)], resolution=72
    )
    (tmp_path / "scratch").mkdir()
    (tmp_path / "secret.png").write_bytes((tmp_path / "pages" / "a.png").read_bytes())
    (tmp_path / "pages" / "text.pdf").write_text("not a PDF")
    return tmp_path / "pages"


def find(folder, *pages, samples=()):
    folders = [folder, folder / "pdfs"]
    return find_pages(page_tests(*pages), samples, folders, folder.parent / "scratch", Layout.PAGE)


def test_images_frames_and_pages_of_pdfs_become_files(folder):
    names = [PageName("a.png"), PageName("b.tiff", 2), PageName("old/c.pdf", 1), PageName("old/c.pdf", 2)]
    found = find(folder, *names)
    sizes = {}
    for name, sample in found.samples.items():
        with Image.open(sample.image_path) as image:
            sizes[str(name)] = image.size
        assert (sample.name, sample.layout, sample.truth) == (str(name), Layout.PAGE, "")
    # A PDF is drawn at 150 dots per inch.
    assert sizes == {
        "a.png": (200, 100), "b.tiff page 2": (90, 60), "old/c.pdf": (417, 209), "old/c.pdf page 2": (150, 300),
    }  # fmt: skip


def test_a_sample_of_a_set_is_the_page_itself(folder):
    sample = Sample("a.png", "line", Layout.LINE, folder / "a.png", "a")
    assert find(folder, PageName("a.png"), samples=[sample]).samples == {PageName("a.png"): sample}


def test_the_fingerprint_is_of_images_and_tests(folder):
    first = find(folder, PageName("a.png")).sha256
    assert find(folder, PageName("a.png")).sha256 == first
    assert find(folder, PageName("a.png"), PageName("a.png")).sha256 != first
    sheet(shade=0).save(folder / "a.png")
    assert find(folder, PageName("a.png")).sha256 != first


@pytest.mark.parametrize(
    ("page", "code", "said"),
    [
        (PageName("none.png"), DataCode.SOURCE_MISSING, "1 of 1 pages with tests are in none of"),
        (PageName("../secret.png"), DataCode.SOURCE_UNREADABLE, "it is outside"),
        (PageName("text.pdf"), DataCode.SOURCE_UNREADABLE, "text.pdf cannot be opened"),
        (PageName("old/c.pdf", 3), DataCode.SOURCE_UNREADABLE, "the file has 2 pages"),
        (PageName("a.png", 2), DataCode.SOURCE_UNREADABLE, "a.png page 2 cannot be opened"),
    ],
)
def test_a_page_that_cannot_be_had_is_named(folder, page, code, said):
    with pytest.raises(DataError) as refused:
        find(folder, page)
    assert refused.value.code is code
    assert said in str(refused.value)
