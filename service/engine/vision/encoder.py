"""The vision encoders and the projector as one flat pass over all tokens of a batch of views.

The same function as `model.encode_views`, arranged to move each activation as rarely as possible:

- a product adds to the residual stream itself; the biases it would add are constants, so they are summed beforehand and
  enter where the stream is read, in the norms;
- windows are addressed, not cut out, and the tokens that fill up windows at the edge are never computed: their queries,
  keys and values are the bias of the layer;
- pixels are normalised while they are cut into patches;
- both halves of the projector's input are multiplied in place.

Copies no weight but the patch embedding and the convolutions, whose layouts differ. Holds for DeepSeek-OCR (v1) and
nano. Calls nothing that waits for the device, so a pass can be captured.

Shape letters: V views, H and W patches down and across, P pixels, T = V * H * W tokens, C channels, E = 3 * C,
K distances, D head width, N vision tokens of a view, L = N + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.deepseek_ocr.clip import ClipEncoder, ClipLayer
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.protocol import OcrModel
from shared.deepseek_ocr.registry import kind_of
from shared.deepseek_ocr.sam import SamBlock, resize_positions
from shared.deepseek_ocr.vision import normalise_views


@dataclass(frozen=True, slots=True)
class Affine:
    """A norm's weight and bias with its eps, and what the stream lacks where it reads it (float32)."""

    shift_C: Tensor | None
    weight_C: Tensor
    bias_C: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Layer:
    """A transformer layer's weights; biases of the two products that end in the stream are in the shifts."""

    before_attention: Affine
    qkv_weight_EC: Tensor
    qkv_bias_E: Tensor
    out_weight_CC: Tensor
    before_mlp: Affine
    up_weight: Tensor
    up_bias: Tensor
    down_weight: Tensor


@dataclass(frozen=True, slots=True)
class Constants:
    """What the encoders need for views of one size, interpolated once."""

    side: int
    """Patches along a view."""
    positions_TC: Tensor
    tables: list[tuple[Tensor, Tensor]]
    """Of each layer of the first encoder: embeddings of relative rows and columns, `[K, D]`."""
    clip_positions_NC: Tensor


def can_pack_vision(model: OcrModel) -> bool:
    """Whether the encoders are the ones that this file knows."""
    return kind_of(model).has_fast_vision


