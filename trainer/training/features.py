"""Vision features of a frozen encoder: computed once for each sample, then kept in memory, then on disk.

The encoder is most of a step's arithmetic, and what it says of a page never changes while it is frozen. Samples are
visited once per epoch in another order each time, so nothing is evicted: what fits first stays, the rest is
computed again. One process has one cache.

Shape letters: L vision tokens, D decoder width.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import torch
from torch import Tensor

GIB = 2**30
FREE_DISK_BYTES = 2 * GIB
"""Disk space left free: checkpoints are worth more than features."""


class FeatureCache:
    """Features by sample number."""

    def __init__(self, path: Path, memory_bytes: int, disk_bytes: int) -> None:
        """Make an empty cache.

        Args:
            path: the file for features that do not fit in memory; created when needed.
            memory_bytes: maximum held in memory.
            disk_bytes: maximum size of the file.
        """
        self._path = path
        self._memory_bytes, self._disk_bytes = memory_bytes, disk_bytes
        self._in_memory: dict[int, Tensor] = {}
        self._on_disk: dict[int, tuple[int, tuple[int, ...], torch.dtype]] = {}
        self._memory_used = self._disk_used = 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._in_memory) + len(self._on_disk)

    @property
    def sizes(self) -> dict[str, int]:
        """Samples and bytes held, for the log."""
        return {"samples": len(self), "memory_bytes": self._memory_used, "disk_bytes": self._disk_used}

    def get(self, index: int) -> Tensor | None:
        """Features `[L, D]` of a sample, on the CPU; None where they are not kept."""
        kept = self._in_memory.get(index)
        if kept is not None or index not in self._on_disk or self._file is None:
            return kept
        offset, shape, dtype = self._on_disk[index]
        data = bytearray(os.pread(self._file.fileno(), dtype.itemsize * int(np.prod(shape)), offset))
        return torch.frombuffer(data, dtype=dtype).view(shape)

    def put(self, index: int, features_LD: Tensor) -> None:
        """Store the features of sample `index`, from any device, if there is room."""
        if index in self._in_memory or index in self._on_disk:
            return
        num_bytes = features_LD.numel() * features_LD.element_size()
        if self._memory_used + num_bytes <= self._memory_bytes:
            # A copy: a view would keep the whole batch's tensor alive.
            self._in_memory[index] = features_LD.detach().to("cpu", copy=True).contiguous()
            self._memory_used += num_bytes
        elif self._disk_used + num_bytes <= self._disk_bytes:
            self._write(index, features_LD.detach().cpu().contiguous(), num_bytes)

    def _write(self, index: int, features_LD: Tensor, num_bytes: int) -> None:
        try:
            if self._file is None:
                self._file = self._path.open("w+b", buffering=0)
            if _free_bytes(self._path.parent) < FREE_DISK_BYTES + num_bytes:
                self._disk_bytes = 0
                return
            written = os.pwrite(self._file.fileno(), features_LD.view(torch.uint8).numpy().tobytes(), self._disk_used)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise
            written = 0
        if written < num_bytes:
            self._disk_bytes = 0  # full: later features are recomputed each time
            return
        self._on_disk[index] = (self._disk_used, tuple(features_LD.shape), features_LD.dtype)
        self._disk_used += num_bytes


class CachedEncoder:
    """Features of samples, from the cache or else from the model."""

    def __init__(self, cache: FeatureCache, encode: Callable[[Sequence[int]], list[Tensor]], most_at_once: int) -> None:
        """Put a cache in front of an encoder.

        Args:
            cache: holds computed features.
            encode: the model's encoder: features `[L, D]` for each of several samples.
            most_at_once: samples encoded together. On a CPU 1, so that rounding does not depend on the other samples.
        """
        self._cache, self._encode, self._most = cache, encode, most_at_once

    def features(self, indices: Sequence[int], device: torch.device) -> list[Tensor]:
        """Features `[L, D]` of each sample, on `device`."""
        found = {index: kept for index in indices if (kept := self._cache.get(index)) is not None}
        missing = [index for index in dict.fromkeys(indices) if index not in found]
        for start in range(0, len(missing), self._most):
            chunk = missing[start : start + self._most]
            with torch.no_grad():
                computed = self._encode(chunk)
            for index, features_LD in zip(chunk, computed, strict=True):
                found[index] = features_LD
                self._cache.put(index, features_LD)
        return [found[index].to(device, non_blocking=True) for index in indices]


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
