"""Adapters' low-rank sums in plain torch, few operations for each: what decoding and prefill on a CPU add to the base.

Owns which rows belong together and how their sums are added. Knows matrices of one slot, not the bank that holds them
all, nor what a module is. A step of a small model is bound by the number of operations, and slots are made for the
largest rank that is allowed: so rows are sorted by slot once a step, in the place of once a projection, and what an
adapter's rank leaves empty is neither read nor multiplied. Nano on two cores of an EPYC, rank 16 in slots of 64: one
row with an adapter took 5.0 ms a token before and takes 2.3 now, 1.7 without adapter (benchmarks/LOG.md).

Shape letters: T rows, H inputs, O outputs, P parts of a group, R an adapter's rank, W outputs of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SlotRows:
    """Rows of one adapter."""

    slot: int
    rows: slice | Tensor
    """A slice where they stand together, which needs no copy; else int64 indices."""


@dataclass(frozen=True, slots=True)
class SlotMatrices:
    """One adapter's matrices of a group of projections, or of some of them, in one layer."""

    down_HQ: Tensor
    """Of all parts side by side, Q = P * R; seen transposed, so that `x @ down` needs no copy."""
    ups_RW: tuple[Tensor, ...]
    """Of each part, the scaling multiplied in; seen transposed."""

    def part(self, index: int) -> SlotMatrices:
        """One projection's; views."""
        rank = len(self.ups_RW[index])
        return SlotMatrices(self.down_HQ[:, index * rank : (index + 1) * rank], (self.ups_RW[index],))

    def add(self, x_TH: Tensor, out_TO: Tensor, rows: slice | Tensor) -> None:
        """Add the sums of some rows, in place.

        Args:
            x_TH: What the base's projections took.
            out_TO: What they gave, part beside part; the other rows are not touched.
            rows: Those with this adapter.
        """
        low_TQ = x_TH[rows] @ self.down_HQ
        taken_TO = out_TO[rows]
        rank, width = self.ups_RW[0].shape
        for part, up_RW in enumerate(self.ups_RW):
            low_TR = low_TQ[:, part * rank : (part + 1) * rank]
            taken_TO[:, part * width : (part + 1) * width].addmm_(low_TR, up_RW)
        if isinstance(rows, Tensor):
            out_TO.index_copy_(0, rows, taken_TO)


def rows_by_slot(slots: Sequence[int], device: torch.device | str = "cpu") -> tuple[SlotRows, ...]:
    """Rows with adapters, slot by slot.

    Args:
        slots: Each row's; below 0: none.
        device: Where the rows are.

    Returns:
        In the order in which slots first occur.
    """
    found: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot >= 0:
            found.setdefault(slot, []).append(row)
    return tuple(SlotRows(slot, _selection(rows, device)) for slot, rows in found.items())


def compact(A_QH: Tensor, B_OR: Tensor, parts: int, rank: int, max_rank: int) -> SlotMatrices | None:
    """One slot's matrices of a group without what the adapter's rank leaves empty.

    Args:
        A_QH: As a bank holds it, `max_rank` rows for each part.
        B_OR: As a bank holds it, of a group of one block: part after part.
        parts: P.
        rank: The adapter's.
        max_rank: What the slots are made for.

    Returns:
        Copies, or views where the rank fills the slot; None: the adapter leaves the group alone.
    """
    if not B_OR.any():
        return None
    down_QH = A_QH.view(parts, max_rank, -1)[:, :rank].flatten(0, 1).contiguous()
    ups_RW = tuple(up_WR[:, :rank].contiguous().t() for up_WR in B_OR.chunk(parts))
    return SlotMatrices(down_QH.t(), ups_RW)


def _selection(rows: list[int], device: torch.device | str) -> slice | Tensor:
    first, last = rows[0], rows[-1]
    return slice(first, last + 1) if last - first + 1 == len(rows) else torch.tensor(rows, device=device)
