"""Resident adapters: the LoRA matrices of all slots, stacked into one pair of tensors per group of projections.

Owns those tensors; `shapes` defines the groups and their sizes. At public dimensions a slot of rank 16 takes 8 MB
without routed experts and 155 MB with them, in bfloat16. Knows neither sequences nor PEFT's names. Used by the engine's
single thread.

Shape letters: S slots, R largest rank, P parts of a group, Q = P * R, H inputs, G blocks, W outputs of a part in a
block, O = G * P * W outputs, T tokens, E experts, I their width, J = 2 * I their gates and ups.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from service.engine.lora.files import ROUTED, AdapterFiles, Pair, find_pairs
from service.engine.lora.low_rank import SlotMatrices, compact
from service.engine.lora.registry import AdapterError
from service.engine.lora.shapes import GroupShape, layer_shapes
from shared.deepseek_ocr.configuration import TextConfig
from shared.deepseek_ocr.registry import V1, kind_of

if TYPE_CHECKING:
    from service.engine.config import EngineLimits
    from shared.deepseek_ocr.protocol import OcrModel


@dataclass(frozen=True, slots=True)
class LowRank:
    """A group's matrices in one layer, for all slots; used by `kernels.lora_add`.

    For routed experts they have a dimension E after S.
    """

    A_SQH: Tensor
    B_SOR: Tensor
    """Scaling included."""
    part_width: int

    def part(self, index: int) -> LowRank:
        """Views of one projection, for a group of one block."""
        rank, width = self.B_SOR.shape[2], self.part_width
        rows = slice(index * rank, (index + 1) * rank)
        return LowRank(self.A_SQH[:, rows], self.B_SOR[:, index * width : (index + 1) * width], width)

    def expert(self, index: int) -> LowRank:
        """Views of one routed expert's matrices."""
        return LowRank(self.A_SQH[:, index], self.B_SOR[:, index], self.part_width)


@dataclass(frozen=True, slots=True)
class ExpertLowRank:
    """Matrices of a layer's routed experts, for all slots; used by `kernels.mixture_lora`. Q = 2 * R."""

    up_A_SEQH: Tensor
    up_B_SEJR: Tensor
    down_A_SERI: Tensor
    down_B_SEHR: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All four, in the order of the fields."""
        return self.up_A_SEQH, self.up_B_SEJR, self.down_A_SERI, self.down_B_SEHR


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """An adapter in the layout of a bank's slot, on the host: finite, B multiplied by the scaling."""

    layers: list[dict[str, LowRank]]
    """For each layer the groups that it changes, without the dimension S; in pinned memory if the bank is on a GPU."""
    rank: int
    """The adapter's own rank, at most the bank's R."""

    @property
    def changes_experts(self) -> bool:
        """Whether it changes routed experts."""
        return any(name in ROUTED.values() for groups in self.layers for name in groups)


