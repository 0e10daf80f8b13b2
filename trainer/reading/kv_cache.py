"""Keys and values of sequences that grow token by token: transformers' dynamic cache without its copy at every step.

Knows nothing of what is decoded. Sequences of one cache have equal lengths.

Shape letters: B sequences, N heads, L tokens, D head width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

BLOCK_TOKENS = 256
"""Room is added in steps of this size, so that a short answer never pays for the longest allowed one."""


class GrowingLayer(DynamicLayer):
    """One layer's keys and values; what is handed out are views into room that lasts for many tokens."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._key_room: Tensor | None = None
        self._value_room: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append new tokens `[B, N, L, D]`; everything so far."""
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
        # What is left is packed tightly; the next token makes new room.
        self._key_room, self._value_room = self.keys, self.values


def growing_cache() -> Cache:
    """An empty cache for any number of layers."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def _appended(room: Tensor | None, seen: int, new_BNLD: Tensor) -> Tensor:
    """The room with new tokens written behind the first `seen`; a larger one where they do not fit."""
    batch, heads, added, width = new_BNLD.shape
    if room is None or seen + added > room.shape[2]:
        larger = new_BNLD.new_empty(batch, heads, seen + added + BLOCK_TOKENS, width)
        if room is not None:
            larger[:, :, :seen] = room[:, :, :seen]
        room = larger
    room[:, :, seen : seen + added] = new_BNLD
    return room
