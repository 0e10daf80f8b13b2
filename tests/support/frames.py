"""Frames through a real pair of sockets."""

from __future__ import annotations

import socket

from service import frames
from service.engine.process.codec import Command, decode_command, encode_command


def through_pipe(command: Command) -> Command:
    """Send and receive a command that is small enough for the sockets' buffers."""
    left, right = socket.socketpair()
    with left, right:
        frames.send(left, *encode_command(command))
        return decode_command(*frames.receive(right))
