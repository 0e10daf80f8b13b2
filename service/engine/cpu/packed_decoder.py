"""One token for every row, on a CPU: the decoder's weights joined into few matrices, and few operations over them.

Owns a copy of the decoder's weights and the arithmetic of a decode step; prefill stays the model's. Same result as
the model up to rounding. Knows the model's modules and the cache's window. Used by the engine's single thread.

A step of a small model is bound by reading weights and by the number of operations, so query, key and value are one
product, gates and ups another, and routed experts that no row chose are not read. One that a row chose is computed for
all rows, with weight zero for those that did not: finding their rows costs as much as it saves while rows are few.

Rows with adapters get their low-rank sums added to what the base's products gave; the other rows' numbers are, bit for
bit, what they would be without.

Shape letters: B rows, H hidden width, N heads, D head width, S tokens attended to, E experts, W intermediate width,
K experts per token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from service.engine.cpu.kv_cache import DecodeWindow
from service.engine.cpu.packed_weights import Matrix, pack
from service.engine.kernels.reference.decoder import lora_add
from service.engine.lora.bank import AdapterBank
from service.engine.lora.low_rank import SlotMatrices, SlotRows, rows_by_slot
from shared.deepseek_ocr.configuration import TextConfig
from shared.deepseek_ocr.decoder import DecoderLayer, rotary_tables
from shared.deepseek_ocr.moe import MixtureOfExperts, Mlp
from shared.deepseek_ocr.protocol import OcrModel
from shared.deepseek_ocr.registry import kind_of

MAX_EXPERTS = 64
"""More were not tried. At nano's other dimensions a step of 1, 4 and 8 rows is 2.0, 1.8 and 1.4 times as fast as the
model's own with 6 experts, 1.9, 1.5 and 1.2 times with 64 (2 EPYC cores, torch 2.13, `benchmarks/engine_settings.py
packed`)."""
MAX_WEIGHTS = 500_000_000
"""Above this, the copy costs more memory than the speed is worth."""


@dataclass(frozen=True, slots=True)
class _Mlp:
    """The dense MLP, the shared experts as one, or a routed expert."""

    gate_up: Matrix
    """Gates, then ups: `[2 * W, H]`."""
    down: Matrix


@dataclass(frozen=True, slots=True)
class _Experts:
    """Routed experts, and how they are chosen."""

    experts: Sequence[_Mlp]
    router_EH: Tensor
    top_k: int
    normalise: bool
    scale: float

    def choose(self, x_BH: Tensor) -> dict[int, float | Tensor]:
        """The experts that any row chose, and each row's weight of them, `[B, 1]` or a number; see `moe.Gate`."""
        chosen = F.linear(x_BH, self.router_EH).softmax(dim=-1).topk(self.top_k, dim=-1)
        # On the host, where a few numbers cost less than the operations that would join them.
        weights_BE = [[0.0] * len(self.experts) for _ in x_BH]
        used = set[int]()
        for row, weights, experts in zip(weights_BE, *(side.tolist() for side in chosen), strict=True):
            total = sum(weights) + 1e-20 if self.top_k > 1 and self.normalise else 1.0
            for weight, expert in zip(weights, experts, strict=True):
                row[expert] = weight / total * self.scale
            used.update(experts)
        if len(weights_BE) == 1:
            return {expert: weights_BE[0][expert] for expert in sorted(used)}
        columns = torch.tensor([weight for row in weights_BE for weight in row]).view(len(x_BH), -1).split(1, dim=1)
        return {expert: columns[expert] for expert in sorted(used)}


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one layer."""

    attention_norm_H: Tensor
    """Norms' weights, times the square root of H, as rows are divided by their length."""
    qkv: Matrix
    out: Matrix
    mlp_norm_H: Tensor
    mlp: _Mlp | None
    """What every row passes; None: there are no shared experts."""
    experts: _Experts | None


def can_pack(model: OcrModel) -> bool:
    """Whether a packed copy is possible and worth its memory."""
    if not kind_of(model).has_fast_decoder:
        return False
    decoder, head = model.decoder, model.lm_head.weight
    weights = sum(parameter.numel() for parameter in decoder.layers.parameters())
    is_small = decoder.config.n_routed_experts <= MAX_EXPERTS and weights <= MAX_WEIGHTS
    return head.device.type == "cpu" and head.dtype == torch.float32 and is_small


def signed_rotary_tables(text: TextConfig, max_tokens: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines by position, `[P, D]`, float32, for `x * cos + (second half, first half of x) * sin`."""
    cos, sin = rotary_tables(torch.arange(max_tokens)[None], text.head_dim, text.rope_theta, torch.float32)
    # The sign of the second half goes into the table.
    sin[0, 0, :, : text.head_dim // 2].neg_()
    return cos[0, 0], sin[0, 0]


class PackedDecoder:
    """A copy of a model's decoder, laid out for steps of one token a row.

    Args:
        model: A model for which `can_pack` is true; later changes of its weights do not reach the copy.
        max_tokens: Positions that may occur.
    """

    def __init__(self, model: OcrModel, max_tokens: int) -> None:
        decoder = model.decoder
        text = decoder.config
        self._embeddings_VH = decoder.embed_tokens.weight.detach()
        self._layers = [_pack_layer(cast("DecoderLayer", layer)) for layer in decoder.layers]
        self._norm_H = _pack_norm(cast("Tensor", decoder.norm.weight))
        self._head = pack(model.lm_head.weight)
        self._heads, self._head_dim = text.num_attention_heads, text.head_dim
        self._floor_11 = torch.full((1, 1), text.rms_norm_eps * text.hidden_size)
        self._cos_PD, self._sin_PD = signed_rotary_tables(text, max_tokens)

    def logits(
        self,
        tokens: Sequence[int],
        window: DecodeWindow,
        bank: AdapterBank | None = None,
        adapters: Sequence[int] = (),
    ) -> Tensor:
        """Feed one token a row.

        Args:
            tokens: Ids, one for each row.
            window: The cache's window for this step.
            bank: Made without `splits_shared`; None: there are no adapters.
            adapters: One for each row, -1 the base alone; empty: all the base alone.

        Returns:
            `[B, V]`.
        """
        adapted = _Adapted.of(bank, adapters) if bank and max(adapters, default=-1) >= 0 else None
        x_BH = self._embeddings_VH[torch.tensor(tokens)]
        positions_B = window.position_ids_B1[:, 0]
        rotary = self._cos_PD[positions_B][:, None, None], self._sin_PD[positions_B][:, None, None]
        for index, layer in enumerate(self._layers):
            self._attend(index, layer, x_BH, rotary, window, adapted)
            normed_BH = self._normalise(x_BH, layer.mlp_norm_H)
            if layer.experts:
                for number, weight in layer.experts.choose(normed_BH).items():
                    expert = layer.experts.experts[number]
                    joined = expert.gate_up.product(normed_BH)
                    if adapted:
                        adapted.add_of_expert(index, "routed_gate_up", normed_BH, joined, number)
                    active_BW = _activate(joined).mul_(weight)
                    expert.down.add_to(x_BH, active_BW)
                    if adapted:
                        adapted.add_of_expert(index, "routed_down", active_BW, x_BH, number)
            if layer.mlp:
                joined = layer.mlp.gate_up.product(normed_BH)
                if adapted:
                    adapted.add(index, "gate_up", normed_BH, joined)
                active_BW = _activate(joined)
                layer.mlp.down.add_to(x_BH, active_BW)
                if adapted:
                    adapted.add(index, "down", active_BW, x_BH)
        return self._head.product(self._normalise(x_BH, self._norm_H))

    def _attend(
        self,
        index: int,
        layer: _Layer,
        x_BH: Tensor,
        rotary: tuple[Tensor, Tensor],
        window: DecodeWindow,
        adapted: _Adapted | None,
    ) -> None:
        """Add a layer's attention to the residual."""
        rows = len(x_BH)
        normed_BH = self._normalise(x_BH, layer.attention_norm_H)
        joined = layer.qkv.product(normed_BH)
        if adapted:
            adapted.add(index, "qkv", normed_BH, joined)
        qkv_B3ND = joined.view(rows, 3, self._heads, self._head_dim)
        _rotate(qkv_B3ND[:, :2], *rotary)
        keys_BNSD, values_BNSD = window.update_joined(qkv_B3ND[:, 1:], index)
        seen_BN1D = F.scaled_dot_product_attention(
            qkv_B3ND[:, 0].unsqueeze(2).to(keys_BNSD.dtype), keys_BNSD, values_BNSD, attn_mask=window.mask_B11S
        )
        seen_BH = seen_BN1D.reshape(rows, -1).to(x_BH.dtype)
        layer.out.add_to(x_BH, seen_BH)
        if adapted:
            adapted.add(index, "out", seen_BH, x_BH)

    def _normalise(self, x_BH: Tensor, weight_H: Tensor) -> Tensor:
        length_B1 = torch.linalg.vector_norm(x_BH, dim=1, keepdim=True)
        return (x_BH * weight_H).mul_(torch.addcmul(self._floor_11, length_B1, length_B1).rsqrt_())


@dataclass(frozen=True, slots=True)
class _Adapted:
    """Whose adapters the rows of a step use."""

    bank: AdapterBank
    slots_B: Tensor
    has_experts: bool
    """Whether any of them changes routed experts."""
    groups: Sequence[tuple[SlotRows, Sequence[Mapping[str, SlotMatrices]]]]
    """Rows of one adapter, and its matrices by layer."""

    @staticmethod
    def of(bank: AdapterBank, adapters: Sequence[int]) -> _Adapted:
        """Rows with these adapters."""
        groups = [(rows, bank.compact(rows.slot)) for rows in rows_by_slot(adapters)]
        return _Adapted(bank, torch.tensor(adapters), not bank.expert_slots.isdisjoint(adapters), groups)

    def add(self, layer: int, group: str, x_BI: Tensor, out_BO: Tensor) -> None:
        """Add a group's low-rank sums, in place."""
        for rows, layers in self.groups:
            matrices = layers[layer].get(group)
            if matrices:
                matrices.add(x_BI, out_BO, rows.rows)

    def add_of_expert(self, layer: int, group: str, x_BI: Tensor, out_BO: Tensor, expert: int) -> None:
        """Add those of one routed expert, in place."""
        if self.has_experts:
            low = self.bank.layers[layer][group].expert(expert)
            lora_add(x_BI, out_BO, low.A_SQH, low.B_SOR, self.slots_B, low.part_width)


def _rotate(x_B2ND: Tensor, cos_B11D: Tensor, sin_B11D: Tensor) -> None:
    """Rotate queries and keys in place."""
    turned_B2ND = x_B2ND.roll(x_B2ND.shape[-1] // 2, dims=-1)
    x_B2ND.mul_(cos_B11D).addcmul_(turned_B2ND, sin_B11D)


def _activate(joined: Tensor) -> Tensor:
    """`silu(gates) * ups`, `[B, W]`."""
    gates_BW, ups_BW = joined.chunk(2, dim=1)
    return F.silu(gates_BW).mul_(ups_BW)


def _pack_layer(layer: DecoderLayer) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    own = mlp.shared_experts if isinstance(mlp, MixtureOfExperts) else mlp
    return _Layer(
        attention_norm_H=_pack_norm(layer.input_layernorm.weight),
        qkv=pack(torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])),
        out=pack(attention.o_proj.weight),
        mlp_norm_H=_pack_norm(layer.post_attention_layernorm.weight),
        mlp=_pack_mlp(own) if own else None,
        experts=_pack_experts(mlp) if isinstance(mlp, MixtureOfExperts) else None,
    )


def _pack_norm(weight_H: Tensor) -> Tensor:
    return (weight_H * len(weight_H) ** 0.5).detach()


def _pack_mlp(mlp: Mlp) -> _Mlp:
    return _Mlp(pack(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])), pack(mlp.down_proj.weight))


def _pack_experts(mixture: MixtureOfExperts) -> _Experts:
    stacked, gate = mixture.experts, mixture.gate
    pairs = zip(stacked.gate_up_proj.unbind(0), stacked.down_proj.unbind(0), strict=True)
    return _Experts(
        experts=[_Mlp(pack(gate_up), pack(down)) for gate_up, down in pairs],
        router_EH=gate.weight.detach(),
        top_k=gate.top_k,
        normalise=gate.norm_topk_prob,
        scale=gate.routed_scaling_factor,
    )
