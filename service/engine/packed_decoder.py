"""One token for every row, on a CPU: the decoder's weights joined into few matrices, and few operations over them.

Owns a copy of the decoder's weights and the arithmetic of a decode step; prefill stays the model's. Same result as
the model up to rounding. Knows the model's modules and the cache's window. Used by the engine's single thread.

A step of a small model is bound by reading weights and by the number of operations, so: query, key and value are one
product; so are all experts' gates and ups, the shared expert's and the router's; so are all downs. Every expert is
computed, which costs less than choosing while there are few. Norms' weights are multiplied into what follows.

Activations are `[features, columns]`, and products `weights @ activations` with the activations' columns contiguous:
so MKL reads weights at full bandwidth from two columns on, and at half of it for one, hence a single row is computed
twice. (2048 x 320 on two cores of an EPYC without AVX-512: 112 us for two columns, 193 us for eight; one column takes
215 us, eight with contiguous rows 400 us or more, and `activations @ weights.T` with eight rows 480 us.)

Rows with adapters get their low-rank sums added to what the base's products gave, column by column; the other rows'
numbers are, bit for bit, what they would be without.

Shape letters: B rows, P columns (B, at least two), H hidden width, N heads, D head width, S tokens attended to,
E experts, I intermediate width, K experts per token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor
from torch.nn import functional as F

from service.engine.kernels.reference import lora_add
from service.engine.kv_cache import DecodeWindow
from service.engine.lora import AdapterBank, LowRank
from shared.deepseek_ocr.decoder import DecoderLayer, rotary_tables
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.moe import Gate, MixtureOfExperts, Mlp
from shared.deepseek_ocr.protocol import OcrModel

MAX_EXPERTS = 16
"""Above this, computing every expert costs more than choosing."""
MAX_WEIGHTS = 500_000_000
"""Above this, the copy costs more memory than the speed is worth."""


@dataclass(frozen=True, slots=True)
class _Routing:
    """How a mixture layer weighs its experts."""

    num_experts: int
    expert_width: int
    top_k: int
    normalise: bool
    scale: float

    def weigh(self, logits_EP: Tensor) -> Tensor:
        """Weights of all experts, zero for those not chosen, as `moe.Gate` has them."""
        weights_KP, experts_KP = logits_EP.softmax(dim=0).topk(self.top_k, dim=0)
        if self.top_k > 1 and self.normalise:
            weights_KP = weights_KP / (weights_KP.sum(dim=0) + 1e-20)
        return torch.zeros_like(logits_EP).scatter_(0, experts_KP, weights_KP * self.scale)


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one layer; `in_*` have the norm before them multiplied in."""

    in_attention: Tensor
    """Query, key, value: `[3H, H]`."""
    out_attention: Tensor
    in_mlp: Tensor
    """Gates, ups, then the router: `[2 * width + E, H]`, the width that of all experts together."""
    out_mlp: Tensor
    """Downs, `[H, width]`."""
    routing: _Routing | None
    attention_norm_H: Tensor
    """What adapters take has the norm alone."""
    mlp_norm_H: Tensor
    own_width: int
    """Of the dense MLP or the shared expert, which stands last among gates, ups and downs."""


def can_pack(model: OcrModel) -> TypeGuard[DeepseekOcrForConditionalGeneration]:
    """Whether a packed copy is possible and worth its memory."""
    if not isinstance(model, DeepseekOcrForConditionalGeneration):
        return False
    weights = sum(parameter.numel() for parameter in model.model.layers.parameters())
    is_small = model.config.text_config.n_routed_experts <= MAX_EXPERTS and weights <= MAX_WEIGHTS
    return model.device.type == "cpu" and model.dtype == torch.float32 and is_small


