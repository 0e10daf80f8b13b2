"""Image files as images of a PDF: a JPEG bit for bit, a PNG's rows where PDF can hold them, other pixels without loss.

Runs in an image process only.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pikepdf
from pikepdf import Array, Dictionary, Name
from PIL import Image

from service.errors import UnsupportedPixelsError
from service.intake.formats import FileFormat
from shared.images.pixels import SIDEWAYS, SIXTEEN_BIT, as_seen, bits_per_sample, is_white_is_zero, orientation_of
from shared.images.raster import RasterFile

DEFAULT_DPI = 150.0
"""Resolution of an image that names none, or none that can be true; that of rendered PDF pages by default."""
MIN_DPI, MAX_DPI = 30.0, 4800.0
MAX_SIDE_PT = 14_400
"""Largest page that readers show (ISO 32000-1, annex C)."""
POINTS_PER_INCH = 72
METRES_PER_INCH = 0.0254
_MAX_PROFILE_BYTES = 8 * 1024 * 1024
_FAST = 1
"""Level of compression: large pages must be done within the time of one page."""

Matrix = tuple[float, float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class EmbeddedFrame:
    """An image and the page that shows it upright; `matrix` places the image's unit square on that page."""

    image: pikepdf.Object
    width_pt: float
    height_pt: float
    matrix: Matrix


def embed_frames(pdf: pikepdf.Pdf, file: RasterFile, numbers: Sequence[int]) -> Iterator[EmbeddedFrame]:
    """Embed pages of an image file.

    Args:
        pdf: The document that gets them.
        file: The file.
        numbers: The pages, from 1.

    Yields:
        EmbeddedFrame: One page.
    """
    for number in numbers:
        with file.opened(number) as image:
            if number > 1 and file.file_format is not FileFormat.TIFF:
                image.seek(number - 1)
            # RasterFile opens PNG files without chunks that change no pixel.
            chunks = _png_chunks(file.upload) if file.file_format is FileFormat.PNG else {}
            dpi = _dpi(_png_dpi(chunks) if chunks else image.info.get("dpi"))
            profile = _png_profile(chunks) if chunks else image.info.get("icc_profile")
            is_sideways = orientation_of(image) in SIDEWAYS
            embedded, turn = None, orientation_of(image)
            if file.file_format is FileFormat.JPEG and image.mode in _CHANNELS:
                embedded = _jpeg(pdf, file.data, image, profile)
            elif chunks and number == 1:
                embedded = _png(pdf, chunks, profile)
            if embedded is None:
                embedded, turn = _pixels(pdf, image, profile)
            width_px, height_px = int(embedded.Width), int(embedded.Height)
            if turn in SIDEWAYS:
                width_px, height_px = height_px, width_px
            width_pt, height_pt = _size_pt(width_px, height_px, dpi[::-1] if is_sideways else dpi)
            yield EmbeddedFrame(embedded, width_pt, height_pt, _placement(turn, width_pt, height_pt))


def _dpi(given: object) -> tuple[float, float]:
    try:
        horizontal, vertical = (float(value) for value in cast("tuple[float, float]", given))
    except (TypeError, ValueError, ZeroDivisionError):
        return DEFAULT_DPI, DEFAULT_DPI
    is_true = all(MIN_DPI <= value <= MAX_DPI for value in (horizontal, vertical))
    return (horizontal, vertical) if is_true else (DEFAULT_DPI, DEFAULT_DPI)


def _size_pt(width_px: int, height_px: int, dpi: tuple[float, float]) -> tuple[float, float]:
    size = width_px * POINTS_PER_INCH / dpi[0], height_px * POINTS_PER_INCH / dpi[1]
    shrink = min(1.0, MAX_SIDE_PT / max(size))
    return size[0] * shrink, size[1] * shrink


def _placement(turn: int, width: float, height: float) -> Matrix:
    """What `cm` needs to show an image with an EXIF orientation upright on a page of this size."""
    return {
        2: (-width, 0.0, 0.0, height, width, 0.0),
        3: (-width, 0.0, 0.0, -height, width, height),
        4: (width, 0.0, 0.0, -height, 0.0, height),
        5: (0.0, -height, -width, 0.0, width, height),
        6: (0.0, -height, width, 0.0, 0.0, height),
        7: (0.0, height, width, 0.0, 0.0, 0.0),
        8: (0.0, height, -width, 0.0, width, 0.0),
    }.get(turn, (width, 0.0, 0.0, height, 0.0, 0.0))


_CHANNELS = {"L": 1, "RGB": 3, "CMYK": 4}
_DEVICE_SPACES = {1: Name.DeviceGray, 3: Name.DeviceRGB, 4: Name.DeviceCMYK}
_PROFILE_SPACES = {1: b"GRAY", 3: b"RGB ", 4: b"CMYK"}


def _colour_space(pdf: pikepdf.Pdf, num_channels: int, profile: object) -> pikepdf.Object:
    device = _DEVICE_SPACES[num_channels]
    # Bytes 16 to 19 of a profile name its colour space, and 36 to 39 are its signature (ICC.1, 7.2).
    if isinstance(profile, bytes) and profile[16:20] == _PROFILE_SPACES[num_channels] and profile[36:40] == b"acsp":
        stream = pikepdf.Stream(pdf, zlib.compress(profile), Filter=Name.FlateDecode, N=num_channels, Alternate=device)
        return Array([Name.ICCBased, pdf.make_indirect(stream)])
    return device


