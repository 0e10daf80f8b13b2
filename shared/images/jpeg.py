"""JPEG files that decoders read and Pillow refuses: stray bytes at the start, an end that is missing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.images.errors import ImageError, ImageReason

_START = b"\xff\xd8"
_END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff+[\x01-\xfe]")
_AFTER_SCAN = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
_SOS, _EOI = 0xDA, 0xD9
_ALONE = {0x01, *range(0xD0, 0xD9)}
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_JPEG_LS = 0xF7
_ALL_COEFFICIENTS = frozenset(range(64))
_BLOCK_PX = 8
_MOST_SCANS = 1000


@dataclass(slots=True)
class JpegFile:
    """A file that Pillow opens, and what is known about its end."""

    data: bytes
    is_cut: bool = False
    """Whether it had no end marker."""
    mcu_px: tuple[int, int] = (_BLOCK_PX, _BLOCK_PX)
    """Width and height of a minimum coded unit, the piece in which pixels are stored."""
    num_components: int = 1
    first_component: int | None = None
    scans: list[_Scan] = field(default_factory=list)

    def missing_share(self, image: Image.Image) -> float:
        """Share of the pixels that are missing.

        Args:
            image: The decoded image as it is stored, not yet turned.

        Returns:
            0 to 1; 1 as well where only a coarse version of the page is there.
        """
        if not self.is_cut:
            return 0.0
        if not self._has_detail():
            return 1.0
        across, down = self.mcu_px
        columns, rows = -(-image.width // across), -(-image.height // down)
        for row in reversed(range(rows)):
            part = image.crop((0, row * down, image.width, min((row + 1) * down, image.height)))
            present = np.flatnonzero(~_missing_units(part, across, down))
            if present.size:
                return 1 - (row * columns + int(present[-1]) + 1) / (rows * columns)
        return 1.0

    def _has_detail(self) -> bool:
        """Whether all scans that a page can be read from are whole, if it has several; they refine one another."""
        if not self.scans:
            return False
        first = self.scans[0]
        if first.coefficients == _ALL_COEFFICIENTS and len(first.components) == self.num_components:
            return True
        whole = [
            scan.coefficients
            for scan in self.scans
            if scan.is_whole and scan.is_first and self.first_component in scan.components
        ]
        return frozenset().union(*whole) == _ALL_COEFFICIENTS


def _missing_units(row: Image.Image, across: int, down: int) -> NDArray[np.bool_]:
    """Which units of a row of them libjpeg has left grey, since it had no data for them."""
    samples_HWC: NDArray[np.uint8] = np.asarray(row).reshape(row.height, row.width, -1)
    padding = ((0, down - row.height), (0, -row.width % across), (0, 0))
    samples_HWC = np.pad(samples_HWC, padding, mode="edge")
    is_grey_HW = ((samples_HWC == 128) | (samples_HWC == 127)).all(-1)
    # The edge of a unit is left out: colours of its neighbours are blended into it.
    return is_grey_HW.reshape(down, -1, across)[1:-1, :, 1:-1].all((0, 2))


@dataclass(frozen=True, slots=True)
class _Scan:
    components: frozenset[int]
    coefficients: frozenset[int]
    is_first: bool
    """Whether it brings coefficients for the first time, not more bits of them."""
    is_whole: bool
    """Whether another marker follows it."""


def read_markers(data: bytes) -> JpegFile:
    """Walk through a file's markers.

    Args:
        data: A file that starts as JPEG does.

    Returns:
        The file as Pillow opens it.

    Raises:
        ImageError: It is a kind of JPEG that is not read.
    """
    first = _MARKER.search(data, len(_START))
    file = JpegFile(data)
    if first is None:
        return file
    at = first.end() - 2
    if at > len(_START):
        # Stray bytes, or padding, before the first marker.
        data = file.data = _START + data[at:]
        at = len(_START)
    while found := _MARKER.search(data, at):
        marker, at = found.group()[-1], found.end()
        if marker == _EOI:
            return file
        if marker in _ALONE:
            continue
        size = int.from_bytes(data[at : at + 2], "big")
        body = data[at + 2 : at + size]
        if marker in _FRAMES or marker == _JPEG_LS:
            _read_frame(file, marker, body)
        at += max(size, 2)
        if marker == _SOS:
            if data.endswith(_END):
                # Most files: no need to walk through the pixels.
                return file
            after = _AFTER_SCAN.search(data, at)
            _read_scan(file, body, is_whole=after is not None)
            if after is None:
                break
            at = after.start()
    file.is_cut = True
    file.data = data + _END
    return file


def _read_frame(file: JpegFile, marker: int, body: bytes) -> None:
    if marker == _JPEG_LS or (body and body[0] != 8):
        raise ImageError(ImageReason.UNSUPPORTED_PIXELS, "JPEG with other samples than 8 bits, or JPEG-LS")
    components = [body[at : at + 3] for at in range(6, len(body) - 2, 3)]
    if not components:
        return
    file.num_components = len(components)
    file.first_component = components[0][0]
    if len(components) > 1:
        sampling = [each[1] for each in components]
        file.mcu_px = (
            _BLOCK_PX * max(1, *(each >> 4 for each in sampling)),
            _BLOCK_PX * max(1, *(each & 15 for each in sampling)),
        )


def _read_scan(file: JpegFile, body: bytes, *, is_whole: bool) -> None:
    count = body[0] if body else 0
    if len(body) < 4 + 2 * count or len(file.scans) == _MOST_SCANS:
        return
    spectral_start, spectral_end, approximation = body[1 + 2 * count : 4 + 2 * count]
    file.scans.append(
        _Scan(
            frozenset(body[1 : 1 + 2 * count : 2]),
            frozenset(range(spectral_start, min(spectral_end, 63) + 1)),
            is_first=approximation >> 4 == 0,
            is_whole=is_whole,
        )
    )
