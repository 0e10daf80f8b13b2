"""Pages with transcriptions as tools write them: PAGE-XML, ALTO and hOCR, with the image that they are about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from PIL import Image, ImageDraw, ImageFont

SIZE = (460, 200)
LINE_PX = 40


def draw_page(path: Path, lines: Sequence[str]) -> Path:
    """A page with a line of text every `LINE_PX` pixels."""
    image = Image.new("L", SIZE, 255)
    for place, line in enumerate(lines):
        ImageDraw.Draw(image).text((20, 10 + LINE_PX * place), line, font=ImageFont.load_default(18), fill=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def boxes(lines: Sequence[str]) -> list[tuple[int, int, int, int, str]]:
    """Left, top, width and height of each line, and its text."""
    return [(10, 4 + LINE_PX * place, SIZE[0] - 20, 32, line) for place, line in enumerate(lines)]


def page_xml(image: str, lines: Sequence[str], *, version: str = "2019-07-15", size: tuple[int, int] = SIZE) -> str:
    """Two regions in an order that only the reading order tells: the last line is the file's first."""
    shown = [
        f'<TextLine id="l{top}"><Coords points="{x},{top} {x + w},{top} {x + w},{top + h} {x},{top + h}"/>'
        f'<TextEquiv index="1"><Unicode>not this</Unicode></TextEquiv>'
        f'<TextEquiv index="0"><Unicode>{escape(text)}</Unicode></TextEquiv></TextLine>'
        for x, top, w, h, text in boxes(lines)
    ]
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<PcGts xmlns="http://schema.primaresearch.org/PAGE/gts/pagecontent/{version}">'
        f'<Page imageFilename={quoteattr(image)} imageWidth="{size[0]}" imageHeight="{size[1]}">'
        '<ReadingOrder><OrderedGroup id="g"><RegionRefIndexed index="1" regionRef="b"/>'
        '<RegionRefIndexed index="0" regionRef="a"/></OrderedGroup></ReadingOrder>'
        f'<TextRegion id="b"><Coords points="0,0 1,0 1,1"/>{shown[-1]}</TextRegion>'
        f'<TextRegion id="a"><Coords points="0,0 1,0 1,1"/>{"".join(shown[:-1])}</TextRegion></Page></PcGts>'
    )


def alto(image: str, lines: Sequence[str], *, scale: float = 1.0) -> str:
    """Version 4, one word a `String`; `scale` is that of another unit than pixels."""
    shown = []
    for x, top, w, h, text in boxes(lines):
        words = '<SP WIDTH="3"/>'.join(
            f"<String CONTENT={quoteattr(word)}/>" for word in text.removesuffix("-").split()
        )
        hyphen = '<HYP CONTENT="-"/>' if text.endswith("-") else ""
        place = " ".join(
            f'{name}="{round(value * scale)}"'
            for name, value in zip(("HPOS", "VPOS", "WIDTH", "HEIGHT"), (x, top, w, h), strict=True)
        )
        shown.append(f"<TextLine {place}>{words}{hyphen}</TextLine>")
    return (
        '<alto xmlns="http://www.loc.gov/standards/alto/ns-v4#"><Description><sourceImageInformation>'
        f"<fileName>{escape(image)}</fileName></sourceImageInformation></Description><Layout>"
        f'<Page WIDTH="{round(SIZE[0] * scale)}" HEIGHT="{round(SIZE[1] * scale)}"><PrintSpace>'
        f'<TextBlock ID="a">{"".join(shown[:-1])}</TextBlock><TextBlock ID="b">{shown[-1]}</TextBlock>'
        "</PrintSpace></Page></Layout></alto>"
    )


def hocr(pages: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Pages of one file; words in spans without space between them, as some programs write them."""
    shown = []
    for image, lines in pages:
        parts = []
        for x, top, w, h, text in boxes(lines):
            words = "".join(f'<span class="ocrx_word">{escape(word)}</span>' for word in text.split())
            parts.append(f'<span class="ocr_line" title="bbox {x} {top} {x + w} {top + h}">{words}</span>')
        shown.append(
            f"<div class='ocr_page' title='image \"{image}\"; bbox 0 0 {SIZE[0]} {SIZE[1]}'>"
            f"<p class='ocr_par'>{''.join(parts[:-1])}</p><p class='ocr_par'>{parts[-1]}</p></div>"
        )
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<html><body>{"".join(shown)}</body></html>'


def write_page_xml(folder: Path, count: int) -> Path:
    """A folder as OCR-D and Transkribus export one: images, and `page/NAME.xml` for each."""
    (folder / "page").mkdir(parents=True)
    for number in range(count):
        lines = page_lines(number)
        draw_page(folder / f"p{number:02d}.png", lines)
        (folder / "page" / f"p{number:02d}.xml").write_text(page_xml(f"p{number:02d}.png", lines), encoding="utf-8")
    return folder


def page_lines(number: int) -> list[str]:
    """Lines of a page; another number, another page."""
    return [f"Protokoll {number} über Käufe", f"Lieferung von {number * 7} Kisten", "gezeichnet: Müller"]