class AdapterBank:
    """Slots for adapters of one base model.

    Invariant: unused ranks, projections that an adapter does not change, and slots never loaded are zeros; all numbers
    are finite.

    Args:
        text: Dimensions of the base model's decoder.
        num_slots: S, at least 1.
        max_rank: R; adapters of a higher rank are refused.
        device: Of the matrices, the same as the model's.
        dtype: Of the matrices, the same as the model's.
        splits_shared: See `layer_shapes`.
        has_experts: Whether adapters may change routed experts.
        prefixes: Of the names of the decoder's layers in adapters.
    """

    def __init__(
        self,
        text: TextConfig,
        *,
        num_slots: int,
        max_rank: int,
        device: torch.device | str,
        dtype: torch.dtype,
        splits_shared: bool = False,
        has_experts: bool = False,
        prefixes: Collection[str] = (V1.decoder,),
    ) -> None:
        self._text = text
        self._prefixes = prefixes
        self._dtype = dtype
        self.has_experts = has_experts
        self.expert_slots: set[int] = set()
        """Slots whose adapters change routed experts."""
        self.num_slots = num_slots
        self.max_rank = max_rank
        self._shapes = [
            layer_shapes(text, layer, splits_shared=splits_shared, has_experts=has_experts)
            for layer in range(text.num_hidden_layers)
        ]
        self.layers: list[dict[str, LowRank]] = [
            {name: _zeros(shape, (num_slots,), max_rank, dtype, device) for name, shape in shapes.items()}
            for shapes in self._shapes
        ]
        self._is_cuda = torch.device(device).type == "cuda"
        self._ranks = [0] * num_slots
        self._compact: dict[int, list[dict[str, SlotMatrices]]] = {}

    @torch.inference_mode()
    def pack(self, files: AdapterFiles) -> PackedAdapter:
        """Check an adapter and convert its matrices to the bank's layout. Neither reads nor changes the slots.

        This is most of the work of loading. Any thread may do it, so that no decoding step has to wait.

        Args:
            files: As `read_adapter` returns them.

        Returns:
            The argument of `load`.

        Raises:
            AdapterError: `rank_too_large`, `not_finite`, or a reason of `find_pairs`.
        """
        rank, scaling = files.config.rank, files.config.scaling
        if rank > self.max_rank:
            raise AdapterError("rank_too_large", f"rank {rank}, the slots are for at most {self.max_rank}")
        packed: list[dict[str, LowRank]] = [{} for _ in self._shapes]
        for pair in find_pairs(
            files.tensors, rank, self._text, prefixes=self._prefixes, takes_experts=self.has_experts
        ):
            # In the model's type: a value that is finite in float32 may not be finite in float16.
            a_ERI, b_EOR = pair.a_ERI.to(self._dtype), (pair.b_EOR.float() * scaling).to(self._dtype)
            if not _is_finite(a_ERI) or not _is_finite(b_EOR):
                raise AdapterError("not_finite", f"layer {pair.layer}, {pair.group}")
            shape, groups = self._shapes[pair.layer][pair.group], packed[pair.layer]
            if pair.group not in groups:
                groups[pair.group] = _zeros(shape, (), self.max_rank, self._dtype, "cpu", pinned=self._is_cuda)
            _place(replace(pair, a_ERI=a_ERI, b_EOR=b_EOR), shape, groups[pair.group], rank)
        return PackedAdapter(packed, rank)

    @torch.inference_mode()
    def load(self, slot: int, adapter: PackedAdapter) -> None:
        """Put an adapter into a slot that no row uses. The copies are enqueued, so rows started afterwards use it.

        Args:
            slot: From 0 to S - 1; its previous content is replaced completely.
            adapter: Packed by this bank.
        """
        self.expert_slots.discard(slot)
        self._compact.pop(slot, None)
        self._ranks[slot] = adapter.rank
        if adapter.changes_experts:
            self.expert_slots.add(slot)
        for packed, resident in zip(adapter.layers, self.layers, strict=True):
            for name, group in resident.items():
                if name in packed:
                    # Torch's pinned allocator does not reuse this memory before the copies are done.
                    group.A_SQH[slot].copy_(packed[name].A_SQH, non_blocking=True)
                    group.B_SOR[slot].copy_(packed[name].B_SOR, non_blocking=True)
                else:
                    group.A_SQH[slot].zero_()
                    group.B_SOR[slot].zero_()

    def compact(self, slot: int) -> list[dict[str, SlotMatrices]]:
        """A slot's matrices by layer and group, without unused ranks and without routed experts.

        For sums in plain torch; made on first use. Not for a bank with `splits_shared`.
        """
        found = self._compact.get(slot)
        if found is None:
            found = self._compact[slot] = [self._compact_layer(slot, layer) for layer in range(len(self.layers))]
        return found

    def experts(self, layer: int) -> ExpertLowRank | None:
        """Matrices of a layer's routed experts; None if the layer has none, or the bank has none for them."""
        groups = [self.layers[layer].get(name) for name in ROUTED.values()]
        up, down = groups
        return ExpertLowRank(up.A_SQH, up.B_SOR, down.A_SQH, down.B_SOR) if up and down else None

    def _compact_layer(self, slot: int, layer: int) -> dict[str, SlotMatrices]:
        found: dict[str, SlotMatrices] = {}
        for name, shape in self._shapes[layer].items():
            if shape.experts:
                continue
            group = self.layers[layer][name]
            matrices = compact(group.A_SQH[slot], group.B_SOR[slot], shape.parts, self._ranks[slot], self.max_rank)
            if matrices is not None:
                found[name] = matrices
        return found


def make_bank(model: OcrModel, limits: EngineLimits, *, splits_shared: bool = False) -> AdapterBank | None:
    """The bank for an engine's limits, on the model's device; None if there are no slots."""
    if not limits.adapter_slots:
        return None
    kind = kind_of(model)
    return AdapterBank(
        model.decoder.config,
        num_slots=limits.adapter_slots,
        max_rank=limits.adapter_max_rank,
        device=model.lm_head.weight.device,
        dtype=model.lm_head.weight.dtype,
        splits_shared=splits_shared,
        has_experts=limits.adapter_experts,
        prefixes=(kind.decoder, *kind.decoder_aliases),
    )


def pack_adapter(bank: AdapterBank | None, files: AdapterFiles) -> PackedAdapter:
    """As `AdapterBank.pack`, for an engine that may have no bank."""
    if bank is None:
        raise AdapterError("adapters_off", "the engine has no slots for adapters")
    return bank.pack(files)


def _place(pair: Pair, shape: GroupShape, group: LowRank, rank: int) -> None:
    """Write a projection's matrices into its group's; ranks beyond the adapter's stay zeros."""
    max_rank, experts = group.B_SOR.shape[-1], max(shape.experts, 1)
    some = slice(pair.first, pair.last + 1)
    group.A_SQH.view(experts, shape.parts, max_rank, -1)[some, pair.part, :rank] = pair.a_ERI
    target = group.B_SOR.view(experts, shape.blocks, shape.parts, shape.part_width, -1)
    target[some, :, pair.part, :, :rank] = pair.b_EOR.unflatten(1, (shape.blocks, shape.part_width))


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite, tested on the minimum and maximum, which are NaN if any number is.

    For 246 000 numbers in bfloat16 a core (EPYC) takes 0.05 ms this way, and 0.7 ms with `isfinite` of each.
    """
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def _zeros(
    shape: GroupShape,
    slots: tuple[int, ...],
    max_rank: int,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    pinned: bool = False,
) -> LowRank:
    experts = (shape.experts,) if shape.experts else ()

    def zeros(*sizes: int) -> Tensor:
        return torch.zeros((*slots, *experts, *sizes), dtype=dtype, device=device, pin_memory=pinned)

    return LowRank(zeros(shape.parts * max_rank, shape.inputs), zeros(shape.outputs, max_rank), shape.part_width)
