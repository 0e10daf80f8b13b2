"""The base with adapters in one forward pass: the products that a decoder's layers call if rows have adapters.

Owns the order (base product, then low-rank sum) and the level of a pass. The base computes the shared experts with the
routed ones; here they are a separate MLP, because an adapter changes the input of their activation. Used by `decoder`,
`prefill` and `runner`.

Shape letters: T tokens, H inputs, O outputs, J gates and ups, W what they make.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from torch import Tensor

from service.engine.kernels.int8_rows import Weight
from service.engine.lora.bank import AdapterBank


class LoraLevel(IntEnum):
    """What the adapters of a pass's rows change; each level includes those before it."""

    NOTHING = 0
    ADAPTERS = 1
    EXPERTS = 2
    """One of them changes routed experts."""

    @classmethod
    def levels(cls, bank: AdapterBank | None) -> list[LoraLevel]:
        """All levels that a pass can have with these adapters."""
        return list(cls)[: 1 if bank is None else 3 if bank.has_experts else 2]

    @classmethod
    def of(cls, bank: AdapterBank | None, adapters: Iterable[int]) -> LoraLevel:
        """The level of a pass whose rows have these adapters, -1: none."""
        used = {adapter for adapter in adapters if adapter >= 0}
        if not used or bank is None:
            return cls.NOTHING
        return cls.ADAPTERS if used.isdisjoint(bank.expert_slots) else cls.EXPERTS


@dataclass(frozen=True, slots=True)
class SharedMlp:
    """The MLP that every token passes: the dense one, or the shared experts joined."""

    gate_up_JH: Weight
    """Gates and ups, block by block."""
    down_HW: Weight
    num_blocks: int


@dataclass(frozen=True, slots=True)
class LoraLayers:
    """The layers' products for a pass in which tokens have adapters."""

    kernels: Any
    bank: AdapterBank
    slots_T: Tensor
    """int32; -1: none."""
    has_experts: bool
    """Whether any of them changes routed experts."""

    def of(self, rows: Tensor) -> LoraLayers:
        """The same for some of the tokens."""
        return replace(self, slots_T=self.slots_T[rows])

    def linear(self, layer: int, group: str, x_TH: Tensor, weight_OH: Weight) -> Tensor:
        """The base's product and the adapters' sum."""
        out_TO: Tensor = self.kernels.linear(x_TH, weight_OH)
        self._add(layer, group, x_TH, out_TO)
        return out_TO

    def linear_add(self, layer: int, group: str, x_TH: Tensor, weight_OH: Weight, residual_TO: Tensor) -> None:
        """Both, added to the residual in place."""
        self.kernels.linear_add(x_TH, weight_OH, residual_TO)
        self._add(layer, group, x_TH, residual_TO)

    def mlp_add(self, layer: int, mlp: SharedMlp, x_TH: Tensor, residual_TH: Tensor) -> None:
        """An MLP with its adapters, added to the residual in place."""
        joined_TJ = self.linear(layer, "gate_up", x_TH, mlp.gate_up_JH)
        self.linear_add(layer, "down", self.kernels.gated(joined_TJ, mlp.num_blocks), mlp.down_HW, residual_TH)

    def mixture(
        self, layer: int, x_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_EJH: Weight, down_EHW: Weight
    ) -> Tensor:
        """The routed experts with their adapters."""
        low = self.bank.experts(layer) if self.has_experts else None
        arguments = x_TH, weights_TK, experts_TK, gate_up_EJH, down_EHW
        out_TH: Tensor = (
            self.kernels.mixture_lora(*arguments, low, self.slots_T) if low else self.kernels.mixture(*arguments)
        )
        return out_TH

    def mixture_add(
        self,
        layer: int,
        x_TH: Tensor,
        weights_TK: Tensor,
        experts_TK: Tensor,
        gate_up_EJH: Weight,
        down_EHW: Weight,
        residual_TH: Tensor,
    ) -> None:
        """The same, added to the residual in place."""
        low = self.bank.experts(layer) if self.has_experts else None
        arguments = x_TH, weights_TK, experts_TK, gate_up_EJH, down_EHW
        if low:
            self.kernels.mixture_lora_add(*arguments, low, self.slots_T, residual_TH)
        else:
            self.kernels.mixture_add(*arguments, residual_TH)

    def _add(self, layer: int, group: str, x_TH: Tensor, out_TO: Tensor) -> None:
        low = self.bank.layers[layer][group]
        self.kernels.lora_add(x_TH, out_TO, low.A_SQH, low.B_SOR, self.slots_T, low.part_width)
