"""A small model's decoder with rounded weights, for canvases on processors with tiles: four products a layer.

Owns a copy of the decoder's weights and its arithmetic. Keys, values and products of many rows are bfloat16; residual,
norms, routers and the language head float32. Knows the model's modules and the cache's windows. Used by the engine's
single thread.

A step of few rows spends more time on starting operations than on numbers. So all experts are one MLP, in which a
token's weight of an expert is a factor of the expert's part, and norms' weights are multiplied into the matrices that
follow.

Shape letters: B rows, L tokens, T tokens of all rows, H hidden width, N heads, D head width, E experts, W width of the
MLP, P parts of it, K experts per token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from service.engine.cpu.kv_cache import DecodeWindow, PrefillWindow
from service.engine.cpu.layer_weights import LayerWeights, join_layers
from service.engine.cpu.packed_decoder import signed_rotary_tables
from service.engine.cpu.packed_linear import PackedWeights
from service.engine.cpu.packed_weights import HalfWeights, pack
from shared.deepseek_ocr.protocol import OcrModel

MAX_EXPERTS = 8
"""All are computed for each token, so more of them would cost more than they save."""
FEW_ROWS = 6
"""Products of so many rows at most have float16 weights. 2048 x 320, not in the cache, takes 1, 4, 8 and 16 rows 149,
202, 237 and 379 us so, and 144 to 158 us in bfloat16; 320 x 320 12, 16, 21 and 38 us, and 31 to 34 us, most of which
oneDNN needs to start (one core of a Xeon with AMX next to other work, torch 2.13.0)."""


class _Matrix:
    """Weights `[O, I]`, rounded to float16 for few rows and to bfloat16 for many."""

    def __init__(self, weight_OI: Tensor) -> None:
        weight_OI = weight_OI.detach()
        self._many = _tiled_product(weight_OI.bfloat16())
        try:
            self._few: HalfWeights | None = HalfWeights(weight_OI)
        except (AttributeError, RuntimeError):
            self._few = None

    def product(self, x_TI: Tensor) -> Tensor:
        """`x @ weights.T`, `[T, O]`, float32 or bfloat16."""
        if self._few and len(x_TI) <= FEW_ROWS:
            return self._few.product(x_TI.float())
        return self._many(x_TI.bfloat16())


def _tiled_product(weight_OI: Tensor) -> Callable[[Tensor], Tensor]:
    try:
        return PackedWeights(weight_OI).product
    except (AttributeError, RuntimeError):
        return partial(F.linear, weight=weight_OI)


@dataclass(frozen=True, slots=True)
class _Router:
    """How a token's experts are chosen, and where they are in the MLP."""

    weight_EH: Tensor
    top_k: int
    normalise: bool
    scale: float
    base_P: Tensor
    """0 for the experts, then 1 for the parts that every token passes."""

    def weigh(self, x_TH: Tensor) -> Tensor:
        """Each token's factors of the parts, `[T, P, 1]`; see `moe.Gate`."""
        scores_TE = F.linear(x_TH, self.weight_EH)
        if self.top_k > 1 and self.normalise:
            # The softmax of all, divided by the sum of the chosen, is the softmax of the chosen.
            scores_TK, experts_TK = scores_TE.topk(self.top_k, dim=-1)
            weights_TK = scores_TK.softmax(dim=-1)
        else:
            weights_TK, experts_TK = scores_TE.softmax(dim=-1).topk(self.top_k, dim=-1)
        if self.scale != 1:
            weights_TK = weights_TK * self.scale
        return self.base_P.expand(len(x_TH), -1).scatter(1, experts_TK, weights_TK).unsqueeze(-1)


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one layer."""

    qkv: _Matrix
    out: _Matrix
    gate_up: _Matrix
    """Gates of all parts, then ups."""
    down: _Matrix
    router: _Router | None


class RoundedDecoder:
    """A copy of a model's decoder, rounded.

    Args:
        model: In float32 on a CPU, with `MAX_EXPERTS` at most; later changes of its weights do not reach the copy.
        max_tokens: Positions that may occur.
    """

    def __init__(self, model: OcrModel, max_tokens: int) -> None:
        decoder = model.decoder
        text = decoder.config
        self._embeddings_VH = decoder.embed_tokens.weight.detach()
        self._layers = [_pack_layer(layer.folded()) for layer in join_layers(model)]
        self._norm_H = cast("Tensor", decoder.norm.weight).detach()
        self._head = pack(model.lm_head.weight)
        self._heads, self._head_dim = text.num_attention_heads, text.head_dim
        self._root = text.hidden_size**0.5
        self._floor_11 = torch.full((1, 1), text.rms_norm_eps * text.hidden_size)
        cos_PD, sin_PD = signed_rotary_tables(text, max_tokens)
        self._cos_PD, self._sin_PD = cos_PD.bfloat16(), sin_PD.bfloat16()

    def read(self, embeds_BLH: Tensor, positions_BL: Tensor, window: PrefillWindow) -> Tensor:
        """Read prompts of one length; see `canvas_prompts.PromptReader.read`."""
        rows, length = embeds_BLH.shape[:2]
        rotary = self._rotary(positions_BL.flatten())
        x_TH = embeds_BLH.reshape(rows * length, -1)
        for index, layer in enumerate(self._layers):
            is_last = index == len(self._layers) - 1
            qkv_T3ND = self._project(layer, x_TH, rotary)
            q_BNLD, k_BNLD, v_BNLD = qkv_T3ND.view(rows, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            window.update(k_BNLD, v_BNLD, index)
            if is_last:
                # Of the last layer no more is needed than the last tokens.
                q_BNLD, x_TH = q_BNLD[:, :, -1:], x_TH.view(rows, length, -1)[:, -1].contiguous()
            seen_BNLD = F.scaled_dot_product_attention(q_BNLD, k_BNLD, v_BNLD, is_causal=not is_last)
            self._finish(layer, x_TH, seen_BNLD.transpose(1, 2).reshape(len(x_TH), -1))
        return self._logits(x_TH)

    def step(self, tokens: Sequence[int], window: DecodeWindow) -> Tensor:
        """Feed one token a row; see `compiled_decoder.CompiledDecoder.step`."""
        x_BH = self._embeddings_VH[torch.tensor(tokens)]
        rotary = self._rotary(window.position_ids_B1[:, 0])
        for index, layer in enumerate(self._layers):
            qkv_B3ND = self._project(layer, x_BH, rotary)
            keys_BNSD, values_BNSD = window.update_joined(qkv_B3ND[:, 1:], index)
            seen_BN1D = F.scaled_dot_product_attention(
                qkv_B3ND[:, 0].unsqueeze(2), keys_BNSD, values_BNSD, attn_mask=window.mask_B11S
            )
            self._finish(layer, x_BH, seen_BN1D.reshape(len(x_BH), -1))
        return self._logits(x_BH)

    def _rotary(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        return self._cos_PD[positions_T][:, None, None], self._sin_PD[positions_T][:, None, None]

    def _project(self, layer: _Layer, x_TH: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Queries, keys and values, the first two rotated, `[T, 3, N, D]`."""
        joined_T3ND = layer.qkv.product(self._normalise(x_TH)).bfloat16().view(-1, 3, self._heads, self._head_dim)
        turning_T2ND = joined_T3ND[:, :2]
        turned_T2ND = turning_T2ND.roll(self._head_dim // 2, dims=-1)
        turning_T2ND.mul_(rotary[0]).addcmul_(turned_T2ND, rotary[1])
        return joined_T3ND

    def _finish(self, layer: _Layer, x_TH: Tensor, seen_TH: Tensor) -> None:
        """Add what was attended to, and then the MLP, to the residual."""
        x_TH.add_(layer.out.product(seen_TH))
        normed_TH = self._normalise(x_TH)
        gates_TW, ups_TW = layer.gate_up.product(normed_TH).chunk(2, dim=1)
        active_TW = F.silu(gates_TW).mul_(ups_TW)
        if layer.router:
            parts_TP1 = layer.router.weigh(normed_TH).to(active_TW.dtype)
            active_TW.view(len(x_TH), parts_TP1.shape[1], -1).mul_(parts_TP1)
        x_TH.add_(layer.down.product(active_TW))

    def _logits(self, x_BH: Tensor) -> Tensor:
        return self._head.product(self._normalise(x_BH).mul_(self._norm_H))

    def _normalise(self, x_TH: Tensor) -> Tensor:
        """RMS normalisation without weights, float32."""
        length_T1 = torch.linalg.vector_norm(x_TH, dim=1, keepdim=True)
        return x_TH * torch.addcmul(self._floor_11, length_T1, length_T1).rsqrt_().mul_(self._root)


def _pack_layer(weights: LayerWeights) -> _Layer:
    return _Layer(
        qkv=_Matrix(weights.qkv),
        out=_Matrix(weights.out),
        gate_up=_Matrix(weights.gate_up),
        down=_Matrix(weights.down),
        router=None if weights.router is None else _router(weights, weights.router),
    )


def _router(weights: LayerWeights, weight_EH: Tensor) -> _Router:
    num_routed = len(weight_EH)
    return _Router(
        weight_EH=weight_EH,
        top_k=weights.top_k,
        normalise=weights.normalise,
        scale=weights.scale,
        base_P=torch.tensor([0.0] * num_routed + [1.0] * (weights.parts - num_routed)),
    )
