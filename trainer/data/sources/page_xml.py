"""PAGE-XML, as OCR-D, Transkribus, eScriptorium and Aletheia write it: one page a file, any version of the schema.

Source: PRImA Research Lab, PAGE content format, https://github.com/PRImA-Research-Lab/PAGE-XML.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lxml import etree

from trainer.data.errors import RowCode, RowError
from trainer.data.sources.transcriptions import (
    TranscribedLine,
    TranscribedPage,
    TranscriptionFormat,
    below,
    named,
    number_of,
    parse_xml,
    points_of,
)

ROOT: Final = "PcGts"
_GROUPS: Final = (
    "OrderedGroup", "UnorderedGroup", "OrderedGroupIndexed", "UnorderedGroupIndexed", "RegionRef", "RegionRefIndexed",
)  # fmt: skip


def read_page_xml(data: bytes) -> list[TranscribedPage]:
    """Read a file; raises `RowError` if it is not PAGE-XML."""
    root = parse_xml(data)
    page = next(below(root, "Page"), None)
    if page is None or etree.QName(root).localname != ROOT:
        raise RowError(RowCode.ROW_UNREADABLE, f"it is not PAGE-XML: its root is {etree.QName(root).localname}")
    blocks = [block for region in _regions(page) if (block := tuple(_lines(region)))]
    return [TranscribedPage(page.get("imageFilename", ""), _size(page), tuple(blocks))]


PAGE_XML: Final = TranscriptionFormat("PAGE-XML", read_page_xml)


def _size(page: etree._Element) -> tuple[float, float] | None:
    size = number_of(page, "imageWidth"), number_of(page, "imageHeight")
    return size if min(size) > 0 else None


def _regions(page: etree._Element) -> list[etree._Element]:
    """Text regions in reading order; those that it does not name come last, in the file's order."""
    regions = list(below(page, "TextRegion"))
    order = next(below(page, "ReadingOrder"), None)
    if order is None:
        return regions
    places = {name: place for place, name in enumerate(_references(order))}
    return sorted(regions, key=lambda region: places.get(region.get("id"), len(places)))


def _references(group: etree._Element) -> Iterator[str]:
    """Names of regions in a group, by index where members have one."""
    members = [(number_of(each, "index", place), each) for place, each in enumerate(named(group, *_GROUPS))]
    for _, member in sorted(members, key=lambda pair: pair[0]):
        yield from filter(None, [member.get("regionRef")])
        yield from _references(member)


def _lines(region: etree._Element) -> Iterator[TranscribedLine]:
    lines = named(region, "TextLine")
    for line in lines:
        outline = next(iter(named(line, "Coords")), None)
        yield TranscribedLine(_text(line), _points(outline))
    if not lines and (text := _own_text(region)):
        # Some tools transcribe regions without cutting them into lines.
        yield from (TranscribedLine(part.strip()) for part in text.split("\n") if part.strip())


def _text(line: etree._Element) -> str:
    """A line's own text, or else that of its words."""
    own = _own_text(line)
    if own is not None:
        return " ".join(own.split())
    return " ".join(filter(None, (_own_text(word) for word in named(line, "Word"))))


def _own_text(element: etree._Element) -> str | None:
    """The first of an element's texts: the one with the lowest index is the most likely, or the corrected one."""
    texts = named(element, "TextEquiv")
    if not texts:
        return None
    best = min(texts, key=lambda each: number_of(each, "index"))
    unicode_text = next(iter(named(best, "Unicode")), None)
    return (unicode_text.text or "").strip() if unicode_text is not None else ""


def _points(coords: etree._Element | None) -> tuple[tuple[float, float], ...]:
    if coords is None:
        return ()
    # Versions before 2013 have an element for each point.
    return points_of(coords.get("points") or " ".join(f"{each.get('x')},{each.get('y')}" for each in coords))
