"""Order of samples: random, the same for the same seed and epoch, with samples of similar length together.

A batch takes as long as its longest row. Within windows of many batches samples are sorted by length and cut into
batches, and batches are then shuffled, so that length and progress are unrelated. Every process
computes the whole order itself, so none of it has to be stored for resuming.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

WINDOW_BATCHES = 50
"""Batches that are sorted together: enough for rows of like length, few enough to stay mixed."""


class LengthGroupedOrder(Sampler[int]):
    """Numbers of all samples, epoch by epoch."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        """Set what the order depends on.

        Args:
            lengths: of each sample, in tokens.
            batch_size: samples of a step, over all devices.
            seed: shuffles.
        """
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order comes next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        shuffled = torch.randperm(len(self._lengths), generator=generator).tolist()
        window = self._batch_size * WINDOW_BATCHES
        batches: list[list[int]] = []
        for start in range(0, len(shuffled), window):
            part = sorted(shuffled[start : start + window], key=lambda index: self._lengths[index])
            batches += [part[place : place + self._batch_size] for place in range(0, len(part), self._batch_size)]
        whole = [batch for batch in batches if len(batch) == self._batch_size]
        rest = [batch for batch in batches if len(batch) < self._batch_size]
        order = torch.randperm(len(whole), generator=generator).tolist()
        # A partial batch must come last, or all later ones would be shifted.
        for batch in [*(whole[place] for place in order), *rest]:
            yield from batch
