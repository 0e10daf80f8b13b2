"""Keys and values of the running sequences: one row each, without holes, in two tensors that grow in steps.

Owns the rows' lengths. Knows the shape of a model's keys, but not why a sequence joins or leaves. Used by the
engine's single thread.

Rows in use are always 0 to `num_rows - 1`, so that a decode step reads one strided view and gathers nothing: when a
row leaves, the last one moves into its place.

Shape letters: B rows, N heads, L new tokens, S tokens attended to, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

CLEARED_AHEAD = 32
"""Positions cleared at once beyond those in use. It hardly matters: a step of eight rows takes 9.7, 9.9 and 9.1 ms with
8, 32 and 128 of them (2 EPYC cores, torch 2.13, `benchmarks/engine_settings.py cache`)."""


class SlotCache:
    """Storage and lengths of all rows.

    Invariant: what a step reads of a row is finite, beyond its length as well, so that masked positions add exactly
    nothing; a row that held NaN or infinity leaves none behind.

    Args:
        num_layers: Decoder layers.
        num_heads: Key and value heads of a layer.
        head_dim: Width of one head.
        max_rows: Rows at most.
        max_tokens: Tokens of one row at most.
        growth_tokens: Capacity is a multiple of this; small steps waste little, large ones copy seldom. A step of eight
            rows takes 9.7, 9.9 and 10.1 ms with 64, 256 and 1024 (as `CLEARED_AHEAD`).
        device: Where the tensors live.
        dtype: Their type.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        max_rows: int,
        max_tokens: int,
        growth_tokens: int = 256,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.max_rows = max_rows
        self.max_tokens = max_tokens
        self._growth_tokens = growth_tokens
        self._lengths: list[int] = []
        self._finite: list[int] = []
        """For each row in use, how many of its positions have been written since it was opened."""
        shape = (2, num_layers, max_rows, num_heads, 0, head_dim)
        self._storage = torch.empty(shape, device=device, dtype=dtype)

    @property
    def num_rows(self) -> int:
        """Rows in use."""
        return len(self._lengths)

    @property
    def capacity(self) -> int:
        """Tokens that each row holds before the storage must grow."""
        return self._storage.shape[4]

    def length(self, row: int) -> int:
        """Tokens that a row holds."""
        return self._lengths[row]

    def open_rows(self, count: int, length: int) -> PrefillWindow:
        """Add rows of equal length at the end, to be filled through the window.

        Args:
            count: Number of rows.
            length: Tokens of each.

        Returns:
            The model's cache for the pass that fills them.

        Raises:
            ValueError: More rows or tokens than the cache was made for; scheduling should have known.
        """
        first = self.num_rows
        if first + count > self.max_rows:
            raise ValueError(f"{first + count} rows do not fit into {self.max_rows}")
        self._reserve(length + 1)
        self._lengths += [length] * count
        self._finite += [length] * count
        return PrefillWindow(self._storage[:, :, first : first + count, :, :length])

    def close_row(self, row: int) -> None:
        """Drop a row; the last one moves into its place."""
        last = self.num_rows - 1
        if row != last:
            written = self._finite[last]
            self._storage[:, :, row, :, :written] = self._storage[:, :, last, :, :written]
            self._lengths[row], self._finite[row] = self._lengths[last], written
        self._lengths.pop()
        self._finite.pop()

    def truncate(self, row: int, length: int) -> None:
        """Forget a row's newest tokens."""
        assert 0 < length <= self._lengths[row]
        self._lengths[row] = length

    def open_step(self) -> DecodeWindow:
        """Make room for one token in every row.

        Returns:
            The model's cache for the pass that computes it; lengths already count the token.

        Raises:
            ValueError: A row is full.
        """
        positions = list(self._lengths)
        used = max(positions) + 1
        self._reserve(used)
        self._clear_ahead(used)
        self._lengths = [length + 1 for length in positions]
        return DecodeWindow(self._storage, positions, used)

    def _clear_ahead(self, used: int) -> None:
        for row, written in enumerate(self._finite):
            if written < used:
                # Some positions more, so that most steps clear nothing.
                end = min(used + CLEARED_AHEAD, self.capacity)
                self._storage[:, :, row, :, written:end] = 0
                self._finite[row] = end

    def _reserve(self, tokens: int) -> None:
        if tokens > self.max_tokens:
            raise ValueError(f"{tokens} tokens do not fit into rows of {self.max_tokens}")
        if tokens <= self.capacity:
            return
        capacity = min(self.max_tokens, -(-tokens // self._growth_tokens) * self._growth_tokens)
        old = self._storage
        kinds, layers, rows, heads, old_capacity, width = old.shape
        # Rows not in use are never written, and untouched pages of a large block cost no memory on a CPU.
        self._storage = old.new_empty((kinds, layers, rows, heads, capacity, width))
        self._storage[:, :, : self.num_rows, :, :old_capacity] = old[:, :, : self.num_rows]


class _Window:
    """What transformers' decoders call on a cache besides `update`; our own only call `update`."""

    is_compileable = False

    def __init__(self, num_seen: int, num_visible: int) -> None:
        self._num_seen = num_seen
        self._num_visible = num_visible

    def get_seq_length(self, _layer: int = 0) -> int:
        """Tokens before this pass."""
        return self._num_seen

    def get_query_offset(self, _layer: int = 0) -> int:
        """Position of this pass's first token."""
        return self._num_seen

    def get_mask_sizes(self, _num_new: int, _layer: int) -> tuple[int, int]:
        """Tokens that a query may see, and the first one's position."""
        return self._num_visible, 0


class PrefillWindow(_Window):
    """Takes the keys and values of whole prompts; the new tokens see one another alone."""

    def __init__(self, storage: Tensor) -> None:
        super().__init__(0, storage.shape[4])
        self._keys, self._values = storage

    def update(self, keys_BNLD: Tensor, values_BNLD: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store a layer's tensors and return them."""
        self._keys[layer].copy_(keys_BNLD)
        self._values[layer].copy_(values_BNLD)
        return keys_BNLD, values_BNLD


class DecodeWindow(_Window):
    """Takes one token's keys and values for every row, and shows the model each row's own past.

    Args:
        storage: The cache's tensor, `[2, layers, rows, N, capacity, D]`.
        positions: Tokens of each row before this one.
        used: Tokens of the longest row, this one included.

    Attributes:
        position_ids_B1: Position of each row's token, int64.
        mask_B11S: 0 where a row may look and minus infinity beyond its length; None when all lengths are equal.
    """

    def __init__(self, storage: Tensor, positions: list[int], used: int) -> None:
        super().__init__(used - 1, used)
        rows, (heads, capacity) = len(positions), storage.shape[3:5]
        device = storage.device
        self._flat = storage.flatten(2, 4)
        self._read = storage[:, :, :rows, :, :used]
        self._keys, self._values = (kind.unbind(0) for kind in self._read.unbind(0))
        self.position_ids_B1 = torch.tensor(positions, device=device).unsqueeze(1)
        heads_BN = torch.arange(rows * heads, device=device).view(rows, heads)
        self._index = (heads_BN * capacity + self.position_ids_B1).flatten()
        self.mask_B11S: Tensor | None = None
        if min(positions) + 1 < used:
            ahead = torch.arange(used, device=device) > self.position_ids_B1
            mask = torch.zeros((rows, used), device=device, dtype=storage.dtype)
            self.mask_B11S = mask.masked_fill_(ahead, float("-inf"))[:, None, None]

    def update(self, keys_BN1D: Tensor, values_BN1D: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Store a layer's token and return all that its rows may hold, `[B, N, S, D]`."""
        self._flat[0, layer].index_copy_(0, self._index, keys_BN1D.flatten(0, 2))
        self._flat[1, layer].index_copy_(0, self._index, values_BN1D.flatten(0, 2))
        return self._keys[layer], self._values[layer]

    def update_joined(self, pair_B2ND: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """The same for adjacent keys and values, in one operation."""
        pair_2RD = pair_B2ND.transpose(0, 1).flatten(1, 2)
        self._flat[:, layer].index_copy_(1, self._index, pair_2RD)
        return self._keys[layer], self._values[layer]
