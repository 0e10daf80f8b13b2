"""A decoder layer's weights, laid out as the kernels take them.

Owns what is joined with what: query, key and value are one matrix, and so are gate and up; the shared experts
follow the routed ones as further experts that every token uses, and a dense MLP is a mixture of one expert. Owns,
too, what becomes 8-bit rows where those are asked for: all that is multiplied with tokens, but not routers, whose small
errors change what is chosen. Knows no kernels. Used by the engine's single thread, once.

Shape letters: H hidden width, O outputs, E experts, J twice the expert width, W expert width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from service.engine.gpu.lora_layers import SharedMlp
from service.engine.kernels.int8_rows import Weight, one_after_another, one_below_another, split_inputs, to_int8
from shared.deepseek_ocr.decoder import DecoderLayer
from shared.deepseek_ocr.moe import Gate, MixtureOfExperts, Mlp


@dataclass(frozen=True, slots=True)
class Routing:
    """How a mixture layer chooses."""

    gate_EH: Tensor
    """float32."""
    num_chosen: int
    normalise: bool
    scale: float
    num_shared: int

    @property
    def arguments(self) -> tuple[Tensor, int, bool, float, int]:
        """As `route` takes them."""
        return *self.routed_arguments, self.num_shared

    @property
    def routed_arguments(self) -> tuple[Tensor, int, bool, float]:
        """The same for routed experts alone."""
        return self.gate_EH, self.num_chosen, self.normalise, self.scale


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """Weights of one layer."""

    attention_norm_H: Tensor
    qkv_OH: Weight
    out_HH: Weight
    mlp_norm_H: Tensor
    gate_up_EJH: Weight
    down_EHW: Weight
    routing: Routing | None
    """None: a dense MLP."""
    own_mlp: SharedMlp | None
    """For rows with adapters; None where there are none, or no shared experts."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Where weights go, and as what."""

    device: torch.device
    is_int8: bool
    """Whether matrices become 8-bit rows; else they stay as they are."""
    takes_adapters: bool
    """Whether passes may have adapters; the shared experts' downs are then held twice."""

    def layer(self, layer: DecoderLayer) -> PackedLayer:
        """Lay out a layer, which may lie anywhere."""
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        packed = self._mixture(mlp) if isinstance(mlp, MixtureOfExperts) else self._mlp(mlp)
        gate_up_EJH, down_EHW, own_mlp = packed
        return PackedLayer(
            attention_norm_H=self.as_it_is(layer.input_layernorm.weight),
            qkv_OH=self.matrix(torch.cat([projection.weight.detach() for projection in projections])),
            out_HH=self.matrix(attention.o_proj.weight),
            mlp_norm_H=self.as_it_is(layer.post_attention_layernorm.weight),
            gate_up_EJH=gate_up_EJH,
            down_EHW=down_EHW,
            routing=self._routing(mlp) if isinstance(mlp, MixtureOfExperts) else None,
            own_mlp=own_mlp if self.takes_adapters else None,
        )

    def matrix(self, weight: Tensor) -> Weight:
        """Weights that tokens are multiplied with."""
        return to_int8(weight.detach(), self.device) if self.is_int8 else self.as_it_is(weight)

    def as_it_is(self, weight: Tensor) -> Tensor:
        """Weights that are never rounded."""
        return weight.detach().to(self.device)

    def _routing(self, mixture: MixtureOfExperts) -> Routing:
        gate: Gate = mixture.gate
        return Routing(
            gate_EH=self.as_it_is(gate.weight).float(),
            num_chosen=gate.top_k,
            normalise=gate.norm_topk_prob,
            scale=gate.routed_scaling_factor,
            num_shared=_num_shared(mixture),
        )

    def _mlp(self, mlp: Mlp) -> tuple[Weight, Weight, SharedMlp]:
        gate_up_JH = torch.cat([mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()])
        gate_up_1JH = self.matrix(gate_up_JH.unsqueeze(0))
        down_1HW = self.matrix(mlp.down_proj.weight.unsqueeze(0))
        return gate_up_1JH, down_1HW, SharedMlp(gate_up_1JH[0], down_1HW[0], 1)

    def _mixture(self, mixture: MixtureOfExperts) -> tuple[Weight, Weight, SharedMlp | None]:
        gate_up_EJH = self.matrix(mixture.experts.gate_up_proj)
        down_EHW = self.matrix(mixture.experts.down_proj)
        shared, num_shared = mixture.shared_experts, _num_shared(mixture)
        if shared is None:
            return gate_up_EJH, down_EHW, None
        halves = [
            projection.weight.detach().unflatten(0, (num_shared, -1))
            for projection in (shared.gate_proj, shared.up_proj)
        ]
        gate_up_EJH = one_after_another(gate_up_EJH, self.matrix(torch.cat(halves, dim=1)))
        own_down_HW = self.matrix(shared.down_proj.weight)
        down_EHW = one_after_another(down_EHW, split_inputs(own_down_HW, num_shared))
        return gate_up_EJH, down_EHW, SharedMlp(one_below_another(gate_up_EJH[-num_shared:]), own_down_HW, num_shared)


def _num_shared(mixture: MixtureOfExperts) -> int:
    """How many experts of the routed ones' width the shared ones are."""
    if mixture.shared_experts is None:
        return 0
    return mixture.shared_experts.down_proj.weight.shape[1] // mixture.experts.down_proj.shape[2]
