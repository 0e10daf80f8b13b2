"""PNG files as Pillow reads them well: without the metadata that it refuses and no one sees, and unpacked."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from zlib_ng import zlib_ng

_SIGNATURE_BYTES = 8
_SHOWN = {b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT"}
"""Ancillary chunks that change what is seen: transparency, orientation, animation."""
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of a pixel, by colour type."""
_MOST_UNPACKED_BYTES = 64 << 20
"""Pixels of A4 at 400 dpi; an image process holds them twice for a moment."""


def without_metadata(data: bytes) -> bytes:
    """Drop ancillary chunks that change no pixel, and all whose checksum is wrong, as libpng does.

    Args:
        data: A file that starts as PNG does; it may be cut off.

    Returns:
        The file; unchanged where there is nothing to drop.
    """
    kept: list[memoryview] = []
    view = memoryview(data)
    start = 0
    for kind, at, end in _chunks(data):
        if not _is_needed(kind, view[at:end]):
            kept.append(view[start:at])
            start = end
    return b"".join([*kept, view[start:]]) if kept else data


def unpacked(data: bytes) -> bytes:
    """Decompress a file's pixels, a tenth of the work for zlib-ng of what it is for the zlib that Pillow finds.

    Args:
        data: A file that starts as PNG does; it may be damaged.

    Returns:
        The file with the same rows in blocks that are stored as they are; unchanged where its pixels are damaged,
        interlaced, animated or too many.
    """
    view = memoryview(data)
    chunks = list(_chunks(data))
    places = [(at, end) for kind, at, end in chunks if kind == b"IDAT"]
    is_plain = all(kind != b"acTL" for kind, _, _ in chunks) and bool(chunks) and chunks[0][0] == b"IHDR"
    # A part elsewhere is damage, which Pillow judges.
    if not is_plain or not places or places[-1][1] - places[0][0] != sum(end - at for at, end in places):
        return data
    num_bytes = _count_bytes(bytes(view[chunks[0][1] + 8 : chunks[0][2] - 4]))
    if not 0 < num_bytes <= _MOST_UNPACKED_BYTES:
        return data
    stream = zlib_ng.decompressobj()
    try:
        # With room for more, so that it reads to its end.
        rows = stream.decompress(b"".join(view[at + 8 : end - 4] for at, end in places), num_bytes + 1)
    except zlib_ng.error:  # type: ignore[misc] # its stub makes an instance of the class
        return data
    if len(rows) != num_bytes or not stream.eof:
        return data
    stored = zlib_ng.compress(rows, 0)
    checksum = zlib_ng.crc32(stored, zlib.crc32(b"IDAT"))
    chunk = (len(stored).to_bytes(4, "big"), b"IDAT", stored, checksum.to_bytes(4, "big"))
    return b"".join([view[: places[0][0]], *chunk, view[places[-1][1] :]])


def _count_bytes(header: bytes) -> int:
    """Of all rows with their filters, by the header; 0 where that is damaged or rows are interlaced."""
    if len(header) != 13 or header[12]:
        return 0
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    bits, colour_type = header[8:10]
    return height * (1 + (width * bits * _SAMPLES.get(colour_type, 0) + 7) // 8)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each whole chunk."""
    at = _SIGNATURE_BYTES
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        yield data[at + 4 : at + 8], at, end
        at = end


def _is_needed(kind: bytes, chunk: memoryview) -> bool:
    is_ancillary = bool(kind[0] & 0x20)
    if not is_ancillary:
        return True
    return kind in _SHOWN and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
