from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from service.frames import BrokenFrameError, connected, receive, send, send_at_once

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


def test_a_page_is_received_in_two_calls() -> None:
    left, right = connected()
    page = bytes(640 * 640 * 3)
    with left, right:
        counted = _Counted(right)
        sender = threading.Thread(target=send, args=(left, b"{}", page))
        sender.start()
        _, tail = receive(counted, deadline_s=time.monotonic() + 30)  # type: ignore[arg-type] # what it uses of a socket
        sender.join()
    assert tail == page
    assert counted.num_calls == 2


class _Counted:
    """A socket that counts how often something is received."""

    def __init__(self, pipe: socket.socket) -> None:
        self._pipe = pipe
        self.setsockopt = pipe.setsockopt
        self.num_calls = 0

    def recvmsg_into(self, *arguments: object) -> object:
        self.num_calls += 1
        return self._pipe.recvmsg_into(*arguments)  # type: ignore[arg-type] # as the socket takes them


def test_deadline_holds_while_the_other_side_reads_a_little_at_a_time(
    pipe: tuple[socket.socket, socket.socket],
) -> None:
    def trickle() -> None:
        while pipe[1].recv(4096):
            time.sleep(0.005)

    reader = threading.Thread(target=trickle)
    reader.start()
    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        send(pipe[0], b"{}", bytes(50_000_000), deadline_s=began_s + 0.2)
    took_s = time.monotonic() - began_s
    pipe[0].shutdown(socket.SHUT_WR)
    reader.join()
    assert took_s < 30


def test_deadline_holds_while_a_frame_comes_a_little_at_a_time(pipe: tuple[socket.socket, socket.socket]) -> None:
    pipe[0].sendall(struct.pack("!II", 2, 1_000_000) + b"{}")
    is_over = threading.Event()

    def trickle() -> None:
        while not is_over.wait(0.005):
            pipe[0].sendall(b"x")

    sender = threading.Thread(target=trickle)
    sender.start()
    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        receive(pipe[1], deadline_s=began_s + 0.2)
    took_s = time.monotonic() - began_s
    is_over.set()
    sender.join()
    assert took_s < 30


def test_a_deadline_is_not_that_of_the_next_frame(pipe: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(TimeoutError):
        receive(pipe[1], deadline_s=time.monotonic() + 0.01)
    later = threading.Timer(0.2, send, (pipe[0], b"{}"))
    later.start()
    assert receive(pipe[1]) == (b"{}", b"")
    later.join()


def test_short_frame_is_sent_without_waiting(pipe: tuple[socket.socket, socket.socket]) -> None:
    assert send_at_once(pipe[0], b"{}")
    assert receive(pipe[1]) == (b"{}", b"")
    pipe[0].setblocking(False)
    while True:
        try:
            pipe[0].send(bytes(65536))
        except BlockingIOError:
            break
    pipe[0].setblocking(True)
    assert not send_at_once(pipe[0], bytes(4096))


def test_short_frame_to_one_that_has_gone_fails(pipe: tuple[socket.socket, socket.socket]) -> None:
    pipe[1].close()
    with pytest.raises(OSError, match="pipe"):
        send_at_once(pipe[0], b"{}")
