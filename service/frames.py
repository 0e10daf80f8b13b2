"""Frames between two processes of the service: a JSON header, then raw bytes, over a socket.

A frame is two lengths (32 bits, big-endian), a header of the first length, and a tail of the second. Nothing is ever
unpickled, so a frame cannot run code on the other side. Knows no messages. Free of torch and, as image processes start
often, of pydantic at run time.
"""

from __future__ import annotations

import base64
import json
import socket
import struct
import time
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_LENGTHS = struct.Struct("!II")
_T = TypeVar("_T")


class BrokenFrameError(Exception):
    """The other side closed the connection or broke the format."""


def send(pipe: socket.socket, header: bytes, *tail: bytes | memoryview, deadline_s: float | None = None) -> None:
    """Write one frame from where its parts are, without copying them; blocks while the other side does not read.

    Args:
        pipe: One end of a connection.
        header: JSON.
        *tail: Raw bytes, one part after another; contiguous, of one dimension.
        deadline_s: Monotonic time after which to give up; None: the socket's own timeout applies.

    Raises:
        OSError: The other side has gone. A `TimeoutError`: the deadline has passed.
    """
    lengths = _LENGTHS.pack(len(header), sum(len(part) for part in tail))
    for part in (lengths + header, *tail):
        _limit(pipe, deadline_s)
        pipe.sendall(part)


def receive(
    pipe: socket.socket,
    *,
    max_header_bytes: int | None = None,
    max_tail_bytes: int | None = None,
    deadline_s: float | None = None,
) -> tuple[bytes, memoryview]:
    """Read one frame; blocks until it is there.

    Args:
        pipe: One end of a connection.
        max_header_bytes: Refuse a longer header; None: any.
        max_tail_bytes: Refuse a longer tail; None: any.
        deadline_s: Monotonic time after which to give up; None: the socket's own timeout applies.

    Returns:
        The header, and the tail in memory of its own.

    Raises:
        BrokenFrameError: The other side has gone, or the frame is too large.
        OSError: This side has gone. A `TimeoutError`: the deadline has passed.
    """
    header_bytes, tail_bytes = _LENGTHS.unpack(_receive_exactly(pipe, _LENGTHS.size, deadline_s))
    for size, limit in ((header_bytes, max_header_bytes), (tail_bytes, max_tail_bytes)):
        if limit is not None and size > limit:
            raise BrokenFrameError(f"{size} bytes where {limit} are allowed")
    return bytes(_receive_exactly(pipe, header_bytes, deadline_s)), _receive_exactly(pipe, tail_bytes, deadline_s)


def read_header(adapter: TypeAdapter[_T], header: bytes) -> _T:
    """Read a header, with every type as declared.

    Args:
        adapter: What it must be.
        header: JSON.

    Returns:
        The message.

    Raises:
        BrokenFrameError: It is not JSON, or something else.
    """
    try:
        return adapter.validate_json(header, strict=True)
    except ValueError as error:  # pydantic's ValidationError is one
        raise BrokenFrameError("the header is not one of the messages") from error


def write_header(adapter: TypeAdapter[_T], message: _T) -> bytes:
    """Write a header.

    Args:
        adapter: Writes the message.
        message: Lone surrogates in its texts, which UTF-8 cannot encode, become U+FFFD.

    Returns:
        JSON.
    """
    try:
        return adapter.dump_json(message)
    except ValueError:  # pydantic's PydanticSerializationError is one
        text = json.dumps(adapter.dump_python(message), ensure_ascii=False, default=_base64)
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def _base64(value: bytes) -> str:
    """Bytes as pydantic writes them with `ser_json_bytes="base64"`."""
    return base64.urlsafe_b64encode(value).decode()


def _receive_exactly(pipe: socket.socket, num_bytes: int, deadline_s: float | None) -> memoryview:
    # Not a bytearray: that would be filled with zeros first.
    buffer = np.empty(num_bytes, np.uint8).data
    view = buffer
    while view:
        _limit(pipe, deadline_s)
        count = pipe.recv_into(view)
        if not count:
            raise BrokenFrameError("the other side has closed the connection")
        view = view[count:]
    return buffer


def _limit(pipe: socket.socket, deadline_s: float | None) -> None:
    if deadline_s is not None:
        pipe.settimeout(max(deadline_s - time.monotonic(), 0.001))
