"""Detects a file's format from its first bytes; file names and declared types are ignored."""

from __future__ import annotations

from enum import StrEnum

PDF_HEADER_WITHIN_BYTES = 1024
"""Readers accept a PDF header anywhere in the first kilobyte (PDF 1.7, appendix H.3, note 13)."""


class FileFormat(StrEnum):
    """Supported formats; the values of the first four are Pillow's names in lower case."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    TIFF = "tiff"
    PDF = "pdf"


_TIFF_HEADERS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def detect_format(data: bytes | bytearray | memoryview) -> FileFormat | None:
    """Detect the format of a file; None if it is not supported.

    Args:
        data: The file, or its first kilobyte.

    Returns:
        The format that the first bytes show; the rest may still be damaged.
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
