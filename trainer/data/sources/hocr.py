"""hOCR, as Tesseract, OCRopus and transcription tools write it: HTML with boxes in titles, one or several pages a file.

Source: hOCR 1.2, https://kba.github.io/hocr-spec/1.2/.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from lxml import etree, html

from trainer.data.errors import RowCode, RowError
from trainer.data.sources.transcriptions import TranscribedLine, TranscribedPage, TranscriptionFormat, rectangle

SUFFIXES: Final = (".hocr", ".html", ".htm", ".xhtml")
MARK: Final = b"ocr_page"
"""In any file of this format."""
_LINES: Final = ("ocr_line", "ocrx_line", "ocr_header", "ocr_footer", "ocr_caption", "ocr_textfloat")
_BLOCKS: Final = ("ocr_par", "ocr_carea", "ocrx_block")
_BOX: Final = re.compile(r"bbox\s+(-?\d+)\s+(-?\d+)\s+(-?\d+)\s+(-?\d+)")
_IMAGE: Final = re.compile(r"image\s+(?:\"([^\"]*)\"|'([^']*)'|([^;\s]+))")


def read_hocr(data: bytes) -> list[TranscribedPage]:
    """Read a file; raises `RowError` if it has no page."""
    try:
        # Files say UTF-8 in a declaration that HTML does not know; without this, Latin letters come out wrong.
        root = html.document_fromstring(data, parser=html.HTMLParser(encoding="utf-8", no_network=True))
    except (etree.ParserError, ValueError) as error:
        raise RowError(RowCode.ROW_UNREADABLE, f"it is not HTML: {error}") from error
    pages = [each for each in root.iter() if _is(each, "ocr_page")]
    if not pages:
        raise RowError(RowCode.ROW_UNREADABLE, "it is not hOCR: it has no element of class ocr_page")
    return [_page(page) for page in pages]


HOCR: Final = TranscriptionFormat("hOCR", read_hocr)


def _page(page: html.HtmlElement) -> TranscribedPage:
    title = page.get("title", "")
    image = _IMAGE.search(title)
    box = _BOX.search(title)
    size = (float(box[3]) - float(box[1]), float(box[4]) - float(box[2])) if box else None
    blocks: dict[html.HtmlElement, list[TranscribedLine]] = {}
    for line in _lines(page):
        block = next((each for each in line.iterancestors() if _is(each, *_BLOCKS)), page)
        blocks.setdefault(block, []).append(_line(line))
    name = next((part for part in image.groups() if part), "") if image else ""
    return TranscribedPage(name, size if size and min(size) > 0 else None, tuple(map(tuple, blocks.values())))


def _lines(page: html.HtmlElement) -> Iterator[html.HtmlElement]:
    return (each for each in page.iter() if _is(each, *_LINES))


def _line(line: html.HtmlElement) -> TranscribedLine:
    box = _BOX.search(line.get("title", ""))
    words = [" ".join("".join(each.itertext()).split()) for each in line.iter() if _is(each, "ocrx_word")]
    text = " ".join(filter(None, words or "".join(line.itertext()).split()))
    if box is None:
        return TranscribedLine(text)
    x0, y0, x1, y1 = map(float, box.groups())
    return TranscribedLine(text, rectangle(x0, y0, x1 - x0, y1 - y0) if x1 > x0 and y1 > y0 else ())


def _is(element: etree._Element, *classes: str) -> bool:
    return isinstance(element.tag, str) and any(name in element.get("class", "").split() for name in classes)
