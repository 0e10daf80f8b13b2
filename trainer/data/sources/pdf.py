"""Born-digital PDFs: each page rendered, its text layer as the truth, where that layer can be trusted.

A page is refused, and named with the reason, if it is a scan, if a character has no Unicode value, if the order of its
text cannot be told, if a word is not to be seen, or if there is print that the text does not account for.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pypdfium2 as pdfium  # type: ignore[import-untyped] # ships no types
from PIL import Image
from pypdfium2 import raw

from shared.images.accounting import account
from shared.images.errors import ImageError
from shared.images.ink import find_ink
from trainer.data.errors import DataCode, DataError, RowCode, RowError
from trainer.data.sources.files import FolderFiles, read_inside
from trainer.data.sources.images import LIMITS, encode_png
from trainer.data.sources.protocol import IMAGE_COLUMN, SPLIT_COLUMN, TEXT_COLUMN, BrokenRow, Row
from trainer.data.sources.shards import ShardedSource, SourceShard, files_fingerprint
from trainer.data.sources.splits import split_of_folders
from trainer.nano.pdf.text import MIN_WORDS, PageText, RefusedPageError, read_page

POINTS_PER_INCH: Final = 72
DEFAULT_DPI: Final = 150
MIN_COVERAGE: Final = 0.9
"""Share of a page's print, by characters, that its text must account for; widths of words tell no better."""
MIN_CONTRAST: Final = 24
"""Least difference of the brightest and the darkest pixel of a word, of 255."""
_UNUSABLE: Final = {"Cc", "Cf", "Cn", "Co", "Cs"}
_REPLACEMENT: Final = "\ufffd"

REFUSALS: Final = {
    "turned": "the page is turned, and its text layer with it",
    "turned text": "its text is turned",
    "cropped": "it shows a part of a larger sheet, and its text layer may show more",
    "nested picture": "it has a picture within a form, and how much it covers cannot be told",
    "picture": "it is a scan, or mostly a picture",
    "no text": "it has no text layer",
    "empty": f"it has fewer than {MIN_WORDS} words that are shown",
    "characters": "some of its words have characters without a Unicode value",
    "unmapped characters": "some of its characters have no Unicode value",
    "outside": "words of its text layer are outside of the page",
    "text on a picture": "words of its text layer are on a picture, which may say something else",
    "overlap": "its blocks of text overlap, so their order cannot be told",
    "order": "its text layer is in another order than the page",
    "no cut": "the order of its blocks cannot be told",
}
"""What `RefusedPageError` means, for people."""


class PdfSource(ShardedSource):
    """Pages of PDF files in order of their names.

    Attributes:
        name: of the folder, or of the file.
        columns: image and text, and the split where folders name splits.
        passed_over: files of other kinds.
    """

    image_root = None

    def __init__(
        self, path: Path, files: Sequence[Path], dpi: int = DEFAULT_DPI, found: FolderFiles | None = None
    ) -> None:
        """Take the files; they are opened one by one.

        Args:
            path: the source, a folder or a file.
            files: the PDFs.
            dpi: resolution of pages.
            found: all files of the folder, to count those of other kinds.

        Raises:
            DataError: there are none.
        """
        if not files:
            raise DataError(DataCode.SOURCE_EMPTY, f"{path} holds no PDF", "name another --source")
        self._folder = path if path.is_dir() else path.parent
        self._files, self._dpi = list(files), dpi
        self.name = path.resolve().name
        self.passed_over = found.other_than(files) if found is not None else {}
        has_splits = any(split_of_folders(self._place(file)) for file in files)
        self.columns = (IMAGE_COLUMN, TEXT_COLUMN, *((SPLIT_COLUMN,) if has_splits else ()))

    @property
    def shards(self) -> Sequence[SourceShard]:
        """Files; how many pages one has is only known after opening it."""
        return [SourceShard(place) for place in range(len(self._files))]

    def read_shard(self, shard: SourceShard) -> Iterator[Row | BrokenRow]:
        """See `ShardedSource`; rows are numbered within their file, as its pages are."""
        place = self._place(self._files[shard.place])
        split = split_of_folders(place)
        extra = {SPLIT_COLUMN: split} if split else {}
        # Nothing is loaded, so that PDFium forgets an earlier file's error: one that opens and has no page sets none.
        raw.FPDF_LoadMemDocument64(b"", 0, None)
        try:
            document = pdfium.PdfDocument(read_inside(self._folder, place))
        except RowError as error:
            yield BrokenRow(1, place, error.code, error.reason)
            return
        except pdfium.PdfiumError as error:
            yield BrokenRow(1, place, RowCode.ROW_UNREADABLE, f"the PDF cannot be opened: {error}")
            return
        try:
            for number in range(1, len(document) + 1):
                name = f"{place} page {number}"
                try:
                    yield Row(number, name, {**extra, **self._fields(document, number - 1)})
                except RowError as error:
                    yield BrokenRow(number, name, error.code, error.reason)
        finally:
            document.close()

    def fingerprint(self) -> str:
        """See `PageSource`; resolution included."""
        return files_fingerprint(self._files, self._folder) + f"-{self._dpi}"

    def _place(self, file: Path) -> str:
        return file.relative_to(self._folder).as_posix()

    def _fields(self, document: Any, index: int) -> dict[str, Any]:
        try:
            page = document[index]
        except pdfium.PdfiumError as error:
            raise RowError(RowCode.ROW_UNREADABLE, f"the page cannot be opened: {error}") from error
        try:
            check_size(page, self._dpi)
            content = read_page(page, clean_word)
            image = drawn(page, self._dpi)
        except RefusedPageError as error:
            reason = REFUSALS.get(str(error), f"its text layer cannot be used: {error}")
            raise RowError(RowCode.TEXT_UNTRUSTED, reason) from error
        except pdfium.PdfiumError as error:
            raise RowError(RowCode.ROW_UNREADABLE, f"the page cannot be rendered: {error}") from error
        finally:
            page.close()
        return {IMAGE_COLUMN: encode_png(image), TEXT_COLUMN: checked_text(content, image)}