class PackedDecoder:
    """A copy of a model's decoder, laid out for steps of one token a row.

    Args:
        model: A model for which `can_pack` is true; later changes of its weights do not reach the copy.
        max_tokens: Positions that may occur.
    """

    def __init__(self, model: DeepseekOcrForConditionalGeneration, max_tokens: int) -> None:
        text = model.config.text_config
        self._embeddings = model.model.embed_tokens.weight.detach()
        self._layers = [_pack_layer(layer) for layer in model.model.layers]
        self._head = (model.lm_head.weight * model.model.norm.weight).detach()
        self._eps = text.rms_norm_eps
        self._heads, self._head_dim = text.num_attention_heads, text.head_dim
        cos, sin = rotary_tables(
            torch.arange(max_tokens).unsqueeze(0), text.head_dim, text.rope_theta, self._embeddings.dtype
        )
        self._cos, self._sin = cos[0, 0], sin[0, 0]
        # Rotating is x * cos + (-second half, first half) * sin; the sign goes into the table.
        self._sin[:, : text.head_dim // 2].neg_()

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
        adapted = _Adapted(bank, torch.tensor(adapters)) if bank and max(adapters, default=-1) >= 0 else None
        rows = len(tokens)
        padded = list(tokens) if rows > 1 else [*tokens, *tokens]
        x_HP = self._embeddings[torch.tensor(padded)].t().contiguous()
        positions_B = window.position_ids_B1[:, 0]
        cos_B11D, sin_B11D = (table[positions_B][:, None, None] for table in (self._cos, self._sin))
        for index, layer in enumerate(self._layers):
            normed_HP = self._normalise(x_HP)
            joined_3HP = _product(layer.in_attention, normed_HP)
            if adapted:
                adapted.add(index, "qkv", normed_HP * layer.attention_norm_H[:, None], joined_3HP)
            joined_B3ND = joined_3HP[:, :rows].t().contiguous().view(rows, 3, self._heads, self._head_dim)
            turned_B2ND = _rotate(joined_B3ND[:, :2], cos_B11D, sin_B11D)
            keys_BNSD, values_BNSD = window.update(
                turned_B2ND[:, 1].unsqueeze(2), joined_B3ND[:, 2].unsqueeze(2), index
            )
            seen_BN1D = F.scaled_dot_product_attention(
                turned_B2ND[:, 0].unsqueeze(2), keys_BNSD, values_BNSD, attn_mask=window.mask_B11S
            )
            seen_PH = seen_BN1D.reshape(rows, -1).expand(x_HP.shape[1], -1)
            x_HP = x_HP + _product(layer.out_attention, seen_PH.t())
            if adapted:
                adapted.add(index, "out", seen_PH.t(), x_HP)
            normed_HP = self._normalise(x_HP)
            joined = _product(layer.in_mlp, normed_HP)
            if adapted and layer.own_width:
                adapted.add_gate_up(index, normed_HP * layer.mlp_norm_H[:, None], joined, layer)
            activated = _activate(layer, joined)
            x_HP = x_HP + _product(layer.out_mlp, activated)
            if adapted and layer.own_width:
                adapted.add(index, "down", activated[-layer.own_width :], x_HP)
        return _product(self._head, self._normalise(x_HP))[:, :rows].t()

    def _normalise(self, x_HP: Tensor) -> Tensor:
        return x_HP * (x_HP * x_HP).mean(dim=0).add_(self._eps).rsqrt_()


@dataclass(frozen=True, slots=True)
class _Adapted:
    """Whose adapters the columns of a step use."""

    bank: AdapterBank
    slots_B: Tensor

    def add(self, layer: int, group: str, x_HP: Tensor, out_OP: Tensor) -> None:
        """Add a group's low-rank sums, in place."""
        self._add(self.bank.layers[layer][group], x_HP, out_OP)

    def add_gate_up(self, index: int, x_HP: Tensor, joined: Tensor, layer: _Layer) -> None:
        """The same for the last gates and the last ups."""
        group, width = self.bank.layers[index]["gate_up"], layer.out_mlp.shape[1]
        for part, end in enumerate((width, 2 * width)):
            self._add(group.part(part), x_HP, joined[end - layer.own_width : end])

    def _add(self, low: LowRank, x_HP: Tensor, out_OP: Tensor) -> None:
        rows = len(self.slots_B)
        lora_add(x_HP[:, :rows].t(), out_OP[:, :rows].t(), low.A_SQH, low.B_SOR, self.slots_B, low.part_width)


def _product(weights: Tensor, x: Tensor) -> Tensor:
    """`weights @ x`, the columns of `x` made contiguous first."""
    return torch.mm(weights, x.t().contiguous().t())


def _rotate(x_B2ND: Tensor, cos_B11D: Tensor, sin_B11D: Tensor) -> Tensor:
    return torch.addcmul(x_B2ND * cos_B11D, x_B2ND.roll(x_B2ND.shape[-1] // 2, dims=-1), sin_B11D)


def _activate(layer: _Layer, joined: Tensor) -> Tensor:
    """Gated activations `[width, P]`, those of routed experts weighted."""
    width, routing = layer.out_mlp.shape[1], layer.routing
    activated = F.silu(joined[:width]).mul_(joined[width : 2 * width])
    if routing:
        weights_EP = routing.weigh(joined[2 * width :])
        # Routed experts stand before the shared one.
        routed_EIP = activated[: routing.num_experts * routing.expert_width].unflatten(0, (routing.num_experts, -1))
        routed_EIP.mul_(weights_EP.unsqueeze(1))
    return activated


def _pack_layer(layer: DecoderLayer) -> _Layer:
    attention = layer.self_attn
    joined = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    routing = _routing(layer.mlp) if isinstance(layer.mlp, MixtureOfExperts) else None
    in_mlp, out_mlp = _pack_mixture(layer.mlp) if isinstance(layer.mlp, MixtureOfExperts) else _pack_mlp(layer.mlp)
    return _Layer(
        in_attention=(joined * layer.input_layernorm.weight).detach(),
        out_attention=attention.o_proj.weight.detach(),
        in_mlp=(in_mlp * layer.post_attention_layernorm.weight).detach(),
        out_mlp=out_mlp.detach().contiguous(),
        routing=routing,
        attention_norm_H=layer.input_layernorm.weight.detach(),
        mlp_norm_H=layer.post_attention_layernorm.weight.detach(),
        own_width=_own_width(layer.mlp),
    )


def _own_width(mlp: Mlp | MixtureOfExperts) -> int:
    own = mlp.shared_experts if isinstance(mlp, MixtureOfExperts) else mlp
    return 0 if own is None else own.down_proj.weight.shape[1]


def _routing(mixture: MixtureOfExperts) -> _Routing:
    gate: Gate = mixture.gate
    num_experts, _, expert_width = mixture.experts.down_proj.shape
    return _Routing(num_experts, expert_width, gate.top_k, gate.norm_topk_prob, gate.routed_scaling_factor)


def _pack_mlp(mlp: Mlp) -> tuple[Tensor, Tensor]:
    return torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), mlp.down_proj.weight


def _pack_mixture(mixture: MixtureOfExperts) -> tuple[Tensor, Tensor]:
    gates_EIH, ups_EIH = mixture.experts.gate_up_proj.chunk(2, dim=1)
    gates, ups = [gates_EIH.flatten(0, 1)], [ups_EIH.flatten(0, 1)]
    downs = list(mixture.experts.down_proj.unbind(0))
    if mixture.shared_experts is not None:
        gates.append(mixture.shared_experts.gate_proj.weight)
        ups.append(mixture.shared_experts.up_proj.weight)
        downs.append(mixture.shared_experts.down_proj.weight)
    return torch.cat([*gates, *ups, mixture.gate.weight]), torch.cat(downs, dim=1)
