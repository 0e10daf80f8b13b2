"""PNG files chunk by chunk."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, COLOUR = 0, 2


def chunk(kind: bytes, data: bytes, *, wrong_checksum: bool = False) -> bytes:
    """One chunk."""
    checksum = zlib.crc32(kind + data) ^ wrong_checksum
    return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", checksum)


def make_png(width: int, height: int, depth: int, colour: int, rows: list[bytes], *chunks: bytes) -> bytes:
    """A file of unfiltered rows, with more chunks before the pixels."""
    header = struct.pack("!IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"".join([SIGNATURE, chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b"")])


def grey_png(samples_HW: NDArray, bits: int, *, transparent: int | None = None) -> bytes:
    """Grey samples of 1, 2, 4 or 8 bits."""
    height, width = samples_HW.shape
    shifts = np.arange(8 - bits, -1, -bits)
    rows = [(row.reshape(-1, 8 // bits) << shifts).sum(1).astype(np.uint8).tobytes() for row in samples_HW]
    more = [] if transparent is None else [chunk(b"tRNS", struct.pack("!H", transparent))]
    return make_png(width, height, bits, GREY, rows, *more)


def colour_png(samples_HWC: NDArray, transparent: tuple[int, int, int] | None = None) -> bytes:
    """Colours of 16 bits."""
    height, width, _ = samples_HWC.shape
    rows = [row.astype(">u2").tobytes() for row in samples_HWC]
    more = [] if transparent is None else [chunk(b"tRNS", struct.pack("!HHH", *transparent))]
    return make_png(width, height, 16, COLOUR, rows, *more)
