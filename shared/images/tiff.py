"""TIFF files: which of their images are pages, and which kinds Pillow reads."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, TiffImagePlugin
from PIL.TiffImagePlugin import EXTRASAMPLES, PHOTOMETRIC_INTERPRETATION, PLANAR_CONFIGURATION, TiffImageFile

from shared.images.errors import ImageError, ImageReason

MOST_DIRECTORIES = 10_000
_SUBFILE_TYPE, _OLD_SUBFILE_TYPE = 254, 255
_REDUCED, _MASK = 1, 4
_OLD_REDUCED = 2
_WIDTH, _HEIGHT, _STRIPS, _TILES = 256, 257, 273, 324
_SEPARATE_PLANES = 2
_CMYK = 5
_FIELD_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Sizes of the field types that have more than one byte."""
_NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""Formats of the field types BYTE, SHORT, LONG and LONG8."""

# 16-bit grey where white is zero, which Pillow's table has for little-endian files only; `pixels.as_seen` inverts both.
TiffImagePlugin.OPEN_INFO.setdefault((TiffImagePlugin.MM, 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))


@dataclass(frozen=True, slots=True)
class TiffDirectory:
    """The description of one image in a file."""

    offset: int
    tags: dict[int, int | None]
    """First values; None where the value is not a number or is stored elsewhere."""
    places: dict[int, int]
    """Where in the file those numbers are."""
    is_whole: bool
    """Whether all values that are stored elsewhere are within the file."""

    @property
    def is_page(self) -> bool:
        """Whether it is neither a smaller copy of another image nor a mask."""
        kind = self.tags.get(_SUBFILE_TYPE) or 0
        return not kind & (_REDUCED | _MASK) and self.tags.get(_OLD_SUBFILE_TYPE) != _OLD_REDUCED

    @property
    def is_complete(self) -> bool:
        """Whether it says all that is needed to find pixels."""
        has_size = (self.tags.get(_WIDTH) or 0) > 0 and (self.tags.get(_HEIGHT) or 0) > 0
        return self.is_whole and has_size and (_STRIPS in self.tags or _TILES in self.tags)


def page_directories(data: bytes, limit: int) -> list[TiffDirectory]:
    """Find a file's pages.

    Args:
        data: The file.
        limit: Stop after so many pages.

    Returns:
        Pages, at least one; if every image is marked as a copy or a mask, all of them.

    Raises:
        ImageError: There is none.
    """
    pages: list[TiffDirectory] = []
    others: list[TiffDirectory] = []
    for directory in _directories(data):
        (pages if directory.is_page else others).append(directory)
        if len(pages) == limit:
            break
    if not pages and not others:
        raise ImageError(ImageReason.DAMAGED, "no directory")
    return pages or others[:limit]


def _directories(data: bytes) -> Iterator[TiffDirectory]:
    order = "<" if data[:2] == b"II" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    count, entry, link = ("Q", "HHQ8s", "Q") if is_big else ("H", "HHI4s", "I")
    counts, entries, links = (struct.Struct(order + each) for each in (count, entry, link))
    seen: set[int] = set()
    unread = len(data)
    try:
        (offset,) = links.unpack_from(data, 8 if is_big else 4)
        while offset and offset not in seen and len(seen) < MOST_DIRECTORIES:
            seen.add(offset)
            (num_entries,) = counts.unpack_from(data, offset)
            at = offset + counts.size
            end = at + num_entries * entries.size
            # Directories that overlap could be as many as there are bytes.
            unread -= end - at
            if end > len(data) or unread < 0:
                return
            tags: dict[int, int | None] = {}
            places: dict[int, int] = {}
            is_whole = True
            for number, (tag, kind, length, value) in enumerate(entries.iter_unpack(data[at:end]), 1):
                tags[tag] = _first_number(order, kind, length, value)
                places[tag] = at + number * entries.size - len(value)
                size = _FIELD_BYTES.get(kind, 1) * length
                if size > len(value):
                    is_whole &= size + links.unpack(value)[0] <= len(data)
            yield TiffDirectory(offset, tags, places, is_whole)
            (offset,) = links.unpack_from(data, end)
    except struct.error:
        # Cut off: what came before may still be read.
        return


def _first_number(order: str, kind: int, length: int, value: bytes) -> int | None:
    number = _NUMBERS.get(kind)
    if number is None or not length or struct.calcsize(number) * length > len(value):
        return None
    return int(struct.unpack_from(order + number, value)[0])


@contextlib.contextmanager
def opened_page(data: bytes, directory: TiffDirectory) -> Iterator[Image.Image]:
    """Open one image of a file as if it were the first, so that Pillow meets no other.

    Args:
        data: The file.
        directory: Which.

    Yields:
        Image.Image: The image, not yet decoded.

    Raises:
        ImageError: Pillow does not know this kind of TIFF.
    """
    is_big = data[2:4] in (b"+\0", b"\0+")
    order = "<" if data[:2] == b"II" else ">"
    altered = bytearray(data)
    struct.pack_into(order + ("Q" if is_big else "I"), altered, 8 if is_big else 4, directory.offset)
    if directory.tags.get(PHOTOMETRIC_INTERPRETATION) == _CMYK and directory.tags.get(EXTRASAMPLES) in (1, 2):
        # A channel that is no ink, as Photoshop adds it. Pillow leaves it out only if nothing is said about it.
        struct.pack_into(order + "H", altered, directory.places[EXTRASAMPLES], 0)
    stream = io.BytesIO(altered)
    try:
        # Pillow misreads uncompressed planes of more than 8 bits, libtiff does not.
        is_planar = directory.tags.get(PLANAR_CONFIGURATION) == _SEPARATE_PLANES
        with _libtiff_alone() if is_planar else contextlib.nullcontext():
            image = Image.open(stream, formats=("TIFF",))
    except (SyntaxError, LookupError, OSError, TypeError, ValueError) as error:
        if directory.is_complete:
            raise ImageError(ImageReason.UNSUPPORTED_PIXELS, "a kind of TIFF that Pillow does not know") from error
        raise
    with image:
        yield image


@contextlib.contextmanager
def _libtiff_alone() -> Iterator[None]:
    before = TiffImagePlugin.READ_LIBTIFF
    TiffImagePlugin.READ_LIBTIFF = True
    try:
        yield
    finally:
        TiffImagePlugin.READ_LIBTIFF = before


def codec_is_missing(image: Image.Image) -> bool:
    """Whether an image that could not be decoded is compressed in a way that this build of libtiff lacks.

    Args:
        image: The opened image.

    Returns:
        False for other formats, and where the data are to blame.
    """
    name = image.info.get("compression")
    if not isinstance(image, TiffImageFile) or name in (None, "raw"):
        return False
    for mode in ("RGB", "1"):
        try:
            Image.new(mode, (16, 16)).save(io.BytesIO(), "TIFF", compression=name)
        except (OSError, ValueError, KeyError, RuntimeError):
            continue
        return False
    return True
