"""TIFF files of any kind, written by hand, since libraries write only few of those that scanners and programs do."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHORT, LONG, LONG8 = 3, 4, 16
TILE_PX = 32
DEFLATE = 8


@dataclass(frozen=True)
class TiffPage:
    """One image of a file; samples are H x W x C, of the type that is to be stored."""

    samples: NDArray
    photometric: int = 1
    planar: int = 1
    extra: tuple[int, ...] = ()
    is_tiled: bool = False
    subfile: int = 0
    compression: int = 1
    old_subfile: int | None = None


def make_tiff(*pages: TiffPage, order: str = "<", is_big: bool = False) -> bytes:
    """A file with these images, as classic TIFF or as BigTIFF."""
    mark = b"II" if order == "<" else b"MM"
    link = "Q" if is_big else "I"
    out = bytearray(mark + (struct.pack(order + "HHHQ", 43, 8, 0, 0) if is_big else struct.pack(order + "HI", 42, 0)))
    link_at = len(out) - struct.calcsize("=" + link)
    for page in pages:
        tags = _tags(page, _pieces(page, order, out))
        entries = b"".join(_entry(order, link, tag, kind, values, out) for tag, kind, values in tags)
        out += b"\0" * (len(out) % 2)
        out[link_at : link_at + struct.calcsize("=" + link)] = struct.pack(order + link, len(out))
        out += struct.pack(order + ("Q" if is_big else "H"), len(tags)) + entries
        link_at = len(out)
        out += struct.pack(order + link, 0)
    return bytes(out)


def _pieces(page: TiffPage, order: str, out: bytearray) -> tuple[list[int], list[int]]:
    """Write strips or tiles; returns their offsets and sizes."""
    samples = page.samples.astype(page.samples.dtype.newbyteorder(order))
    planes = np.split(samples, samples.shape[2], axis=2) if page.planar == 2 else [samples]
    offsets, sizes = [], []
    for plane in planes:
        for piece in _tiles(plane) if page.is_tiled else [plane]:
            out += b"\0" * (len(out) % 2)
            stored = zlib.compress(piece.tobytes()) if page.compression == DEFLATE else piece.tobytes()
            offsets.append(len(out))
            sizes.append(len(stored))
            out += stored
    return offsets, sizes


def _tiles(plane: NDArray) -> list[NDArray]:
    height, width, _ = plane.shape
    padded = np.pad(plane, ((0, -height % TILE_PX), (0, -width % TILE_PX), (0, 0)))
    return [
        np.ascontiguousarray(padded[y : y + TILE_PX, x : x + TILE_PX])
        for y in range(0, height, TILE_PX)
        for x in range(0, width, TILE_PX)
    ]


def _tags(page: TiffPage, pieces: tuple[list[int], list[int]]) -> list[tuple[int, int, Sequence[int]]]:
    height, width, channels = page.samples.shape
    kind = {"u": 1, "i": 2, "f": 3}[page.samples.dtype.kind]
    offsets, sizes = pieces
    tags: list[tuple[int, int, Sequence[int]]] = [
        (254, LONG, [page.subfile]),
        (256, LONG, [width]),
        (257, LONG, [height]),
        (258, SHORT, [page.samples.dtype.itemsize * 8] * channels),
        (259, SHORT, [page.compression]),
        (262, SHORT, [page.photometric]),
        (277, SHORT, [channels]),
        (284, SHORT, [page.planar]),
        (339, SHORT, [kind] * channels),
    ]
    if page.old_subfile is not None:
        tags.append((255, SHORT, [page.old_subfile]))
    if page.extra:
        tags.append((338, SHORT, page.extra))
    if page.is_tiled:
        tags += [(322, SHORT, [TILE_PX]), (323, SHORT, [TILE_PX]), (324, LONG, offsets), (325, LONG, sizes)]
    else:
        tags += [(273, LONG, offsets), (278, LONG, [height]), (279, LONG, sizes)]
    return sorted(tags)


def _entry(order: str, link: str, tag: int, kind: int, values: Sequence[int], out: bytearray) -> bytes:
    raw = struct.pack(order + {SHORT: "H", LONG: "I"}[kind] * len(values), *values)
    room = struct.calcsize("=" + link)
    if len(raw) > room:
        out += b"\0" * (len(out) % 2)
        place = struct.pack(order + link, len(out))
        out += raw
        raw = place
    return struct.pack(order + "HH" + link, tag, kind, len(values)) + raw.ljust(room, b"\0")
