"""Images that a source stores as text: base64, or a data URL (RFC 2397)."""

from __future__ import annotations

import base64
import re
from typing import Final

from shared.images.other_formats import is_base64_of_a_file
from trainer.data.errors import RowCode, RowError

LONGEST_PATH: Final = 4096
"""Characters; a longer text is no path."""
_HEAD_CHARACTERS: Final = 64
_SHOWN_CHARACTERS: Final = 60
_DATA_URL: Final = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
_REMOTE: Final = re.compile(r"([a-z][a-z0-9+.-]{1,15})://", re.IGNORECASE)
_URL_SAFE: Final = str.maketrans("-_", "+/")


def decode_text(value: str) -> bytes | None:
    """The image that a text is.

    Args:
        value: a text of a source.

    Returns:
        The file's bytes; None for what may be a path.

    Raises:
        RowError: it is a URL of another kind, base64 that is broken, or too long for a path.
    """
    head = _DATA_URL.match(value)
    if head is not None:
        if not head.group().lower().endswith(";base64,"):
            raise RowError(RowCode.IMAGE_UNREADABLE, "its data URL is not base64: write data:TYPE;base64,DATA")
        return _decode(value[head.end() :])
    remote = _REMOTE.match(value)
    if remote is not None:
        raise RowError(
            RowCode.IMAGE_REMOTE,
            f"{shown(value)} is a URL, and nothing is fetched: download the image and name its file",
        )
    if is_base64_of_a_file(value[:_HEAD_CHARACTERS].encode("utf-8", "replace")):
        return _decode(value)
    if len(value) > LONGEST_PATH:
        raise RowError(RowCode.IMAGE_MISSING, f"a text of {len(value)} characters is no path, and no image in base64")
    return None


def shown(text: object) -> str:
    """A value of a source as messages show it, cut short."""
    whole = str(text)
    return whole if len(whole) <= _SHOWN_CHARACTERS else f"{whole[:_SHOWN_CHARACTERS]}..."


def _decode(text: str) -> bytes:
    """Decode base64 of either alphabet, with line breaks and without padding, but nothing else in it."""
    letters = "".join(text.split()).rstrip("=").translate(_URL_SAFE)
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except ValueError as error:
        raise RowError(RowCode.IMAGE_UNREADABLE, "its base64 is damaged or cut off") from error
