"""Which format a file has, told by its first bytes alone; names and declared types are never believed."""

from __future__ import annotations

from enum import StrEnum

PDF_HEADER_WITHIN_BYTES = 1024
"""Readers accept a PDF header anywhere in the first kilobyte (PDF 1.7, appendix H.3, note 13)."""


class FileFormat(StrEnum):
    """Formats that are read; the values of the first four are Pillow's names in lower case."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    TIFF = "tiff"
    PDF = "pdf"


_TIFF_HEADERS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def detect_format(data: bytes | bytearray | memoryview) -> FileFormat | None:
    """Name the format of a file, or None when it is none of ours.

    Args:
        data: The file, or its first kilobyte.

    Returns:
        The format that the content claims; it may still turn out damaged.
    """
    head = bytes(data[:PDF_HEADER_WITHIN_BYTES])
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return FileFormat.PNG
    if head.startswith(b"\xff\xd8\xff"):
        return FileFormat.JPEG
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return FileFormat.WEBP
    if head.startswith(_TIFF_HEADERS):
        return FileFormat.TIFF
    if b"%PDF-" in head:
        return FileFormat.PDF
    return None
