"""Order of samples: random, the same for the same seed and epoch, with samples of similar length together.

A batch takes as long as its longest row. Within windows of many batches samples are sorted by length and cut into
batches, and batches are then shuffled, so that length and progress are unrelated. Every process
computes the whole order itself, so none of it has to be stored for resuming.

Each process keeps the vision features of the samples that it has read. So a batch is shared out in such a way that most
samples meet the same process in every epoch; which samples make up a batch does not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

WINDOW_BATCHES = 50
"""Batches that are sorted together: enough for rows of like length, few enough to stay mixed."""


class LengthGroupedOrder(Sampler[int]):
    """Numbers of all samples, epoch by epoch."""

    def __init__(self, lengths: Sequence[int], seed: int, step_size: int, num_steps: int = 1, world: int = 1) -> None:
        """Set what the order depends on.

        Args:
            lengths: of each sample, in tokens.
            seed: shuffles.
            step_size: samples of one process's forward and backward pass.
            num_steps: passes of a process before an update.
            world: processes, which take steps in turn.
        """
        self._lengths, self._seed = lengths, seed
        self._step_size, self._num_steps, self._world = step_size, num_steps, world
        self._batch_size = step_size * num_steps * world
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
        for batch in [*(self._share_out(whole[place]) for place in order), *rest]:
            yield from batch

    def _share_out(self, batch: Sequence[int]) -> list[int]:
        """A whole batch in the order in which processes take its samples, as many as possible at home."""
        by_home = sorted(batch, key=lambda index: index % self._world)
        size, share = self._step_size, self._step_size * self._num_steps
        starts = (home * share + step * size for step in range(self._num_steps) for home in range(self._world))
        return [index for start in starts for index in by_home[start : start + size]]
