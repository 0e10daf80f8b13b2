"""Builders for sources of pages: images in bytes, folders with texts, rows gathered from a source."""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from trainer.data.prepare.conversion import PreparedSample
from trainer.data.sources.protocol import BrokenRow, PageSource, Row

LONG = "This text is long enough that no other page says the same, being number"


class KilledConverter:
    """Ends its process at the first row, as the kernel does when memory runs out."""

    several_images = False

    def convert(self, row: Row) -> list[PreparedSample]:
        """No row gets past this."""
        os._exit(9)


def drawn(text: str, size: tuple[int, int] = (120, 30), mode: str = "L") -> Image.Image:
    """A small page; another text, another picture."""
    image = Image.new("L", size, 255)
    ImageDraw.Draw(image).text((4, 4), text, font=ImageFont.load_default(14), fill=0)
    return image.convert(mode)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """Bytes of an image file."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def write_pages(folder: Path, count: int, text: str = LONG) -> Path:
    """Images with texts beside them: `p00.png` and `p00.txt` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        drawn(str(number)).save(folder / f"p{number:02d}.png")
        (folder / f"p{number:02d}.txt").write_text(f"{text} {number}\n", encoding="utf-8")
    return folder


def rows_of(source: PageSource, **options: object) -> list[Row]:
    """Sound rows of a source that has no others."""
    rows = list(source.rows(**options))
    assert [str(row) for row in rows if isinstance(row, BrokenRow)] == []
    return [row for row in rows if isinstance(row, Row)]


def names_of(source: PageSource, **options: object) -> list[str]:
    """Names of all rows."""
    return [row.name for row in source.rows(**options)]
