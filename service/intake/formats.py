"""Which formats the service reads, and how it refuses the others; names and declared types of files are ignored."""

from __future__ import annotations

from service.errors import EmptyFileError
from shared.images.formats import FileFormat, detect_format
from shared.images.other_formats import recognise, unsupported

__all__ = ["FileFormat", "detect_format", "read_format"]


def read_format(data: bytes) -> FileFormat:
    """Detect the format of a file.

    Args:
        data: The file.

    Returns:
        The format that the first bytes show; the rest may still be damaged.

    Raises:
        EmptyFileError: It has no bytes.
        ImageError: It is in no supported format; the error says in which, where that is known.
    """
    if not data:
        raise EmptyFileError
    found = detect_format(data)
    if found is None:
        raise unsupported(recognise(data))
    return found
