from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from service.frames import BrokenFrameError, receive, send

LIMITS = {"max_header_bytes": 16, "max_tail_bytes": 3}


@pytest.fixture
def pipe() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def test_frame_arrives_as_it_was_sent(pipe: tuple[socket.socket, socket.socket]) -> None:
    send(pipe[0], b'{"a": [1, null]}', b"xy", b"", memoryview(b"z"))
    send(pipe[0], b"{}")
    assert receive(pipe[1], **LIMITS) == (b'{"a": [1, null]}', b"xyz")
    assert receive(pipe[1], **LIMITS) == (b"{}", b"")


def test_frame_larger_than_the_sockets_buffers_arrives_whole(pipe: tuple[socket.socket, socket.socket]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, 3_000_001, np.uint8)
    sender = threading.Thread(target=send, args=(pipe[0], b"{}", pixels.data[:7], pixels.data[7:]))
    sender.start()
    _, tail = receive(pipe[1], deadline_s=time.monotonic() + 30)
    sender.join()
    np.testing.assert_array_equal(np.frombuffer(tail, np.uint8), pixels)


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack("!II", 2, 4) + b"{}1234",
        struct.pack("!II", LIMITS["max_header_bytes"] + 1, 0),
        struct.pack("!II", 9, 0) + b"{}",
        b"\0",
        b"",
    ],
    ids=["tail too large", "header too large", "cut off", "cut off early", "closed"],
)
def test_broken_frame_is_noticed(pipe: tuple[socket.socket, socket.socket], frame: bytes) -> None:
    pipe[0].sendall(frame)
    pipe[0].shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenFrameError):
        receive(pipe[1], **LIMITS)


def test_frame_that_does_not_come_is_not_waited_for(pipe: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(TimeoutError):
        receive(pipe[1], **LIMITS, deadline_s=time.monotonic() + 0.02)


def test_frame_that_is_not_read_is_given_up(pipe: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(TimeoutError):
        send(pipe[0], b"{}", bytes(3_000_000), deadline_s=time.monotonic() + 0.02)
