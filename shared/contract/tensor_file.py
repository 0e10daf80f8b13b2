"""Untrusted safetensors files: the header is parsed here under limits, the values are checked in chunks.

Knows the format, but nothing of LoRA. Reads through a file object, never through a memory map. Layout of the format:
the header's length in eight bytes, a JSON header, then the tensors' bytes without gaps.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from shared.contract.manifest import parse_object
from shared.contract.refusals import AdapterRefusedError, Reason

MAX_HEADER_BYTES = 1024 * 1024
MAX_DIMENSIONS = 8
MAX_SIDE = 2**31
METADATA_KEY = "__metadata__"
CHUNK_BYTES = 4 * 1024 * 1024
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class _FloatBits:
    """Bit masks of a floating-point type."""

    unsigned: np.dtype[Any]
    exponent: int
    """Exponent bits, which are all set in NaN and infinity only."""
    magnitude: int
    """All bits except the sign."""


_FLOATS = {
    "F32": _FloatBits(np.dtype("<u4"), 0x7F800000, 0x7FFFFFFF),
    "F16": _FloatBits(np.dtype("<u2"), 0x7C00, 0x7FFF),
    "BF16": _FloatBits(np.dtype("<u2"), 0x7F80, 0x7FFF),
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Type, shape and position of a tensor in a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset of the first byte, from the beginning of the file."""
    size_bytes: int


def read_header(file: BinaryIO, max_tensors: int, max_header_bytes: int = MAX_HEADER_BYTES) -> list[TensorEntry]:
    """Read and check a file's header.

    Args:
        file: Open for reading, and private to this process, since its size is taken only once.
        max_tensors: A file with more tensors is refused.
        max_header_bytes: A longer header is refused.

    Returns:
        Tensors in the order of their bytes, which exactly fill the rest of the file.

    Raises:
        AdapterRefusedError: `header_too_large`, `header_invalid`, `too_many_tensors`, `wrong_dtype`, `wrong_shape` or
            `offsets_invalid`.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    begin = _LENGTH_BYTES + length
    if length > max_header_bytes or begin > size:
        raise AdapterRefusedError(Reason.HEADER_TOO_LARGE, f"{length} bytes in a file of {size}")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise AdapterRefusedError(Reason.HEADER_INVALID, "it does not begin with a brace")
    values = parse_object(text, Reason.HEADER_INVALID)
    metadata = values.pop(METADATA_KEY, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise AdapterRefusedError(Reason.HEADER_INVALID, f"{METADATA_KEY} holds more than texts")
    if len(values) > max_tensors:
        raise AdapterRefusedError(Reason.TOO_MANY_TENSORS, f"{len(values)}, the limit is {max_tensors}")
    entries = sorted((_entry(name, value, begin) for name, value in values.items()), key=lambda entry: entry.start)
    place = begin
    for entry in entries:
        if entry.start != place:
            raise AdapterRefusedError(Reason.OFFSETS_INVALID, f"{_shown(entry.name)} does not follow the one before")
        place += entry.size_bytes
    if place != size:
        raise AdapterRefusedError(Reason.OFFSETS_INVALID, f"tensors end at byte {place} of {size}")
    return entries


def is_all_zero(file: BinaryIO, entry: TensorEntry) -> bool:
    """Check a tensor's values.

    Args:
        file: The file that the entry was read from.
        entry: As `read_header` returns it.

    Returns:
        Whether all values are zero.

    Raises:
        AdapterRefusedError: A value is NaN or infinite (`not_finite`), or the file ends early (`offsets_invalid`).
    """
    bits = _FLOATS[entry.dtype]
    file.seek(entry.start)
    left, zero = entry.size_bytes, True
    while left:
        data = file.read(min(left, CHUNK_BYTES))
        if not data:
            raise AdapterRefusedError(Reason.OFFSETS_INVALID, f"{_shown(entry.name)} ends early")
        left -= len(data)
        values: npt.NDArray[Any] = np.frombuffer(data, bits.unsigned)
        if ((values & bits.exponent) == bits.exponent).any():
            raise AdapterRefusedError(Reason.NOT_FINITE, f"{_shown(entry.name)} holds NaN or infinity")
        zero = zero and not (values & bits.magnitude).any()
    return zero


def _entry(name: str, value: object, begin: int) -> TensorEntry:
    shown = _shown(name)
    if not isinstance(value, Mapping) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise AdapterRefusedError(Reason.HEADER_INVALID, f"{shown} has other fields than dtype, shape, data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _FLOATS:
        raise AdapterRefusedError(Reason.WRONG_DTYPE, f"{shown} is none of {', '.join(_FLOATS)}")
    if not _are_whole(shape) or len(shape) > MAX_DIMENSIONS or not all(1 <= side < MAX_SIDE for side in shape):
        raise AdapterRefusedError(Reason.WRONG_SHAPE, f"{shown} has no shape that a tensor can have")
    if not _are_whole(offsets) or len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1]:
        raise AdapterRefusedError(Reason.OFFSETS_INVALID, f"{shown} has no pair of offsets")
    size = math.prod(shape) * _FLOATS[dtype].unsigned.itemsize
    if offsets[1] - offsets[0] != size:
        raise AdapterRefusedError(Reason.OFFSETS_INVALID, f"{shown} has other bytes than its shape needs")
    return TensorEntry(name, dtype, tuple(shape), begin + offsets[0], size)


def _are_whole(values: object) -> bool:
    # bool is an int to isinstance.
    return isinstance(values, list) and all(type(value) is int for value in values)


def _shown(name: str) -> str:
    """An untrusted name, shortened and escaped for a message."""
    return ascii(name[:120])
