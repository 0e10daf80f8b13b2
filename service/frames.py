"""Frames between two processes of the service: a JSON header, then raw bytes, over a socket.

A frame is two lengths (32 bits, big-endian), a header of the first length, and a tail of the second. Nothing is ever
unpickled, so a frame cannot run code on the other side. Knows no messages. Free of torch and, as image processes start
often, of pydantic at run time.
"""

from __future__ import annotations

import base64
import json
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_LENGTHS = struct.Struct("!II")
_TIMEVAL = struct.Struct("@ll")
BUFFER_BYTES = 2 << 20
"""Of each end; the kernel grants what it allows, see `net.core.wmem_max`."""
_MOST_PARTS = 512
"""Of one call; systems allow 1024."""
_T = TypeVar("_T")


def connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new connection, with room for a page of one view where the kernel allows it.

    Its sender then need not wait for its reader after each part.
    """
    pipe, theirs = socket.socketpair()
    for each in (pipe, theirs):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    return pipe, theirs


class BrokenFrameError(Exception):
    """The other side closed the connection or broke the format."""


class ConnectionClosedError(BrokenFrameError):
    """The other side closed the connection."""


def send(pipe: socket.socket, header: bytes, *tail: bytes | memoryview, deadline_s: float | None = None) -> None:
    """Write one frame from where its parts are, without copying them; blocks while the other side does not read.

    Args:
        pipe: One end of a connection, blocking.
        header: JSON.
        *tail: Raw bytes, one part after another; contiguous, of one dimension.
        deadline_s: Monotonic time after which to give up; None: never.

    Raises:
        OSError: The other side has gone. A `TimeoutError`: the deadline has passed.
    """
    lengths = _LENGTHS.pack(len(header), sum(len(part) for part in tail))
    parts = [memoryview(lengths + header), *(memoryview(part) for part in tail if len(part))]
    while parts:
        if deadline_s is None:
            _skip(parts, pipe.sendmsg(parts[:_MOST_PARTS]))
            continue
        # A kernel's time limit would begin again with each piece that the other side takes.
        try:
            _skip(parts, pipe.sendmsg(parts[:_MOST_PARTS], (), socket.MSG_DONTWAIT))
        except BlockingIOError:
            _wait_writable(pipe, deadline_s)


def send_at_once(pipe: socket.socket, header: bytes) -> bool:
    """Write a frame without a tail if the other side has room for it, and never block.

    Args:
        pipe: One end of a connection.
        header: JSON, short enough to be taken as a whole or not at all.

    Returns:
        Whether it was written.

    Raises:
        OSError: The other side has gone.
    """
    try:
        pipe.sendmsg([_LENGTHS.pack(len(header), 0), header], (), socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    return True


def receive(
    pipe: socket.socket,
    *,
    max_header_bytes: int | None = None,
    max_tail_bytes: int | None = None,
    deadline_s: float | None = None,
) -> tuple[bytes, memoryview]:
    """Read one frame; blocks until it is there.

    Args:
        pipe: One end of a connection, blocking.
        max_header_bytes: Refuse a longer header; None: any.
        max_tail_bytes: Refuse a longer tail; None: any.
        deadline_s: Monotonic time after which to give up; None: never.

    Returns:
        The header, and the tail in memory of its own.

    Raises:
        BrokenFrameError: The other side has gone, or the frame is too large.
        OSError: This side has gone. A `TimeoutError`: the deadline has passed.
    """
    lengths = bytearray(_LENGTHS.size)
    _receive_into(pipe, [memoryview(lengths)], deadline_s)
    header_bytes, tail_bytes = _LENGTHS.unpack(lengths)
    for size, limit in ((header_bytes, max_header_bytes), (tail_bytes, max_tail_bytes)):
        if limit is not None and size > limit:
            raise BrokenFrameError(f"{size} bytes where {limit} are allowed")
    # Not bytearrays: those would be filled with zeros first.
    header, tail = np.empty(header_bytes, np.uint8).data, np.empty(tail_bytes, np.uint8).data
    _receive_into(pipe, [part for part in (header, tail) if len(part)], deadline_s)
    return bytes(header), tail


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


def _receive_into(pipe: socket.socket, parts: list[memoryview], deadline_s: float | None) -> None:
    # By a single call unless the deadline passes: after each call a thread waits for the interpreter lock, for as long
    # as `sys.getswitchinterval` where another one is busy.
    while parts:
        _limit(pipe, deadline_s)
        try:
            count, *_ = pipe.recvmsg_into(parts, 0, socket.MSG_WAITALL)
        except BlockingIOError as error:
            raise TimeoutError from error
        if not count:
            raise ConnectionClosedError("the other side has closed the connection")
        _skip(parts, count)


def _skip(parts: list[memoryview], num_bytes: int) -> None:
    """Drop what has been sent or received from the front."""
    while parts and num_bytes >= len(parts[0]):
        num_bytes -= len(parts.pop(0))
    if num_bytes:
        parts[0] = parts[0][num_bytes:]


def _limit(pipe: socket.socket, deadline_s: float | None) -> None:
    # By the kernel: with a time limit of its own, Python polls before each call, which then returns with what is there.
    left_us = 0 if deadline_s is None else max(1000, round(1e6 * (deadline_s - time.monotonic())))
    pipe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(*divmod(left_us, 1_000_000)))


def _wait_writable(pipe: socket.socket, deadline_s: float) -> None:
    poll = select.poll()
    poll.register(pipe, select.POLLOUT)
    if not poll.poll(1000 * max(deadline_s - time.monotonic(), 0.001)) or time.monotonic() >= deadline_s:
        raise TimeoutError
