"""Keys and values in blocks: who holds which, and the tensors they lie in.

Owns the free list, each slot's blocks and the device's table of them. Knows nothing of models beyond the shape of their
keys. The host alone decides; the device is told by enqueued copies. A block that is freed may be taken again at once:
work that was enqueued before for its former holder runs before work of the new one. Used by the engine's single thread.

Shape letters: S slots and one scratch slot, X blocks of a slot, N heads, D head width.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK_TOKENS = 64
"""Half a block a sequence is wasted, 4 % of a page of 800 tokens; a block of one head is 16 KiB in a row. Attention
does not care: 256 rows of 530 tokens take 166 us, with blocks of 16, 32 and 128 tokens 165 to 167 (H200, 558e320, see
`kernels.launch`)."""


class BlockAllocator:
    """Blocks by number, free or held by one owner.

    Invariant: every block is free or in exactly one owner's list.

    Args:
        num_blocks: How many there are.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        # Last in, first out; any order would do.
        self._free = list(range(num_blocks))
        self._held: dict[int, list[int]] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be taken."""
        return len(self._free)

    def held(self, owner: int) -> list[int]:
        """An owner's blocks, in the order of its tokens; empty for one that holds none."""
        return self._held.get(owner, [])

    def take(self, owner: int, count: int) -> list[int]:
        """Give an owner its blocks, all or none.

        Args:
            owner: One that holds none.
            count: How many.

        Returns:
            The blocks.

        Raises:
            ValueError: There are too few, or the owner holds some already; scheduling should have known.
        """
        if owner in self._held:
            raise ValueError(f"{owner} holds blocks already")
        if not 0 < count <= len(self._free):
            raise ValueError(f"{count} blocks wanted, {len(self._free)} are free")
        taken = self._free[-count:]
        del self._free[-count:]
        self._held[owner] = taken
        return taken

    def give_back(self, owner: int) -> None:
        """Free all that an owner holds."""
        self._free += self._held.pop(owner)

    def check_integrity(self) -> None:
        """Assert the invariant."""
        blocks = sorted([*self._free, *(block for held in self._held.values() for block in held)])
        assert blocks == list(range(self.num_blocks))


class PagedCache:
    """Storage of all layers and the tables that lead to it.

    Invariant: row s of `tables_SX` begins with the blocks that the allocator gave to slot s.

    Args:
        num_layers: Decoder layers.
        num_heads: Key and value heads of a layer.
        head_dim: Width of one head.
        num_slots: Slots that can be open at once.
        num_blocks: Blocks of all slots together.
        max_tokens: Tokens of one slot at most.
        block_tokens: Tokens of a block.
        device: Where the tensors live.
        dtype: Type of keys and values.

    Attributes:
        layers: Keys and values of each layer, `[blocks, N, block_tokens, D]`.
        tables_SX: int32, the blocks of each slot in order; the rest of a row means nothing.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        num_slots: int,
        num_blocks: int,
        max_tokens: int,
        block_tokens: int = BLOCK_TOKENS,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.block_tokens = block_tokens
        self.allocator = BlockAllocator(num_blocks)
        self._width = -(-max_tokens // block_tokens)
        # Never cleared: kernels read no cell past a row's length.
        shape = (num_layers, 2, num_blocks, num_heads, block_tokens, head_dim)
        self._storage = torch.empty(shape, device=device, dtype=dtype)
        self.layers: list[tuple[Tensor, Tensor]] = [(layer[0], layer[1]) for layer in self._storage.unbind(0)]
        self.tables_SX = torch.zeros((num_slots + 1, self._width), dtype=torch.int32, device=device)

    @property
    def num_tokens(self) -> int:
        """Tokens of all slots together."""
        return self.allocator.num_blocks * self.block_tokens

    def open(self, slots: list[int], tokens: list[int]) -> None:
        """Reserve room for sequences, and tell the device.

        Args:
            slots: Slots that hold nothing.
            tokens: Tokens that each may come to hold.

        Raises:
            ValueError: Not enough blocks, or a slot that holds some; scheduling should have known.
        """
        tables_RX = np.zeros((len(slots), self._width), np.int32)
        for row, (slot, count) in enumerate(zip(slots, tokens, strict=True)):
            blocks = self.allocator.take(slot, -(-count // self.block_tokens))
            tables_RX[row, : len(blocks)] = blocks
        device = self.tables_SX.device
        self.tables_SX[to_device(np.array(slots), device)] = to_device(tables_RX, device)

    def close(self, slot: int) -> None:
        """Free a slot's blocks."""
        self.allocator.give_back(slot)

    def cells(self, slot: int, length: int) -> NDArray[np.int64]:
        """Where a slot's first `length` tokens go."""
        positions = np.arange(length)
        blocks = np.array(self.allocator.held(slot))[positions // self.block_tokens]
        return blocks * self.block_tokens + positions % self.block_tokens


def to_device(values: NDArray[np.integer], device: torch.device) -> Tensor:
    """Copy numbers to the device without waiting for it."""
    tensor = torch.from_numpy(values)
    # Torch's allocator of pinned memory does not give a block out again before the copy from it is over.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
