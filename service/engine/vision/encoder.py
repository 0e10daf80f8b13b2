"""The vision encoders and the projector of DeepSeek-OCR (v1) and nano as one flat pass over a batch of views.

The same function as `model.encode_views`: `sam.SamPass`, then CLIP arranged alike, then the projector, both halves of
whose input are multiplied in place. Calls nothing that waits for the device, so a pass can be captured.

Shape letters: V views, P pixels, C channels, N vision tokens of a view, L = N + 1, T = V * L tokens, E = 3 * C,
D decoder width.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.engine.vision.layers import Activation, Layer, Stream, added, affine, normed, through, weight_of
from service.engine.vision.sam import SamConstants, SamPass
from shared.deepseek_ocr.clip import ClipEncoder, ClipLayer
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.protocol import OcrModel
from shared.deepseek_ocr.sam import resize_positions


@dataclass(frozen=True, slots=True)
class Constants:
    """What the encoders need for views of one size, interpolated once."""

    sam: SamConstants
    clip_positions_NC: Tensor


class VisionEncoder:
    """Encodes views of one size at a time.

    Args:
        model: In evaluation mode, on its device; its vision weights must not move afterwards.
        kernels: `kernels.triton.vision`, or `kernels.reference.vision` on a CPU.
        is_fp8: Whether the encoders' large products are in FP8.
    """

    def __init__(self, model: OcrModel, kernels: ModuleType, *, is_fp8: bool = False) -> None:
        self._model = cast("DeepseekOcrForConditionalGeneration", model).model
        self._kernels: Any = kernels
        self._constants: dict[int, Constants] = {}
        self._first = SamPass(self._model.sam_model, self._model.config.sam_config, kernels, is_fp8=is_fp8)
        clip = self._model.vision_model
        shift: Tensor | None = None
        self._clip_layers = []
        for module in clip.transformer.layers:
            clip_layer, shift = _clip_layer(cast("ClipLayer", module), shift, is_fp8=is_fp8)
            self._clip_layers.append(clip_layer)
        self._pack_projector(self._model.projector.layers, clip, shift)

    @torch.inference_mode()
    def encode(self, views_VPPC: Tensor) -> Tensor:
        """Encode views of one size.

        Args:
            views_VPPC: uint8, RGB, on the model's device, contiguous.

        Returns:
            `[V, N, D]`, as `model.encode_views`.
        """
        constants = self.constants(views_VPPC.shape[1])
        features_VNC = self._first.encode(views_VPPC, constants.sam)
        return self._project(self._second(features_VNC, constants), features_VNC)

    @torch.inference_mode()
    def constants(self, side_px: int) -> Constants:
        """What views of a size need; computed at the first call."""
        if side_px not in self._constants:
            sam = self._first.constants(side_px)
            clip = self._model.vision_model
            stored_LC = clip.embeddings.position_embedding.weight
            grid_1HWC = stored_LC[1:].view(1, clip.embeddings.grid_size, clip.embeddings.grid_size, -1)
            positions_NC = resize_positions(grid_1HWC, sam.tokens, sam.tokens).flatten(0, 2).contiguous()
            self._constants[side_px] = Constants(sam, positions_NC)
        return self._constants[side_px]

    def _second(self, features_VNC: Tensor, constants: Constants) -> Tensor:
        """The second encoder, the class token left out: `[V * N, C]`."""
        clip = self._model.vision_model
        views, tokens, channels = features_VNC.shape
        x_VLC = features_VNC.new_empty(views, tokens + 1, channels)
        x_VLC[:, 0] = clip.embeddings.class_embedding + clip.embeddings.position_embedding.weight[0]
        torch.add(features_VNC, constants.clip_positions_NC, out=x_VLC[:, 1:])
        stream = Stream(normed(x_VLC.flatten(0, 1), affine(clip.pre_layrnorm, None), self._kernels), self._kernels)
        heads = self._model.config.clip_config.num_attention_heads
        for layer in self._clip_layers:
            qkv_TE = stream.linear(layer.before_attention, layer.qkv_weight_EC, layer.qkv_bias_E)
            q, k, v = qkv_TE.view(views, tokens + 1, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, channels)
            stream.add_linear(out, layer.out_weight_CC)
            stream.add_mlp(layer, Activation.QUICK_GELU)
        return stream.tokens().view(x_VLC.shape)[:, 1:].reshape(views * tokens, channels)

    def _project(self, clip_TC: Tensor, features_VNC: Tensor) -> Tensor:
        """To the decoder's width: `[V, N, D]`."""
        weight_DC = self._model.projector.layers.weight
        split = clip_TC.shape[1]
        tokens_TD = torch.addmm(self._projector_bias_D, clip_TC, weight_DC[:, :split].t())
        tokens_TD.addmm_(features_VNC.flatten(0, 1), weight_DC[:, split:].t())
        return tokens_TD.view(*features_VNC.shape[:2], -1)

    @torch.inference_mode()
    def _pack_projector(self, projector: nn.Linear, clip: ClipEncoder, shift_C: Tensor | None) -> None:
        split = clip.embeddings.class_embedding.shape[0]
        self._projector_bias_D = through(projector.weight[:, :split], shift_C, projector.bias)


@torch.inference_mode()
def _clip_layer(module: ClipLayer, shift_C: Tensor | None, *, is_fp8: bool) -> tuple[Layer, Tensor]:
    """A layer of the second encoder, and what the stream lacks after it."""
    after_attention = added(shift_C, module.self_attn.out_proj.bias)
    layer = Layer(
        before_attention=affine(module.layer_norm1, shift_C),
        qkv_weight_EC=weight_of(module.self_attn.qkv_proj.weight, is_fp8=is_fp8),
        qkv_bias_E=module.self_attn.qkv_proj.bias,
        out_weight_CC=module.self_attn.out_proj.weight,
        before_mlp=affine(module.layer_norm2, after_attention),
        up_weight=weight_of(module.mlp.fc1.weight, is_fp8=is_fp8),
        up_bias=module.mlp.fc1.bias,
        down_weight=weight_of(module.mlp.fc2.weight, is_fp8=is_fp8),
    )
    return layer, added(after_attention, module.mlp.fc2.bias)
