"""Adapters' low-rank sums in plain torch, with few operations, for decoding and prefill on a CPU.

Owns how rows are grouped by adapter and how their sums are added. Knows the matrices of one slot, but neither the bank
nor modules. A small model's step is limited by the number of operations, and slots have room for the largest allowed
rank. So rows are grouped by slot once a step, not once a projection, and unused ranks are neither read nor multiplied.
Nano on two cores of an EPYC, rank 16 in slots of 64: a row with an adapter takes 2.3 ms a token instead of 5.0, and 1.7
without an adapter (benchmarks/LOG.md).

Shape letters: T rows, H inputs, O outputs, P parts of a group, R an adapter's rank, W outputs of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SlotRows:
    """The rows of a batch that use one adapter."""

    slot: int
    rows: slice | Tensor
    """A slice if they are adjacent, which needs no copy; otherwise int64 indices."""


@dataclass(frozen=True, slots=True)
class SlotMatrices:
    """One adapter's matrices for a group of projections, or a part of one, in one layer."""

    down_HQ: Tensor
    """All parts side by side, Q = P * R; a transposed view, so that `x @ down` needs no copy."""
    ups_RW: tuple[Tensor, ...]
    """One per part, scaling included; transposed views."""

    def part(self, index: int) -> SlotMatrices:
        """Views of one projection's matrices."""
        rank = len(self.ups_RW[index])
        return SlotMatrices(self.down_HQ[:, index * rank : (index + 1) * rank], (self.ups_RW[index],))

    def add(self, x_TH: Tensor, out_TO: Tensor, rows: slice | Tensor) -> None:
        """Add the low-rank sums of some rows to the base's output, in place.

        Args:
            x_TH: Input of the base's projections.
            out_TO: Their output, parts side by side; other rows are not changed.
            rows: Rows that use this adapter.
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
        slots: Slot of each row; below 0: no adapter.
        device: Of the tensors that will be indexed.

    Returns:
        One entry per slot, in the order in which the slots first occur.
    """
    found: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot >= 0:
            found.setdefault(slot, []).append(row)
    return tuple(SlotRows(slot, _selection(rows, device)) for slot, rows in found.items())


def compact(A_QH: Tensor, B_OR: Tensor, parts: int, rank: int, max_rank: int) -> SlotMatrices | None:
    """One slot's matrices of a group, without unused ranks.

    Args:
        A_QH: As in the bank: `max_rank` rows for each part.
        B_OR: As in the bank, for a group of one block: part after part.
        parts: P, projections of the group.
        rank: R, at most `max_rank`.
        max_rank: Rank that the bank's slots have room for.

    Returns:
        Copies, or views if the rank fills the slot; None if the adapter does not change the group.
    """
    if not B_OR.any():
        return None
    down_QH = A_QH.view(parts, max_rank, -1)[:, :rank].flatten(0, 1).contiguous()
    ups_RW = tuple(up_WR[:, :rank].contiguous().t() for up_WR in B_OR.chunk(parts))
    return SlotMatrices(down_QH.t(), ups_RW)


def _selection(rows: list[int], device: torch.device | str) -> slice | Tensor:
    first, last = rows[0], rows[-1]
    return slice(first, last + 1) if last - first + 1 == len(rows) else torch.tensor(rows, device=device)
