"""What the small file `current` says: on its first line the version in use, then those before it, newest first.

Pure. A writer may leave the later lines out; a rollback then has nowhere to go.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.contract.identity import parse_version

MAX_POINTER_BYTES = 1024
MAX_FORMER_VERSIONS = 32
"""Versions that were in use before and are remembered."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """A version in use, and its predecessors in use."""

    current: int
    former: tuple[int, ...] = ()


def parse_pointer(data: bytes) -> Pointer | None:
    """Read the file's bytes; None where they are anything but such lines."""
    if len(data) > MAX_POINTER_BYTES:
        return None
    numbers = [parse_version(line.strip()) for line in data.decode("ascii", "replace").splitlines()]
    known = [number for number in numbers if number is not None]
    if not known or len(known) != len(numbers):
        return None
    return Pointer(known[0], tuple(known[1:]))


def pointer_bytes(pointer: Pointer) -> bytes:
    """The file's bytes."""
    return "".join(f"{number}\n" for number in (pointer.current, *pointer.former[:MAX_FORMER_VERSIONS])).encode()
