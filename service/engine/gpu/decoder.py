"""The language decoder over slots: prompts of any lengths end to end, then one token for every row.

Calls the kernels in order over the weights that `packing` laid out; `kernels.reference.decoder` says what each kernel
means. Nothing here waits for the device, so a step can be captured. Used by the engine's single thread.

A pass in which a row has an adapter goes through `lora_layers`; others run as if there were no adapters.

Shape letters: T tokens of all prompts, R prompts, I image tokens, B rows, H hidden width, N heads, D head width,
E experts, J twice the expert width, W expert width, K experts per token, V vocabulary, P positions.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.engine.answer_ring import AnswerRing
from service.engine.gpu.lora_layers import LoraLayers
from service.engine.gpu.packing import PackedLayer, Packing
from service.engine.gpu.paged_cache import PagedCache
from service.engine.gpu.prompts import PromptBatch
from service.engine.gpu.state import AnswerState
from service.engine.lora.bank import AdapterBank
from shared.deepseek_ocr.decoder import DecoderLayer, rotary_tables
from shared.deepseek_ocr.protocol import OcrModel


class GpuDecoder:
    """A model's decoder as the kernels take it.

    Args:
        model: Its weights must stay as they are.
        kernels: `kernels.triton.decoder`, or `kernels.reference.decoder` without a GPU.
        max_positions: Tokens of a sequence at most.
        takes_over: Whether the model's layers are given up, one by one, so that weights are held twice for one layer
            at most; the model cannot decode afterwards.
        takes_adapters: Whether passes may have adapters; the shared experts' downs are then held twice.
        is_int8: Whether matrices become 8-bit rows, all but the embeddings and the routers.
        ring: Where the answers' tokens go round; None: nowhere.

    Attributes:
        max_positions: Tokens of a sequence at most.
    """

    def __init__(
        self,
        model: OcrModel,
        kernels: Any,
        *,
        max_positions: int,
        takes_over: bool = False,
        takes_adapters: bool = False,
        is_int8: bool = False,
        ring: AnswerRing | None = None,
    ) -> None:
        parts = model.decoder
        text = parts.config
        self.max_positions = max_positions
        self._ring = ring
        self._kernels = kernels
        self._embeddings_VH = parts.embed_tokens.weight.detach()
        self._norm_H = cast("Tensor", parts.norm.weight).detach()
        device = model.lm_head.weight.device
        packing = Packing(device, is_int8, takes_adapters)
        self._head_VH = packing.matrix(model.lm_head.weight)
        self._eps: float = text.rms_norm_eps
        self._heads, self._head_dim = text.num_attention_heads, text.head_dim
        self._scale: float = text.head_dim**-0.5
        positions = torch.arange(max_positions, device=device).unsqueeze(0)
        cos, sin = rotary_tables(positions, text.head_dim, text.rope_theta, torch.float32)
        self._cos_PD, self._sin_PD = cos[0, 0].contiguous(), sin[0, 0].contiguous()
        self._layers: list[PackedLayer] = []
        for index, layer in enumerate(parts.layers):
            assert isinstance(layer, DecoderLayer)
            self._layers.append(packing.layer(layer))
            if takes_over:
                parts.release(index)
        if takes_over and is_int8:
            # A head of no rows: the model's device and type can still be read from it.
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.new_empty(0, text.hidden_size))

    def prefill(
        self, batch: PromptBatch, cache: PagedCache, bank: AdapterBank | None = None, *, has_experts: bool = False
    ) -> Tensor:
        """Read prompts into the cache.

        Args:
            batch: The prompts.
            cache: With room for them at their cells.
            bank: Whose adapters the batch names, made with `splits_shared`.
            has_experts: Whether one of them may change routed experts.

        Returns:
            Logits of each prompt's next token, `[R, V]`.
        """
        kernels, eps = self._kernels, self._eps
        features_TH = batch.features_IH[batch.sources_T.clamp(min=0)]
        is_image_T1 = (batch.sources_T >= 0).unsqueeze(1)
        slots_T = batch.adapters_T
        adapted = LoraLayers(kernels, bank, slots_T, has_experts) if bank and slots_T is not None else None
        x_TH = torch.where(is_image_T1, features_TH, F.embedding(batch.ids_T, self._embeddings_VH))
        y_TH = kernels.rms_norm(x_TH, self._layers[0].attention_norm_H, eps)
        for index, (layer, (keys, values)) in enumerate(zip(self._layers, cache.layers, strict=True)):
            qkv_TO = adapted.linear(index, "qkv", y_TH, layer.qkv_OH) if adapted else kernels.linear(y_TH, layer.qkv_OH)
            qkv_T3ND = qkv_TO.view(-1, 3, self._heads, self._head_dim)
            kernels.rotate_and_store(
                qkv_T3ND, self._cos_PD, self._sin_PD, batch.positions_T, batch.cells_T, keys, values
            )
            seen_TND = kernels.prefill_attention(*qkv_T3ND.unbind(1), batch.starts, batch.max_length, self._scale)
            if index == len(self._layers) - 1:
                # What follows the last attention matters for the last tokens alone.
                seen_TND, x_TH = seen_TND[batch.last_R], x_TH[batch.last_R]
                adapted = adapted and adapted.of(batch.last_R)
            seen_TH = seen_TND.flatten(1)
            out_TH = (
                adapted.linear(index, "out", seen_TH, layer.out_HH)
                if adapted
                else kernels.linear(seen_TH, layer.out_HH)
            )
            y_TH = kernels.add_rms_norm(out_TH, x_TH, layer.mlp_norm_H, eps)
            out_TH = self._mix_adapted(adapted, index, y_TH) if adapted else self._mix(layer, y_TH)
            next_norm_H = self._norm_H if index == len(self._layers) - 1 else self._layers[index + 1].attention_norm_H
            y_TH = kernels.add_rms_norm(out_TH, x_TH, next_norm_H, eps)
        logits_RV: Tensor = kernels.linear(y_TH, self._head_VH)
        return logits_RV

    def decode(
        self,
        slots_B: Tensor,
        state: AnswerState,
        cache: PagedCache,
        bank: AdapterBank | None = None,
        *,
        has_experts: bool = False,
    ) -> Tensor:
        """Feed the newest token of each slot.

        Args:
            slots_B: int64; a slot that is done changes nothing.
            state: Of the slots.
            cache: Takes the token's keys and values.
            bank: Whose adapters the state names; None: no slot has one.
            has_experts: Whether one of them may change routed experts.

        Returns:
            Logits of the tokens after them, `[B, V]`.
        """
        kernels, eps = self._kernels, self._eps
        x_BH, positions_B, lengths_B, cells_B, tables_BX = kernels.begin_step(
            slots_B, state, self._embeddings_VH, cache.tables_SX, cache.block_tokens, self._ring
        )
        prompts_B = state.prompt_S[slots_B] if self._ring else None
        adapted = LoraLayers(kernels, bank, state.adapter_S[slots_B], has_experts) if bank else None
        # A dense MLP is one expert that every token uses.
        one_B1 = torch.ones((len(slots_B), 1), dtype=torch.float32, device=slots_B.device)
        first_B1 = torch.zeros((len(slots_B), 1), dtype=torch.int32, device=slots_B.device)
        for index, (layer, (keys, values)) in enumerate(zip(self._layers, cache.layers, strict=True)):
            if adapted:
                y_BH = kernels.rms_norm(x_BH, layer.attention_norm_H, eps)
                qkv_BO = adapted.linear(index, "qkv", y_BH, layer.qkv_OH)
            else:
                qkv_BO = kernels.norm_linear(x_BH, layer.attention_norm_H, eps, layer.qkv_OH)
            seen_BND = kernels.decode_attention(
                qkv_BO.view(-1, 3, self._heads, self._head_dim),
                self._cos_PD,
                self._sin_PD,
                positions_B,
                cells_B,
                keys,
                values,
                tables_BX,
                lengths_B,
                self._scale,
                self._ring,
                prompts_B,
            )
            if adapted:
                adapted.linear_add(index, "out", seen_BND.flatten(1), layer.out_HH, x_BH)
                self._mix_adapted_into(adapted, index, x_BH)
                continue
            kernels.linear_add(seen_BND.flatten(1), layer.out_HH, x_BH)
            if layer.routing:
                y_BH, weights_BK, experts_BK = kernels.norm_route(x_BH, layer.mlp_norm_H, eps, *layer.routing.arguments)
            else:
                y_BH, weights_BK, experts_BK = kernels.rms_norm(x_BH, layer.mlp_norm_H, eps), one_B1, first_B1
            kernels.mixture_add(y_BH, weights_BK, experts_BK, layer.gate_up_EJH, layer.down_EHW, x_BH)
        logits_BV: Tensor = kernels.norm_linear(x_BH, self._norm_H, eps, self._head_VH)
        return logits_BV

    def _mix_adapted_into(self, adapted: LoraLayers, index: int, x_BH: Tensor) -> None:
        """A decode step's MLP, routed experts and what every token passes each for itself."""
        kernels, layer = self._kernels, self._layers[index]
        if layer.routing:
            y_BH, weights_BK, experts_BK = kernels.norm_route(
                x_BH, layer.mlp_norm_H, self._eps, *layer.routing.routed_arguments
            )
            adapted.mixture_add(index, y_BH, weights_BK, experts_BK, layer.gate_up_EJH, layer.down_EHW, x_BH)
        else:
            y_BH = kernels.rms_norm(x_BH, layer.mlp_norm_H, self._eps)
        if layer.own_mlp:
            adapted.mlp_add(index, layer.own_mlp, y_BH, x_BH)

    def _mix_adapted(self, adapted: LoraLayers, index: int, y_TH: Tensor) -> Tensor:
        kernels, layer = self._kernels, self._layers[index]
        if layer.routing:
            weights_TK, experts_TK = kernels.route(y_TH, *layer.routing.routed_arguments)
            out_TH = adapted.mixture(index, y_TH, weights_TK, experts_TK, layer.gate_up_EJH, layer.down_EHW)
        else:
            out_TH = torch.zeros_like(y_TH)
        if layer.own_mlp:
            adapted.mlp_add(index, layer.own_mlp, y_TH, out_TH)
        return out_TH

    def _mix(self, layer: PackedLayer, y_TH: Tensor) -> Tensor:
        kernels = self._kernels
        if layer.routing:
            weights_TK, experts_TK = kernels.route(y_TH, *layer.routing.arguments)
            mixed_TH: Tensor = kernels.mixture(y_TH, weights_TK, experts_TK, layer.gate_up_EJH, layer.down_EHW)
            return mixed_TH
        # Many tokens through one expert are two plain products.
        gate_TW, up_TW = kernels.linear(y_TH, layer.gate_up_EJH[0]).chunk(2, dim=1)
        out_TH: Tensor = kernels.linear(F.silu(gate_TW).mul_(up_TW), layer.down_EHW[0])
        return out_TH
