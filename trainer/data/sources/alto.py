"""ALTO, as libraries and OCR programs write it: versions 2 to 4, one or several pages a file.

Source: ALTO XML schema, Library of Congress, https://www.loc.gov/standards/alto/.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lxml import etree

from trainer.data.errors import RowCode, RowError
from trainer.data.sources.transcriptions import (
    Point,
    TranscribedLine,
    TranscribedPage,
    TranscriptionFormat,
    below,
    named,
    number_of,
    parse_xml,
    points_of,
    rectangle,
)

ROOT: Final = "alto"


def read_alto(data: bytes) -> list[TranscribedPage]:
    """Read a file; raises `RowError` if it is not ALTO."""
    root = parse_xml(data)
    if etree.QName(root).localname != ROOT:
        raise RowError(RowCode.ROW_UNREADABLE, f"it is not ALTO: its root is {etree.QName(root).localname}")
    pages = list(below(root, "Page"))
    names = [(each.text or "").strip() for each in below(root, "fileName")]
    if len(pages) > 1 and len(names) != len(pages):
        raise RowError(RowCode.IMAGE_MISSING, f"it has {len(pages)} pages and names {len(names)} images")
    return [
        TranscribedPage(names[place] if place < len(names) else "", _size(page), tuple(_blocks(page)))
        for place, page in enumerate(pages)
    ]


ALTO: Final = TranscriptionFormat("ALTO", read_alto)


def _size(page: etree._Element) -> tuple[float, float] | None:
    """In the file's unit, pixels or parts of a millimetre or an inch: only its ratio to the image's counts."""
    width, height = number_of(page, "WIDTH"), number_of(page, "HEIGHT")
    return (width, height) if width > 0 and height > 0 else None


def _blocks(page: etree._Element) -> Iterator[tuple[TranscribedLine, ...]]:
    for block in below(page, "TextBlock"):
        lines = tuple(TranscribedLine(_text(line), _outline(line)) for line in named(block, "TextLine"))
        if lines:
            yield lines


def _text(line: etree._Element) -> str:
    """Words of a line as printed, with the hyphen at its end."""
    parts: list[str] = []
    glued = True
    for each in named(line, "String", "SP", "HYP"):
        kind = etree.QName(each).localname
        if kind == "String":
            parts += ["" if glued else " ", each.get("CONTENT", "")]
            glued = False
        elif kind == "HYP":
            parts.append(each.get("CONTENT", "-"))
    return "".join(parts).strip()


def _outline(line: etree._Element) -> tuple[Point, ...]:
    polygon = next(below(line, "Polygon"), None)
    shape = next(iter(named(line, "Shape")), None)
    if polygon is not None and shape is not None:
        return points_of(polygon.get("POINTS", ""))
    box = [number_of(line, name) for name in ("HPOS", "VPOS", "WIDTH", "HEIGHT")]
    return rectangle(*box) if min(box[2:]) > 0 else ()
