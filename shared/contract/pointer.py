"""The file `current`: the version in use on its first line, then the versions used before it, newest first.

Pure. A writer may omit the later lines; a rollback then has no version to return to.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.contract.identity import parse_version

MAX_POINTER_BYTES = 1024
MAX_FORMER_VERSIONS = 32
"""Versions used before that are remembered."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """The version in use, and those used before it, newest first."""

    current: int
    former: tuple[int, ...] = ()


def parse_pointer(data: bytes) -> Pointer | None:
    """Parse the file's bytes; None if they are anything other than such lines."""
    if len(data) > MAX_POINTER_BYTES:
        return None
    numbers = [parse_version(line.strip()) for line in data.decode("ascii", "replace").splitlines()]
    known = [number for number in numbers if number is not None]
    if not known or len(known) != len(numbers):
        return None
    return Pointer(known[0], tuple(known[1:]))


def pointer_bytes(pointer: Pointer) -> bytes:
    """The file's content, a version per line in ASCII."""
    return "".join(f"{number}\n" for number in (pointer.current, *pointer.former[:MAX_FORMER_VERSIONS])).encode()
