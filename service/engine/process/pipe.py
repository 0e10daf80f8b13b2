"""Large frames through the engine's pipe: written from where they lie, read to where they stay.

`Connection.send_bytes` wants a frame in one piece and `recv_bytes` puts one together from many: 6.5 MB, a page of A4 at
150 dots an inch, take 6 to 15 ms that way, encoding included, and 1.5 to 3 ms this way (two EPYC cores). Free of torch.
"""

from __future__ import annotations

import os
import struct
from multiprocessing.connection import Connection

import numpy as np

_SIZE = struct.Struct(">Q")


def send(connection: Connection, *parts: bytes | memoryview) -> None:
    """Write one frame; blocks while the other end does not read.

    Args:
        connection: One end of a pipe that carries only such frames this way.
        *parts: The frame's bytes, one after another; views of one dimension, contiguous.

    Raises:
        OSError: The other end has gone.
    """
    views = [memoryview(part) for part in parts if part]
    views.insert(0, memoryview(_SIZE.pack(sum(view.nbytes for view in views))))
    while views:
        sent = os.writev(connection.fileno(), views)
        while views and sent >= views[0].nbytes:
            sent -= views.pop(0).nbytes
        if sent:
            views[0] = views[0][sent:]


def receive(connection: Connection) -> memoryview:
    """Read one frame; blocks until it is there.

    Args:
        connection: The other end.

    Returns:
        Its bytes, in memory of their own.

    Raises:
        EOFError: The other end has gone.
        OSError: This end has.
    """
    (size,) = _SIZE.unpack(_read(connection, _SIZE.size))
    return _read(connection, size)


def _read(connection: Connection, num_bytes: int) -> memoryview:
    # Not a bytearray: that would be filled with zeros first.
    frame = np.empty(num_bytes, np.uint8).data
    left = frame
    while left:
        count = os.readv(connection.fileno(), [left])
        if not count:
            raise EOFError("the other end of the pipe has gone")
        left = left[count:]
    return frame
