"""The vision encoders and the projector of DeepSeek-OCR-2 as one flat pass over a batch of views.

The same function as `model.encode_views`: `sam.SamPass`, then a causal transformer over a view's patches and its
learned queries, then the projector. Patches see one another, a query sees all patches and the queries before it; only
queries become vision tokens, so the last layer computes nothing else. Calls nothing that waits for the device, so a
pass can be captured.

Joins queries, keys and values of a layer into one matrix, and gates and ups into another; the model's own weights
become views of them.

Shape letters: V views, P pixels, M patches, N queries, L = M + N tokens of a view, T = V * L, C channels, H heads,
G key and value heads, D head width, E = (H + 2 * G) * D, J gates and ups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.engine.vision.layers import Activation, Affine, Layer, Stream, weight_of
from service.engine.vision.sam import SamConstants, SamPass
from shared.deepseek_ocr.decoder import rotary_tables
from shared.deepseek_ocr.ocr2_parts import native_sam, sam_config
from shared.deepseek_ocr.protocol import OcrModel


@dataclass(frozen=True, slots=True)
class Constants:
    """What the encoders need for views of one size."""

    sam: SamConstants
    queries_NC: Tensor
    mask_LL: Tensor
    """0 where a token may look, else minus infinity."""
    cos_L1D: Tensor
    sin_L1D: Tensor
    """The sign of the rotation's first half included."""


