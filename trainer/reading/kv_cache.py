"""A key-value cache that grows token by token: transformers' dynamic cache without a copy at every step.

All sequences of one cache have the same length.

Shape letters: B sequences, N heads, L tokens, D head width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

BLOCK_TOKENS = 256
"""The cache grows in steps of this size, so that a short answer does not need memory for the longest one."""


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, views of buffers with room for further tokens."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._key_room: Tensor | None = None
        self._value_room: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append new tokens `[B, N, L, D]`; return those of all tokens so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        seen = self.get_seq_length()
        self._key_room = _appended(self._key_room, seen, key_states)
        self._value_room = _appended(self._value_room, seen, value_states)
        stop = seen + key_states.shape[2]
        self.keys, self.values = self._key_room[:, :, :stop], self._value_room[:, :, :stop]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these sequences, in this order."""
        super().batch_select_indices(indices)
        # The remaining rows have no free room; the next token makes a new buffer.
        self._key_room, self._value_room = self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence, to answer one prompt several times."""
        super().batch_repeat_interleave(repeats)
        self._key_room, self._value_room = self.keys, self.values


def growing_cache() -> Cache:
    """An empty cache for any number of layers."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def _appended(room: Tensor | None, seen: int, new_BNLD: Tensor) -> Tensor:
    """The buffer with new tokens after the first `seen`; a larger one if they do not fit."""
    batch, heads, added, width = new_BNLD.shape
    if room is None or seen + added > room.shape[2]:
        larger = new_BNLD.new_empty(batch, heads, seen + added + BLOCK_TOKENS, width)
        if room is not None:
            larger[:, :, :seen] = room[:, :, :seen]
        room = larger
    room[:, :, seen : seen + added] = new_BNLD
    return room