def _image(pdf: pikepdf.Pdf, data: bytes, size: tuple[int, int], bits: int, **entries: object) -> pikepdf.Object:
    stream = pikepdf.Stream(
        pdf,
        data,
        Type=Name.XObject,
        Subtype=Name.Image,
        Width=size[0],
        Height=size[1],
        BitsPerComponent=bits,
        **entries,
    )
    return pdf.make_indirect(stream)


def _jpeg(pdf: pikepdf.Pdf, data: bytes, image: Image.Image, profile: object) -> pikepdf.Object:
    space = _colour_space(pdf, _CHANNELS[image.mode], profile)
    entries: dict[str, object] = {"Filter": Name.DCTDecode, "ColorSpace": space}
    if image.mode == "CMYK" and "adobe" in image.info:
        # Files with Adobe's marker hold inverted inks (libjpeg.txt, "Special color spaces").
        entries["Decode"] = Array([1, 0] * 4)
    return _image(pdf, data, image.size, 8, **entries)


def _png_chunks(data: bytes) -> dict[bytes, bytearray]:
    """The contents of a PNG file's chunks by their names, those of a name joined."""
    chunks: dict[bytes, bytearray] = {}
    at = 8
    while at + 8 <= len(data):
        (length,), kind = struct.unpack_from(">L", data, at), data[at + 4 : at + 8]
        chunks.setdefault(kind, bytearray()).extend(data[at + 8 : at + 8 + length])
        at += 12 + length
    return chunks


def _png_dpi(chunks: dict[bytes, bytearray]) -> tuple[float, float] | None:
    found = chunks.get(b"pHYs", b"")
    if len(found) != 9 or found[8] != 1:
        return None
    horizontal, vertical = struct.unpack(">LL", found[:8])
    return horizontal * METRES_PER_INCH, vertical * METRES_PER_INCH


def _png_profile(chunks: dict[bytes, bytearray]) -> bytes | None:
    _, _, packed = bytes(chunks.get(b"iCCP", b"")).partition(b"\0")
    try:
        return zlib.decompressobj().decompress(packed[1:], _MAX_PROFILE_BYTES) or None
    except zlib.error:
        return None


def _png(pdf: pikepdf.Pdf, chunks: dict[bytes, bytearray], profile: object) -> pikepdf.Object | None:
    """The compressed rows of a PNG file, which PDF reads as they are; None if they interlace or have transparency."""
    width, height, bits, colour, *_, interlace = struct.unpack(">LLBBBBB", chunks[b"IHDR"][:13])
    num_channels = {0: 1, 2: 3, 3: 1}.get(colour)
    if num_channels is None or interlace or b"tRNS" in chunks:
        return None
    if colour == 3:
        palette = bytes(chunks[b"PLTE"])
        space: pikepdf.Object = Array([Name.Indexed, _colour_space(pdf, 3, profile), len(palette) // 3 - 1, palette])
    else:
        space = _colour_space(pdf, num_channels, profile)
    rows = Dictionary(Predictor=15, Colors=num_channels, BitsPerComponent=bits, Columns=width)
    return _image(
        pdf,
        bytes(chunks[b"IDAT"]),
        (width, height),
        bits,
        Filter=Name.FlateDecode,
        DecodeParms=rows,
        ColorSpace=space,
    )


def _pixels(pdf: pikepdf.Pdf, image: Image.Image, profile: object) -> tuple[pikepdf.Object, int]:
    """Decoded pixels without loss, and the orientation that is still to be undone."""
    inverted, bits = is_white_is_zero(image), bits_per_sample(image)
    if image.has_transparency_data:
        # On the background that it was read on: white text would not be seen on a page.
        seen = as_seen(image)
        return _compressed(pdf, seen.tobytes(), seen.size, 3, 8, profile), 1
    image.load()
    turn = orientation_of(image)
    if image.mode in SIXTEEN_BIT:
        samples_HW = np.left_shift(np.asarray(image).astype(np.uint16), np.uint16(max(16 - bits, 0)))
        data = (np.bitwise_not(samples_HW) if inverted else samples_HW).astype(">u2").tobytes()
        return _compressed(pdf, data, image.size, 1, 16, profile), turn
    if image.mode == "1":
        return _compressed(pdf, image.tobytes(), image.size, 1, 1, None), turn
    if image.mode in {"P", "RGBX", "YCbCr"}:
        image = image.convert("RGB")
    if image.mode not in _CHANNELS:
        raise UnsupportedPixelsError(f"mode {image.mode}")
    return _compressed(pdf, image.tobytes(), image.size, _CHANNELS[image.mode], 8, profile), turn


def _compressed(
    pdf: pikepdf.Pdf, data: bytes, size: tuple[int, int], num_channels: int, bits: int, profile: object
) -> pikepdf.Object:
    """Rows of samples, each as its difference to the sample on its left (PNG's filter 1), which photographs need."""
    samples_HB = np.frombuffer(data, np.uint8).reshape(size[1], -1)
    pixel_bytes = max(1, num_channels * bits // 8)
    filtered_HB = np.empty((size[1], samples_HB.shape[1] + 1), np.uint8)
    filtered_HB[:, 0] = 1
    filtered_HB[:, 1 : pixel_bytes + 1] = samples_HB[:, :pixel_bytes]
    np.subtract(samples_HB[:, pixel_bytes:], samples_HB[:, :-pixel_bytes], out=filtered_HB[:, pixel_bytes + 1 :])
    return _image(
        pdf,
        zlib.compress(filtered_HB.data, _FAST),
        size,
        bits,
        Filter=Name.FlateDecode,
        DecodeParms=Dictionary(Predictor=15, Colors=num_channels, BitsPerComponent=bits, Columns=size[0]),
        ColorSpace=_colour_space(pdf, num_channels, profile),
    )
