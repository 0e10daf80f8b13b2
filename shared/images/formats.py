"""Detects a file's format from its first bytes; file names and declared types are ignored."""

from __future__ import annotations

import re
from enum import StrEnum

PDF_HEADER_WITHIN_BYTES = 1024
"""Readers accept a PDF header anywhere in the first kilobyte (PDF 1.7, appendix H.3, note 13)."""


class FileFormat(StrEnum):
    """Supported formats."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    TIFF = "tiff"
    GIF = "gif"
    BMP = "bmp"
    JPEG2000 = "jpeg2000"
    AVIF = "avif"
    HEIC = "heic"
    """Needs the package pi-heif."""
    PDF = "pdf"


SUFFIXES = {
    FileFormat.PNG: (".png",),
    FileFormat.JPEG: (".jpg", ".jpeg"),
    FileFormat.WEBP: (".webp",),
    FileFormat.TIFF: (".tif", ".tiff"),
    FileFormat.GIF: (".gif",),
    FileFormat.BMP: (".bmp",),
    FileFormat.JPEG2000: (".jp2", ".j2k", ".jpf", ".jpx"),
    FileFormat.AVIF: (".avif",),
    FileFormat.HEIC: (".heic", ".heif"),
    FileFormat.PDF: (".pdf",),
}
"""Usual endings of file names, for finding files in a folder."""

_STARTS = tuple(
    (re.compile(pattern, re.DOTALL), file_format)
    for pattern, file_format in (
        (rb"\x89PNG\r\n\x1a\n", FileFormat.PNG),
        # Some cameras and fax gateways write stray bytes after the start marker, and decoders skip them.
        (rb"\xff\xd8[^\xff]{0,32}\xff+[\xc0-\xfe]", FileFormat.JPEG),
        (rb"RIFF.{4}WEBP", FileFormat.WEBP),
        (rb"II[*+]\0|MM\0[*+]", FileFormat.TIFF),
        (rb"GIF8[79]a", FileFormat.GIF),
        # The size of the second header, of which there are seven versions.
        (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", FileFormat.BMP),
        (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", FileFormat.JPEG2000),
    )
)
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


def detect_format(data: bytes | bytearray | memoryview) -> FileFormat | None:
    """Detect the format of a file; None if it is not supported.

    Args:
        data: The file, or its first kilobyte.

    Returns:
        The format that the first bytes show; the rest may still be damaged.
    """
    head = bytes(data[:PDF_HEADER_WITHIN_BYTES])
    for start, file_format in _STARTS:
        if start.match(head):
            return file_format
    brands = brands_of(head)
    if brands & _AVIF_BRANDS:
        return FileFormat.AVIF
    if brands & _HEIC_BRANDS:
        return FileFormat.HEIC
    if b"%PDF-" in head:
        return FileFormat.PDF
    return None


def brands_of(head: bytes) -> set[bytes]:
    """What an ISO base media file says it is compatible with; empty for other files.

    Args:
        head: The file's first bytes.

    Returns:
        Four letters each.
    """
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    # The four bytes after the major brand are its version.
    return {head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))}
