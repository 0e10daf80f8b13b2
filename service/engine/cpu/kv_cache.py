"""Keys and values of the running sequences: one row each, without holes, in two tensors that grow in steps.

Owns the rows' lengths. Knows the shape of a model's keys, but not why a sequence joins or leaves. Used by the
engine's single thread.

Rows in use are always 0 to `num_rows - 1`, so that a decode step reads one strided view and gathers nothing: when a
row leaves, the last one moves into its place.

Token i of a row is in cell i, unless the answer's tokens go round in an `AnswerRing`.

Shape letters: B rows, N heads, L new tokens, S tokens attended to, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.engine.answer_ring import AnswerRing

CLEARED_AHEAD = 32
"""Positions cleared at once beyond those in use. It hardly matters: a step of eight rows takes 9.7, 9.9 and 9.1 ms with
8, 32 and 128 of them (2 EPYC cores, torch 2.13, `benchmarks/engine_settings.py cache`)."""


@dataclass(slots=True)
class _Row:
    """A row in use."""

    prompt: int
    """Tokens of its prompt."""
    length: int
    """Tokens of prompt and answer."""
    finite: int
    """Cells that have been written since it was opened."""
    skipped: int = 0
    """Positions of its prompt that have no token."""

    def next_cell(self, ring: AnswerRing | None) -> int:
        """Where the next token goes."""
        return ring.cell(self.prompt, self.length) if ring else self.length

    def num_cells(self, length: int, ring: AnswerRing | None) -> int:
        """Cells that so many tokens take."""
        return length if ring is None else min(length, self.prompt + ring.cells)


class SlotCache:
    """Storage and lengths of all rows.

    Invariant: what a step reads of a row is finite, beyond its length as well, so that masked positions add exactly
    nothing; a row that held NaN or infinity leaves none behind. Tokens of `open_several` that are taken back may leave
    some, as the decoder that takes its windows reads no cell beyond a token's own.

    Args:
        num_layers: Decoder layers.
        num_heads: Key and value heads of a layer.
        head_dim: Width of one head.
        max_rows: Rows at most.
        max_tokens: Tokens of one row at most.
        ring: How much of an answer is kept; None: all.
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
        ring: AnswerRing | None = None,
        growth_tokens: int = 256,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.max_rows = max_rows
        self.max_tokens = max_tokens
        self._ring = ring
        self._growth_tokens = growth_tokens
        self._rows: list[_Row] = []
        shape = (2, num_layers, max_rows, num_heads, 0, head_dim)
        self._storage = torch.empty(shape, device=device, dtype=dtype)

    @property
    def num_rows(self) -> int:
        """Rows in use."""
        return len(self._rows)

    @property
    def capacity(self) -> int:
        """Cells of each row before the storage must grow."""
        return self._storage.shape[4]

    def length(self, row: int) -> int:
        """Tokens of a row's prompt and answer."""
        return self._rows[row].length

    def open_rows(self, count: int, length: int, skipped: Sequence[int] = ()) -> PrefillWindow:
        """Add rows of equal length at the end, to be filled through the window.

        Args:
            count: Number of rows.
            length: Tokens of each.
            skipped: How many positions of each row's prompt have no token; empty: none.

        Returns:
            The model's cache for the pass that fills them.

        Raises:
            ValueError: More rows or tokens than the cache was made for; scheduling should have known.
        """
        first = self.num_rows
        if first + count > self.max_rows:
            raise ValueError(f"{first + count} rows do not fit into {self.max_rows}")
        self._reserve(length + 1)
        self._rows += [_Row(length, length, length, each) for each in skipped or [0] * count]
        return PrefillWindow(self._storage[:, :, first : first + count, :, :length])

    def close_row(self, row: int) -> None:
        """Drop a row; the last one moves into its place."""
        last = self.num_rows - 1
        if row != last:
            written = self._rows[last].finite
            self._storage[:, :, row, :, :written] = self._storage[:, :, last, :, :written]
            self._rows[row] = self._rows[last]
        self._rows.pop()

    def truncate(self, row: int, length: int) -> None:
        """Forget a row's newest tokens; with a ring at most as many as it has cells outside the window."""
        forgotten = self._rows[row].length - length
        assert length > 0
        assert 0 <= forgotten <= (self._ring.cells - self._ring.window if self._ring else forgotten)
        self._rows[row].length = length

    def open_step(self) -> DecodeWindow:
        """Make room for one token in every row.

        Returns:
            The model's cache for the pass that computes it; lengths already count the token.

        Raises:
            ValueError: A row is full.
        """
        self._check_room([1] * self.num_rows)
        cells = [row.next_cell(self._ring) for row in self._rows]
        used = max(row.num_cells(row.length + 1, self._ring) for row in self._rows)
        self._reserve(used)
        self._clear_ahead(used)
        lengths = [row.length for row in self._rows]
        positions = [row.length + row.skipped for row in self._rows]
        for row in self._rows:
            row.length += 1
        is_hidden_BS = self._hidden_of(self._ring, lengths, used) if self._ring else None
        return DecodeWindow(self._storage, positions, cells, used, is_hidden_BS)

    def open_several(self, counts: Sequence[int]) -> SeveralWindow:
        """Make room for tokens in every row, for a decoder that stores their keys and values itself; without a ring.

        Args:
            counts: How many in each row, at least 1.

        Returns:
            Where they go; lengths already count them, and `truncate` takes back those that are not wanted.

        Raises:
            ValueError: A row has no room for its tokens.
        """
        assert self._ring is None
        self._check_room(counts)
        rows = list(zip(self._rows, counts, strict=True))
        used = max(row.length + count for row, count in rows)
        self._reserve(used)
        self._clear_ahead(used)
        cells = [row.length for row in self._rows]
        positions = [row.length + row.skipped + index for row, count in rows for index in range(count)]
        for row, count in rows:
            row.length += count
        return SeveralWindow(self._storage, positions, cells, counts)

    def _check_room(self, counts: Sequence[int]) -> None:
        longest = max(row.length + count for row, count in zip(self._rows, counts, strict=True))
        if longest > self.max_tokens:
            raise ValueError(f"{longest} tokens do not fit into rows of {self.max_tokens}")

    def _hidden_of(self, ring: AnswerRing, lengths: list[int], used: int) -> Tensor | None:
        """Cells that are too old for a row's token or not filled, `[B, S]`; None if no row has any.

        A cell's age is the number of tokens since the newest that belongs there. Tokens taken back by a rewind lie in
        cells whose age exceeds the window.
        """
        if all(row.length - row.prompt <= ring.window and row.length == used for row in self._rows):
            return None
        device = self._storage.device
        prompts_B1 = torch.tensor([[row.prompt] for row in self._rows], device=device)
        newest_B1 = torch.tensor(lengths, device=device)[:, None] - prompts_B1
        place_BS = torch.arange(used, device=device) - prompts_B1
        age_BS = (newest_B1 - place_BS) % ring.cells
        is_hidden_BS = (age_BS >= ring.window) | (age_BS > newest_B1) | (place_BS >= ring.cells)
        return is_hidden_BS & (place_BS >= 0)

    def _clear_ahead(self, used: int) -> None:
        for index, row in enumerate(self._rows):
            if row.finite < used:
                # Some cells more, so that most steps clear nothing.
                end = min(used + CLEARED_AHEAD, self.capacity)
                self._storage[:, :, index, :, row.finite : end] = 0
                row.finite = end

    def _reserve(self, tokens: int) -> None:
        if tokens > self.max_tokens:
            raise ValueError(f"{tokens} tokens do not fit into rows of {self.max_tokens}")
        if tokens <= self.capacity:
            return
        capacity = min(self.max_tokens, -(-tokens // self._growth_tokens) * self._growth_tokens)
        kinds, layers, rows, heads, old_capacity, width = self._storage.shape
        # Rows not in use are never written, and untouched pages of a large block cost no memory on a CPU.
        grown = self._storage.new_empty((kinds, layers, rows, heads, capacity, width))
        grown[:, :, : self.num_rows, :, :old_capacity] = self._storage[:, :, : self.num_rows]
        self._storage = grown


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


@dataclass(frozen=True, slots=True)
class SeveralWindow:
    """Where a step's tokens go, one of each row or more: those of a row into cells that follow one another."""

    storage: Tensor
    """The cache's, `[2, layers, rows, N, capacity, D]`."""
    positions: Sequence[int]
    """Of each token, row by row."""
    cells: Sequence[int]
    """Of each row's first token."""
    counts: Sequence[int]
    """Tokens of each row."""


class DecodeWindow(_Window):
    """Takes one token's keys and values for every row, and shows the model each row's own past.

    Args:
        storage: The cache's tensor, `[2, layers, rows, N, capacity, D]`.
        positions: Of each row's token.
        cells: Where each row's token goes.
        used: Cells of the row with most, this token's included.
        is_hidden_BS: Cells where a row may not look; None: those after its own token's.

    Attributes:
        position_ids_B1: Position of each row's token, int64.
        mask_B11S: 0 where a row may look and minus infinity elsewhere; None if all rows may look everywhere.
        storage: The cache's tensor.
        cells: Where each row's token goes.
    """

    def __init__(
        self,
        storage: Tensor,
        positions: list[int],
        cells: list[int],
        used: int,
        is_hidden_BS: Tensor | None = None,
    ) -> None:
        super().__init__(used - 1, used)
        self.storage, self.cells = storage, cells
        rows, (heads, capacity) = len(positions), storage.shape[3:5]
        device = storage.device
        self._flat = storage.flatten(2, 4)
        self._read = storage[:, :, :rows, :, :used]
        self._keys, self._values = (kind.unbind(0) for kind in self._read.unbind(0))
        self.position_ids_B1 = torch.tensor(positions, device=device).unsqueeze(1)
        cells_B1 = torch.tensor(cells, device=device).unsqueeze(1)
        heads_BN = torch.arange(rows * heads, device=device).view(rows, heads)
        self._index = (heads_BN * capacity + cells_B1).flatten()
        if is_hidden_BS is None and min(cells) + 1 < used:
            is_hidden_BS = torch.arange(used, device=device) > cells_B1
        self.mask_B11S: Tensor | None = None
        if is_hidden_BS is not None:
            mask_BS = torch.zeros((rows, used), device=device, dtype=storage.dtype)
            self.mask_B11S = mask_BS.masked_fill_(is_hidden_BS, float("-inf"))[:, None, None]

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
