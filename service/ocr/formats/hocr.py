"""hOCR 1.2: pages, blocks, lines and words with their boxes, as XHTML.

Boxes of blocks are the model's where it gave some; those of lines and words are estimated, which the document says in a
`meta`. `x_wconf` is the model's confidence in a whole page or in a word, where that is known.
"""

from __future__ import annotations

from collections.abc import Iterator

from service.ocr.formats.document import ReadDocument
from service.ocr.formats.layout import Block, BoxPx, Line, Word, blocks_of
from service.ocr.formats.markup import escape
from service.ocr.formats.output_format import OutputFormat, in_thread
from service.schemas import PageAnswer

_HEAD = """\
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml">
<head>
<title>{name}</title>
<meta http-equiv="Content-Type" content="text/html; charset=utf-8" />
<meta name="ocr-system" content="DeepSynth OCR {model}" />
<meta name="ocr-capabilities" content="ocr_page ocr_carea ocr_par ocr_line ocrx_word ocr_image ocrp_dir" />
<meta name="ocr-number-of-pages" content="{num_pages}" />
<meta name="x-positions" content="ocr_line and ocrx_word: estimated from the text and the box of their block" />
</head>
<body>
"""


def render(document: ReadDocument) -> bytes:
    """The document."""
    answer = document.answer
    head = _HEAD.format(name=escape(document.name), model=escape(answer.model_id), num_pages=len(answer.pages))
    pages = [
        "\n".join(_page(document, page, blocks_of(page, is_markdown=document.is_markdown))) for page in answer.pages
    ]
    return "\n".join([head.rstrip("\n"), *pages, "</body>", "</html>", ""]).encode()


def _page(document: ReadDocument, page: PageAnswer, blocks: list[Block]) -> Iterator[str]:
    number = page.page
    name = document.name.replace('"', "'")
    confidence = "" if page.confidence is None else f"; x_wconf {100 * page.confidence:.2f}"
    title = (
        f'image "{name}"; {_bbox((0, 0, page.width_px or 0, page.height_px or 0))}; ppageno {number - 1}{confidence}'
    )
    yield f'<div class="ocr_page" id="page_{number}" title="{escape(title)}">'
    for index, block in enumerate(blocks, 1):
        place = f"{number}_{index}"
        title = _bbox(block.box_px)
        if not block.lines:
            yield f'<div class="ocr_image" id="image_{place}" title="{title}"></div>'
            continue
        yield f'<div class="ocr_carea" id="block_{place}" title="{title}"><p class="ocr_par" id="par_{place}">'
        for line_index, line in enumerate(block.lines, 1):
            yield _line(line, f"{place}_{line_index}")
        yield "</p></div>"
    yield "</div>"


def _line(line: Line, place: str) -> str:
    words = " ".join(
        f'<span class="ocrx_word" id="word_{place}_{index}" title="{_word(word)}">{escape(word.text)}</span>'
        for index, word in enumerate(line.words, 1)
    )
    direction = ' dir="rtl"' if line.is_rtl else ""
    return f'<span class="ocr_line" id="line_{place}"{direction} title="{_bbox(line.box_px)}">{words}</span>'


def _word(word: Word) -> str:
    confidence = "" if word.confidence is None else f"; x_wconf {100 * word.confidence:.2f}"
    return f"{_bbox(word.box_px)}{confidence}"


def _bbox(box_px: BoxPx) -> str:
    return "bbox {} {} {} {}".format(*box_px)


FORMAT = OutputFormat(
    "hocr", "text/vnd.hocr+html; charset=utf-8", ".hocr", in_thread(render), has_word_confidences=True
)