class VisionEncoder:
    """Encodes views of one size at a time.

    Args:
        model: In evaluation mode, on its device; its vision weights must not move afterwards.
        kernels: `kernels.triton.vision`, or `kernels.reference.vision` on a CPU.
    """

    def __init__(self, model: OcrModel, kernels: ModuleType) -> None:
        self._model = cast("DeepseekOcrForConditionalGeneration", model).model
        self._kernels: Any = kernels
        self._constants: dict[int, Constants] = {}
        sam, clip = self._model.sam_model, self._model.vision_model
        self._dtype = self._model.image_newline.dtype
        self._patch_px: int = self._model.config.sam_config.patch_size
        self._pack_patch_embedding(sam.patch_embed.proj)
        shift_C = self._patch_bias_C
        self._sam_layers = []
        for block in sam.blocks:
            layer, shift_C = _sam_layer(cast("SamBlock", block), shift_C)
            self._sam_layers.append(layer)
        self._pack_neck(sam.neck, shift_C)
        self._strided = [
            (conv.weight.contiguous(memory_format=torch.channels_last), conv.stride) for conv in (sam.net_2, sam.net_3)
        ]
        shift: Tensor | None = None
        self._clip_layers = []
        for module in clip.transformer.layers:
            clip_layer, shift = _clip_layer(cast("ClipLayer", module), shift)
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
        features_VNC = self._first(views_VPPC, constants)
        return self._project(self._second(features_VNC, constants), features_VNC)

    @torch.inference_mode()
    def constants(self, side_px: int) -> Constants:
        """What views of a size need; computed at the first call."""
        if side_px not in self._constants:
            self._constants[side_px] = self._make_constants(side_px)
        return self._constants[side_px]

    def _make_constants(self, side_px: int) -> Constants:
        sam, clip = self._model.sam_model, self._model.vision_model
        side, rest = divmod(side_px, self._patch_px)
        if rest:
            raise ValueError(f"views of {side_px} px do not divide into patches of {self._patch_px} px")
        tables = []
        for module in sam.blocks:
            block = cast("SamBlock", module)
            size = block.window_size or side
            tables.append((_distances(block.attn.rel_pos_h, size), _distances(block.attn.rel_pos_w, size)))
        tokens = side
        for stride in self._model.config.sam_config.downsample_strides:
            tokens = -(-tokens // stride)
        stored_LC = clip.embeddings.position_embedding.weight
        grid_1HWC = stored_LC[1:].view(1, clip.embeddings.grid_size, clip.embeddings.grid_size, -1)
        return Constants(
            side=side,
            positions_TC=resize_positions(sam.pos_embed, side, side).flatten(0, 2).contiguous(),
            tables=tables,
            clip_positions_NC=resize_positions(grid_1HWC, tokens, tokens).flatten(0, 2).contiguous(),
        )

    def _first(self, views_VPPC: Tensor, constants: Constants) -> Tensor:
        """The first encoder: `[V, N, C]`."""
        sam, kernels, side = self._model.sam_model, self._kernels, constants.side
        heads, views = sam.blocks[0].attn.heads, views_VPPC.shape[0]
        x_TC = self._embed(views_VPPC, constants)
        for layer, (rows_KD, columns_KD), block in zip(self._sam_layers, constants.tables, sam.blocks, strict=True):
            qkv_TE = torch.addmm(layer.qkv_bias_E, self._norm(x_TC, layer.before_attention), layer.qkv_weight_EC.t())
            qkv_VHWE = qkv_TE.view(views, side, side, -1)
            window = cast("SamBlock", block).window_size
            if window:
                out = kernels.window_attention(qkv_VHWE, layer.qkv_bias_E, rows_KD, columns_KD, heads, window)
            else:
                out = kernels.grid_attention(qkv_VHWE, rows_KD, columns_KD, heads)
            del qkv_TE, qkv_VHWE
            x_TC.addmm_(out.reshape(x_TC.shape), layer.out_weight_CC.t())
            del out
            hidden = kernels.linear_gelu(self._norm(x_TC, layer.before_mlp), layer.up_weight, layer.up_bias)
            x_TC.addmm_(hidden, layer.down_weight.t())
            del hidden
        return self._shrink(x_TC, views, side)

    def _embed(self, views_VPPC: Tensor, constants: Constants) -> Tensor:
        """Patches with their positions, without the convolution's bias where it is one convolution: `[T, C]`."""
        views = views_VPPC.shape[0]
        if self._patch_weight_CE is None:  # a stack of convolutions
            x_VHWC = self._model.sam_model.patch_embed(normalise_views(views_VPPC, self._dtype))
            return (x_VHWC.flatten(1, 2) + constants.positions_TC).flatten(0, 1)
        x_TC = constants.positions_TC.repeat(views, 1)
        return x_TC.addmm_(self._kernels.patches(views_VPPC, self._patch_px, self._dtype), self._patch_weight_CE.t())

    def _shrink(self, x_TC: Tensor, views: int, side: int) -> Tensor:
        """The convolutions at the end of the first encoder: `[V, N, C]`."""
        first, second = self._neck_norms
        x_TC = self._norm(torch.addmm(self._neck_bias_C, x_TC, self._neck_weight.t()), first)
        x_VCHW = x_TC.view(views, side, side, -1).permute(0, 3, 1, 2)
        x_VCHW = F.conv2d(x_VCHW, self._neck_conv, padding=1)
        x_VHWC = x_VCHW.permute(0, 2, 3, 1).contiguous()  # no copy where the convolution kept channels last
        x_VCHW = self._norm(x_VHWC.flatten(0, 2), second).view(x_VHWC.shape).permute(0, 3, 1, 2)
        for weight, stride in self._strided:
            x_VCHW = F.conv2d(x_VCHW, weight, stride=stride, padding=1)
        return x_VCHW.permute(0, 2, 3, 1).flatten(1, 2).contiguous()

    def _second(self, features_VNC: Tensor, constants: Constants) -> Tensor:
        """The second encoder, the class token left out: `[V * N, C]`."""
        clip = self._model.vision_model
        views, tokens, channels = features_VNC.shape
        x_VLC = features_VNC.new_empty(views, tokens + 1, channels)
        x_VLC[:, 0] = clip.embeddings.class_embedding + clip.embeddings.position_embedding.weight[0]
        torch.add(features_VNC, constants.clip_positions_NC, out=x_VLC[:, 1:])
        x_TC = self._norm(x_VLC.flatten(0, 1), _affine(clip.pre_layrnorm, None))
        heads = self._model.config.clip_config.num_attention_heads
        for layer in self._clip_layers:
            qkv_TE = torch.addmm(layer.qkv_bias_E, self._norm(x_TC, layer.before_attention), layer.qkv_weight_EC.t())
            q, k, v = qkv_TE.view(views, tokens + 1, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x_TC.shape)
            x_TC.addmm_(out, layer.out_weight_CC.t())
            hidden = self._kernels.linear_quick_gelu(self._norm(x_TC, layer.before_mlp), layer.up_weight, layer.up_bias)
            x_TC.addmm_(hidden, layer.down_weight.t())
        return x_TC.view(x_VLC.shape)[:, 1:].reshape(views * tokens, channels)

    def _project(self, clip_TC: Tensor, features_VNC: Tensor) -> Tensor:
        """To the decoder's width: `[V, N, D]`."""
        weight_DC = self._model.projector.layers.weight
        split = clip_TC.shape[1]
        tokens_TD = torch.addmm(self._projector_bias_D, clip_TC, weight_DC[:, :split].t())
        tokens_TD.addmm_(features_VNC.flatten(0, 1), weight_DC[:, split:].t())
        return tokens_TD.view(*features_VNC.shape[:2], -1)

    def _norm(self, x_TC: Tensor, norm: Affine) -> Tensor:
        normed: Tensor = self._kernels.layer_norm(x_TC, norm.shift_C, norm.weight_C, norm.bias_C, norm.eps)
        return normed

    @torch.inference_mode()
    def _pack_patch_embedding(self, proj: nn.Module) -> None:
        self._patch_weight_CE: Tensor | None = None
        self._patch_bias_C: Tensor | None = None
        if isinstance(proj, nn.Conv2d):
            # Colours last, as pixels lie in a view.
            self._patch_weight_CE = proj.weight.permute(0, 2, 3, 1).flatten(1).contiguous()
            self._patch_bias_C = None if proj.bias is None else proj.bias.float()

    @torch.inference_mode()
    def _pack_neck(self, neck: nn.Sequential, shift_C: Tensor | None) -> None:
        pointwise, first, conv, second = (cast("Any", module) for module in neck)
        self._neck_weight = pointwise.weight.flatten(1)
        self._neck_bias_C = _through(self._neck_weight, shift_C, None)
        self._neck_norms = _affine(first, None), _affine(second, None)
        self._neck_conv = conv.weight.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def _pack_projector(self, projector: nn.Linear, clip: ClipEncoder, shift_C: Tensor | None) -> None:
        split = clip.embeddings.class_embedding.shape[0]
        self._projector_bias_D = _through(projector.weight[:, :split], shift_C, projector.bias)


def _affine(norm: Any, shift_C: Tensor | None) -> Affine:
    return Affine(shift_C=shift_C, weight_C=norm.weight, bias_C=norm.bias, eps=norm.eps)


def _added(shift_C: Tensor | None, bias_C: Tensor) -> Tensor:
    return bias_C.float() if shift_C is None else shift_C + bias_C.float()


def _through(weight: Tensor, shift_C: Tensor | None, bias: Tensor | None) -> Tensor:
    """What a linear layer makes of the stream's shift, with its own bias, in the weight's type."""
    total = torch.zeros(weight.shape[0], device=weight.device) if bias is None else bias.float()
    if shift_C is not None:
        total = total + weight.float() @ shift_C
    return total.to(weight.dtype)


@torch.inference_mode()
def _sam_layer(block: SamBlock, shift_C: Tensor | None) -> tuple[Layer, Tensor]:
    """A layer of the first encoder, and what the stream lacks after it."""
    after_attention = _added(shift_C, block.attn.proj.bias)
    layer = Layer(
        before_attention=_affine(block.norm1, shift_C),
        qkv_weight_EC=block.attn.qkv.weight,
        qkv_bias_E=block.attn.qkv.bias,
        out_weight_CC=block.attn.proj.weight,
        before_mlp=_affine(block.norm2, after_attention),
        up_weight=block.mlp.lin1.weight,
        up_bias=block.mlp.lin1.bias,
        down_weight=block.mlp.lin2.weight,
    )
    return layer, _added(after_attention, block.mlp.lin2.bias)


@torch.inference_mode()
def _clip_layer(module: ClipLayer, shift_C: Tensor | None) -> tuple[Layer, Tensor]:
    """A layer of the second encoder, and what the stream lacks after it."""
    after_attention = _added(shift_C, module.self_attn.out_proj.bias)
    layer = Layer(
        before_attention=_affine(module.layer_norm1, shift_C),
        qkv_weight_EC=module.self_attn.qkv_proj.weight,
        qkv_bias_E=module.self_attn.qkv_proj.bias,
        out_weight_CC=module.self_attn.out_proj.weight,
        before_mlp=_affine(module.layer_norm2, after_attention),
        up_weight=module.mlp.fc1.weight,
        up_bias=module.mlp.fc1.bias,
        down_weight=module.mlp.fc2.weight,
    )
    return layer, _added(after_attention, module.mlp.fc2.bias)


def _distances(table_KD: Tensor, size: int) -> Tensor:
    """Embedding of each distance on a grid `size` wide: `[2 * size - 1, D]`.

    Source:
        As `relative_attention.relative_table`, before it is gathered for pairs.
    """
    distances = 2 * size - 1
    if table_KD.shape[0] == distances:
        return table_KD
    resized = F.interpolate(table_KD.float().t().unsqueeze(0), size=distances, mode="linear")
    return resized[0].t().to(table_KD.dtype).contiguous()
