"""Files inside JSON: data URLs (RFC 2397) with base64. No URL is ever fetched."""

from __future__ import annotations

import binascii
import io
import re

from service.errors import InvalidDataUrlError, RemoteUrlError, UploadTooLargeError

_HEADER = re.compile(r"data:(?:[a-z0-9!#$&^_.+-]{1,80}/[a-z0-9!#$&^_.+-]{1,80})?(?:;[^;,\s]{1,80}){0,4};base64,", re.I)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,30}:", re.I)
_PIECE_CHARS = 4 * 16_384
_LINE_BREAKS = ("\n", "\r")
_EXPECTED_HEAD = "data:TYPE;base64, and then the file's base64"
_EXPECTED_BASE64 = "base64 of the letters A-Z a-z 0-9 + /, padded with = to a multiple of four"


class FileBudget:
    """Decodes the files of one request, whose bytes may add up to `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._left_bytes = limit_bytes

    def decode(self, url: str, field: str, *, may_be_bare: bool = False) -> bytes:
        """Decode a file.

        The type that it claims to have is not used: its content decides. The base64 may have line breaks, as in MIME.

        Args:
            url: A data URL.
            field: Where it is in the request.
            may_be_bare: Whether base64 without the head of a data URL is taken, too.

        Returns:
            The file.

        Raises:
            RemoteUrlError: It is a URL of another kind.
            InvalidDataUrlError: It is not valid.
            UploadTooLargeError: The files have more bytes than the limit; found before this one is decoded.
        """
        head = _HEADER.match(url)
        if head is None:
            scheme = _SCHEME.match(url)
            if scheme is not None and scheme.group().lower() != "data:":
                raise RemoteUrlError(public={"field": field})
            if scheme is not None or not may_be_bare:
                raise InvalidDataUrlError(public={"field": field, "expected": _EXPECTED_HEAD})
        start = head.end() if head else 0
        num_chars = len(url) - start - sum(url.count(mark, start) for mark in _LINE_BREAKS)
        # Padding and the line break after it.
        num_bytes = num_chars // 4 * 3 - url[-4:].count("=")
        if num_bytes > self._left_bytes:
            raise UploadTooLargeError(public={"limit_bytes": self._limit_bytes})
        data = _decode_base64(url, start)
        if data is None:
            raise InvalidDataUrlError(public={"field": field, "expected": _EXPECTED_BASE64})
        self._left_bytes -= len(data)
        return data


def _decode_base64(text: str, start: int) -> bytes | None:
    """Decode from `start` on, piece by piece, so that no second copy of the text is made; None if it is not valid."""
    decoded = io.BytesIO()
    rest, is_ended = "", False
    for begin in range(start, len(text), _PIECE_CHARS):
        piece = rest + text[begin : begin + _PIECE_CHARS]
        for mark in _LINE_BREAKS:
            piece = piece.replace(mark, "")
        num_whole = len(piece) // 4 * 4
        piece, rest = piece[:num_whole], piece[num_whole:]
        if is_ended and piece:
            # Padding within the text: two files' base64 joined, or a smuggled end.
            return None
        try:
            data = binascii.a2b_base64(piece, strict_mode=True)
        except ValueError:
            return None
        is_ended = len(data) != num_whole // 4 * 3
        decoded.write(data)
    return None if rest else decoded.getvalue()