def check_size(page: Any, dpi: int) -> None:
    """Refuse a sheet that would be too large before minutes and gigabytes go into drawing it.

    Args:
        page: pdfium's page.
        dpi: resolution.

    Raises:
        RowError: it is too large (`image_too_large`).
    """
    width, height = (math.ceil(side * dpi / POINTS_PER_INCH) for side in page.get_size())
    try:
        LIMITS.check_size(width, height)
    except ImageError as error:
        raise RowError(
            RowCode.IMAGE_TOO_LARGE,
            f"at {dpi} dots per inch it has {width} x {height} pixels: a lower --dpi may help",
        ) from error


def drawn(page: Any, dpi: int) -> Image.Image:
    """A page of pdfium as an RGB image."""
    image: Image.Image = page.render(scale=dpi / POINTS_PER_INCH).to_pil().convert("RGB")
    return image


def checked_text(content: PageText, image: Image.Image) -> str:
    """The text of a page, if it is what the page shows.

    Args:
        content: words of the text layer.
        image: the page rendered, mode RGB.

    Returns:
        Lines as printed.

    Raises:
        RowError: the layer and the image differ (`text_untrusted`).
    """
    words = content.words
    unknown = sum(word.text is None for word in words)
    if unknown:
        raise RowError(RowCode.TEXT_UNTRUSTED, f"{unknown} of its {len(words)} words have characters without Unicode")
    text = content.text(keep_runs=True)
    if any(unicodedata.bidirectional(character) in {"R", "AL"} for character in text):
        raise RowError(RowCode.TEXT_UNTRUSTED, "it has text from right to left, whose order a PDF does not tell")
    grey = np.asarray(image.convert("L"))
    scale = grey.shape[1] / content.width
    hidden = sum(_is_hidden(grey, scale, word.box) for word in words)
    if hidden:
        raise RowError(RowCode.TEXT_UNTRUSTED, f"{hidden} of its {len(words)} words are not to be seen")
    coverage = account(text, find_ink(image).lines).coverage
    if coverage < MIN_COVERAGE:
        raise RowError(RowCode.TEXT_UNTRUSTED, f"its text accounts for {coverage:.0%} of its print alone")
    return text


def clean_word(text: str) -> str | None:
    """A word in NFC; None if it has characters that nothing is printed for, or that stand for an unknown one."""
    word = unicodedata.normalize("NFC", text).strip()
    bad = any(unicodedata.category(character) in _UNUSABLE or character == _REPLACEMENT for character in word)
    return None if bad else word


def _is_hidden(grey: np.ndarray[Any, np.dtype[np.uint8]], scale: float, box: Any) -> bool:
    """Whether there is nothing in a word's box."""
    x0, y0 = max(int(box.x0 * scale) - 1, 0), max(int(box.y0 * scale) - 1, 0)
    part = grey[y0 : int(box.y1 * scale) + 2, x0 : int(box.x1 * scale) + 2]
    return not part.size or int(part.max()) - int(part.min()) < MIN_CONTRAST