class QueryVisionEncoder:
    """Encodes views of one size at a time.

    Args:
        model: DeepSeek-OCR-2 in evaluation mode, on its device; its vision weights must not move afterwards.
        kernels: `kernels.triton.vision`, or `kernels.reference.vision` on a CPU.
        is_fp8: Whether the encoders' large products are in FP8.
    """

    def __init__(self, model: OcrModel, kernels: ModuleType, *, is_fp8: bool = False) -> None:
        self._kernels: Any = kernels
        self._constants: dict[int, Constants] = {}
        whole: Any = model
        self._tower: Any = whole.model.vision_tower
        self._projector: nn.Linear = whole.model.multi_modal_projector
        self._first = SamPass(native_sam(model), sam_config(model.config), kernels, is_fp8=is_fp8)
        encoder = model.config.vision_config.encoder_config
        self._heads, self._key_heads = encoder.num_attention_heads, encoder.num_key_value_heads
        self._head_dim: int = encoder.hidden_size // encoder.num_attention_heads
        self._theta: float = encoder.rope_parameters["rope_theta"]
        self._eps: float = encoder.rms_norm_eps
        self._layers = [_pack(layer, self._eps, is_fp8=is_fp8) for layer in self._tower.vision_encoder.layers]

    @torch.inference_mode()
    def encode(self, views_VPPC: Tensor) -> Tensor:
        """Encode views of one size.

        Args:
            views_VPPC: uint8, RGB, on the model's device, contiguous.

        Returns:
            `[V, N, width of the decoder]`, as `model.encode_views`.
        """
        constants = self.constants(views_VPPC.shape[1])
        tokens_VNC = self._second(self._first.encode(views_VPPC, constants.sam), constants)
        return F.linear(tokens_VNC, self._projector.weight, self._projector.bias)

    @torch.inference_mode()
    def constants(self, side_px: int) -> Constants:
        """What views of a size need; computed at the first call."""
        if side_px not in self._constants:
            self._constants[side_px] = self._make_constants(side_px)
        return self._constants[side_px]

    def _make_constants(self, side_px: int) -> Constants:
        sam = self._first.constants(side_px)
        patches = sam.tokens**2
        small, large = self._tower.query_768_resolution.weight, self._tower.query_1024_resolution.weight
        queries_NC = small if patches <= len(small) else large
        index_L = torch.arange(patches + len(queries_NC), device=queries_NC.device)
        hidden_LL = index_L[None, :] > index_L[:, None].clamp(min=patches - 1)
        mask_LL = torch.zeros(hidden_LL.shape, dtype=queries_NC.dtype, device=queries_NC.device)
        cos, sin = rotary_tables(index_L[None], self._head_dim, self._theta, queries_NC.dtype)
        sin_L1D = sin[0, 0].unsqueeze(1)
        sin_L1D[..., : self._head_dim // 2].neg_()
        return Constants(
            sam=sam,
            queries_NC=queries_NC,
            mask_LL=mask_LL.masked_fill_(hidden_LL, float("-inf")),
            cos_L1D=cos[0, 0].unsqueeze(1),
            sin_L1D=sin_L1D,
        )

    def _second(self, features_VMC: Tensor, constants: Constants) -> Tensor:
        """The second encoder: `[V, N, C]`."""
        views, patches, channels = features_VMC.shape
        queries_VNC = constants.queries_NC.expand(views, -1, -1)
        x_VLC = torch.cat((features_VMC, queries_VNC), dim=1)
        stream = Stream(x_VLC.flatten(0, 1), self._kernels)
        for layer in self._layers:
            is_last = layer is self._layers[-1]
            first = patches if is_last else 0
            qkv_TE = stream.linear(layer.before_attention, layer.qkv_weight_EC, layer.qkv_bias_E)
            out_VLC = self._attend(qkv_TE.view(views, x_VLC.shape[1], -1, self._head_dim), constants, first)
            if is_last:
                stream = Stream(stream.tokens().view(x_VLC.shape)[:, patches:].flatten(0, 1), self._kernels)
            stream.add_linear(out_VLC.flatten(0, 1), layer.out_weight_CC)
            stream.add_mlp(layer, Activation.GATED)
        normed_TC = self._kernels.rms_norm(stream.tokens(), self._tower.vision_encoder.norm.weight, self._eps)
        tokens_VNC: Tensor = normed_TC.view(views, -1, channels)
        return tokens_VNC

    def _attend(self, qkv_VLED: Tensor, constants: Constants, first: int) -> Tensor:
        """Attention of the tokens from one on: `[V, L, C]`."""
        turning = qkv_VLED[:, :, : self._heads + self._key_heads]
        turned = turning.roll(self._head_dim // 2, dims=-1)
        turned = torch.addcmul(turning * constants.cos_L1D, turned, constants.sin_L1D)
        q_VHLD = turned[:, first:, : self._heads].transpose(1, 2)
        k_VGLD = turned[:, :, self._heads :].transpose(1, 2)
        v_VGLD = qkv_VLED[:, :, self._heads + self._key_heads :].transpose(1, 2)
        # Fused attention with a mask takes as many key heads as query heads.
        repeats = self._heads // self._key_heads
        k_VHLD, v_VHLD = (side.unsqueeze(2).expand(-1, -1, repeats, -1, -1).flatten(1, 2) for side in (k_VGLD, v_VGLD))
        out_VHLD = F.scaled_dot_product_attention(q_VHLD, k_VHLD, v_VHLD, attn_mask=constants.mask_LL[first:])
        return out_VHLD.transpose(1, 2).flatten(2)


def _pack(layer: Any, eps: float, *, is_fp8: bool) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return Layer(
        before_attention=Affine(None, layer.input_layernorm.weight, None, eps),
        qkv_weight_EC=weight_of(_join(projections), is_fp8=is_fp8),
        qkv_bias_E=torch.cat([projection.bias.detach() for projection in projections]),
        out_weight_CC=attention.o_proj.weight,
        before_mlp=Affine(None, layer.post_attention_layernorm.weight, None, eps),
        up_weight=weight_of(_join((mlp.gate_proj, mlp.up_proj)), is_fp8=is_fp8),
        up_bias=None,
        down_weight=weight_of(mlp.down_proj.weight, is_fp8=is_fp8),
    )


def _join(modules: Sequence[nn.Linear]) -> Tensor:
    """One matrix of several modules' rows; their weights become views of it, so that they are in memory once."""
    joined = torch.cat([module.weight.detach() for module in modules])
    parts = joined.split([len(module.weight) for module in modules])
    for module, part in zip(modules, parts, strict=True):
        module.weight = nn.Parameter(part, requires_grad=False)
    return joined
