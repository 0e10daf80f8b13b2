"""The pages that page tests are about: samples of a set, or pages of PDFs and images in a folder.

A page of a PDF is drawn as the service draws it; its text layer is never looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pypdfium2 as pdfium  # type: ignore[import-untyped] # ships no types

from shared.images.errors import ImageError
from shared.images.raster import open_raster
from trainer.data.errors import DataCode, DataError, RowCode, RowError
from trainer.data.sources.files import read_inside
from trainer.data.sources.images import LIMITS, check_image, encode_png
from trainer.data.sources.pdf import DEFAULT_DPI, check_size, drawn
from trainer.evaluation.page_test_file import PageName, PageTests
from trainer.evaluation.samples import Layout, Sample

TESTED_TIER: Final = "page tests"
PDF_FOLDER: Final = "pdfs"
"""Where olmOCR-Bench has its pages, next to the files of tests."""
_PDF: Final = b"%PDF-"


@dataclass(frozen=True, slots=True)
class TestedPages:
    """Tests with their pages.

    Attributes:
        tests: at least one.
        samples: by page; those that are of no set have no truth.
        sha256: over the pages' images and the tests, in order.
    """

    __test__ = False

    tests: PageTests
    samples: Mapping[PageName, Sample]
    sha256: str


def find_pages(
    tests: PageTests, samples: Sequence[Sample], folders: Sequence[Path], scratch: Path, layout: Layout
) -> TestedPages:
    """Find every page before any is read.

    Args:
        tests: what to find pages of.
        samples: of sets that are read anyway; looked at first.
        folders: where files are looked for, in this order.
        scratch: receives images; it must exist as long as the samples are used.
        layout: of pages that are no sample.

    Returns:
        The tests with their pages.

    Raises:
        DataError: a page is missing (`source_missing`) or cannot be opened (`source_unreadable`).
    """
    found: dict[PageName, Sample] = {}
    missing: list[PageName] = []
    for page in tests.pages:
        known = next((sample for sample in samples if page.is_sample(sample.name)), None)
        data = None if known else _read(page, folders)
        if known is not None:
            found[page] = known
        elif data is None:
            missing.append(page)
        else:
            path = _written(page, data, scratch / f"tested-{len(found):06d}")
            found[page] = Sample(str(page), TESTED_TIER, layout, path, "")
    if missing:
        raise DataError(
            DataCode.SOURCE_MISSING,
            f"{len(missing)} of {len(tests.pages)} pages with tests are in none of {', '.join(map(str, folders))}",
            "name their folder with --test-pages",
            missing[:3],
        )
    digest = hashlib.sha256()
    for sample in found.values():
        digest.update(hashlib.sha256(sample.image_path.read_bytes()).digest())
    digest.update(repr(tests.tests).encode())
    return TestedPages(tests, found, digest.hexdigest())


def _read(page: PageName, folders: Sequence[Path]) -> bytes | None:
    for folder in folders:
        try:
            return read_inside(folder, page.name)
        except RowError as error:
            if error.code is not RowCode.IMAGE_MISSING:
                raise _unreadable(page, f"it is outside {folder}") from error
    return None


def _written(page: PageName, data: bytes, stem: Path) -> Path:
    """The page as an image file that every reader opens."""
    try:
        if data.startswith(_PDF):
            content, suffix = _of_pdf(page, data), "png"
        elif page.number > 1:
            raster = open_raster(data, LIMITS)
            (number,) = raster.pages((page.number,))
            content, suffix = encode_png(raster.read(number).image), "png"
        else:
            image = check_image(data)
            content, suffix = image.data, image.suffix
    except (RowError, ImageError, pdfium.PdfiumError) as error:
        raise _unreadable(page, str(error)) from error
    path = stem.with_suffix(f".{suffix}")
    path.write_bytes(content)
    return path


def _of_pdf(page: PageName, data: bytes) -> bytes:
    document = pdfium.PdfDocument(data)
    try:
        if page.number > len(document):
            raise RowError(RowCode.ROW_UNREADABLE, f"the file has {len(document)} pages")
        opened = document[page.number - 1]
        try:
            check_size(opened, DEFAULT_DPI)
            return encode_png(drawn(opened, DEFAULT_DPI))
        finally:
            opened.close()
    finally:
        document.close()


def _unreadable(page: PageName, reason: str) -> DataError:
    return DataError(DataCode.SOURCE_UNREADABLE, f"the page {page} cannot be opened: {reason}", "mend or replace it")
