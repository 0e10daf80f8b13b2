"""PNG files without what Pillow refuses and no one sees: metadata of any size, checksums of it that are wrong."""

from __future__ import annotations

import zlib

_SIGNATURE_BYTES = 8
_SHOWN = {b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT"}
"""Ancillary chunks that change what is seen: transparency, orientation, animation."""


def without_metadata(data: bytes) -> bytes:
    """Drop ancillary chunks that change no pixel, and all whose checksum is wrong, as libpng does.

    Args:
        data: A file that starts as PNG does; it may be cut off.

    Returns:
        The file; unchanged where there is nothing to drop.
    """
    kept: list[memoryview] = []
    view = memoryview(data)
    start, at = 0, _SIGNATURE_BYTES
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(view[at : at + 4], "big")
        if end > len(data):
            break
        if not _is_needed(bytes(view[at + 4 : at + 8]), view[at:end]):
            kept.append(view[start:at])
            start = end
        at = end
    return b"".join([*kept, view[start:]]) if kept else data


def _is_needed(kind: bytes, chunk: memoryview) -> bool:
    is_ancillary = bool(kind[0] & 0x20)
    if not is_ancillary:
        return True
    return kind in _SHOWN and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
