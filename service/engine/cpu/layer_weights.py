"""A decoder's layers as few matrices: all experts of a layer as one MLP, norms' weights multiplied in if wanted.

For the decoders of canvases, in torch and compiled. Knows the model's modules.

Shape letters: H hidden width, O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from shared.deepseek_ocr.decoder import DecoderLayer
from shared.deepseek_ocr.moe import MixtureOfExperts, Mlp
from shared.deepseek_ocr.protocol import OcrModel


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """A layer's matrices, `[O, I]`, float32."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    """Gates of all parts, then ups."""
    down: Tensor
    router: Tensor | None
    parts: int = 1
    """Of the MLP, equally wide: experts, then what every token passes."""
    top_k: int = 0
    normalise: bool = False
    scale: float = 1.0
    before_H: Tensor | None = None
    """Weights of the norm before attention; None: multiplied into the matrix that follows."""
    between_H: Tensor | None = None
    """Of the norm before the MLP; None: as above."""

    def folded(self) -> LayerWeights:
        """The layer with the norms' weights multiplied into the matrices."""
        before_H, between_H = self.before_H, self.between_H
        if before_H is None or between_H is None:
            return self
        router = None if self.router is None else (self.router * between_H).detach()
        qkv, gate_up = self.qkv * before_H, self.gate_up * between_H
        return replace(self, qkv=qkv, gate_up=gate_up, router=router, before_H=None, between_H=None)


def join_layers(model: OcrModel) -> list[LayerWeights]:
    """The layers of a model's decoder."""
    return [_join_layer(cast("DecoderLayer", layer)) for layer in model.decoder.layers]


def _join_layer(layer: DecoderLayer) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    gates, ups, downs = _parts(mlp)
    joined = LayerWeights(
        qkv=torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]),
        out=attention.o_proj.weight,
        gate_up=torch.cat([*gates, *ups]),
        down=torch.cat(downs, dim=1),
        router=None,
        before_H=layer.input_layernorm.weight,
        between_H=layer.post_attention_layernorm.weight,
    )
    if not isinstance(mlp, MixtureOfExperts):
        return joined
    gate, width = mlp.gate, mlp.experts.down_proj.shape[2]
    return replace(
        joined,
        router=gate.weight.detach(),
        parts=joined.down.shape[1] // width,
        top_k=gate.top_k,
        normalise=gate.norm_topk_prob,
        scale=gate.routed_scaling_factor,
    )


def _parts(mlp: Mlp | MixtureOfExperts) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Gates, ups and downs of an MLP, or of each routed expert and the shared ones."""
    if isinstance(mlp, Mlp):
        return [mlp.gate_proj.weight], [mlp.up_proj.weight], [mlp.down_proj.weight]
    gates_ups = [gate_up.chunk(2) for gate_up in mlp.experts.gate_up_proj]
    gates, ups, downs = _parts(mlp.shared_experts) if mlp.shared_experts else ([], [], [])
    return (
        [*(gate for gate, _ in gates_ups), *gates],
        [*(up for _, up in gates_ups), *ups],
        [*mlp.experts.down_proj, *downs],
    )
