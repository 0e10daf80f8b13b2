"""The first vision encoder as one flat pass over all tokens of a batch of views.

The same function as `sam.SamEncoder`, arranged to move each activation as rarely as possible:

- biases enter in the norms (see `layers`);
- windows are addressed, not cut out, and the tokens that fill up windows at the edge are never computed: their queries,
  keys and values are the bias of the layer;
- pixels are normalised while they are cut into patches.

Copies no weight but the patch embedding and the convolutions, whose layouts differ, and those that become FP8. Calls
nothing that waits for the device, so a pass can be captured.

Shape letters: V views, H and W patches down and across, P pixels, T = V * H * W tokens, C channels, E = 3 * C,
K distances, D head width, N vision tokens of a view.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.engine.vision.layers import (
    Activation,
    Affine,
    Layer,
    Stream,
    added,
    affine,
    normed,
    through,
    weight_of,
)
from shared.deepseek_ocr.configuration import SamConfig
from shared.deepseek_ocr.sam import SamBlock, SamEncoder, resize_positions
from shared.deepseek_ocr.vision import normalise_views


@dataclass(frozen=True, slots=True)
class SamConstants:
    """What views of one size need, interpolated once."""

    side: int
    """Patches along a view."""
    tokens: int
    """Vision tokens along a view."""
    positions_TC: Tensor
    tables: list[tuple[Tensor, Tensor]]
    """Of each layer: embeddings of relative rows and columns, `[K, D]`."""


class SamPass:
    """Encodes views of one size at a time.

    Args:
        sam: In evaluation mode, on its device; its weights must not move afterwards.
        config: Its dimensions.
        kernels: `kernels.triton.vision`, or `kernels.reference.vision` on a CPU.
        is_fp8: Whether its large products are in FP8.
    """

    def __init__(self, sam: SamEncoder, config: SamConfig, kernels: ModuleType, *, is_fp8: bool = False) -> None:
        self._sam = sam
        self._config = config
        self._kernels: Any = kernels
        self._dtype = sam.pos_embed.dtype
        self._pack_patch_embedding(sam.patch_embed.proj)
        shift_C = self._patch_bias_C
        self._layers = []
        for block in sam.blocks:
            layer, shift_C = _sam_layer(cast("SamBlock", block), shift_C, is_fp8=is_fp8)
            self._layers.append(layer)
        self._pack_neck(sam.neck, shift_C)
        self._strided = [
            (conv.weight.contiguous(memory_format=torch.channels_last), conv.stride) for conv in (sam.net_2, sam.net_3)
        ]

    @torch.inference_mode()
    def constants(self, side_px: int) -> SamConstants:
        """What views of a size need.

        Args:
            side_px: Side of a view.

        Returns:
            New tensors.

        Raises:
            ValueError: The view does not divide into patches.
        """
        sam = self._sam
        side, rest = divmod(side_px, self._config.patch_size)
        if rest:
            raise ValueError(f"views of {side_px} px do not divide into patches of {self._config.patch_size} px")
        tables = []
        for module in sam.blocks:
            block = cast("SamBlock", module)
            size = block.window_size or side
            tables.append((_distances(block.attn.rel_pos_h, size), _distances(block.attn.rel_pos_w, size)))
        tokens = side
        for stride in self._config.downsample_strides:
            tokens = -(-tokens // stride)
        positions_TC = resize_positions(sam.pos_embed, side, side).flatten(0, 2).contiguous()
        return SamConstants(side, tokens, positions_TC, tables)

    def encode(self, views_VPPC: Tensor, constants: SamConstants) -> Tensor:
        """Encode views of one size.

        Args:
            views_VPPC: uint8, RGB, on the encoder's device, contiguous.
            constants: Of this size.

        Returns:
            `[V, N, C]`.
        """
        sam, kernels, side = self._sam, self._kernels, constants.side
        heads, views = self._config.num_attention_heads, views_VPPC.shape[0]
        stream = Stream(self._embed(views_VPPC, constants), kernels)
        for layer, (rows_KD, columns_KD), block in zip(self._layers, constants.tables, sam.blocks, strict=True):
            qkv_TE = stream.linear(layer.before_attention, layer.qkv_weight_EC, layer.qkv_bias_E)
            qkv_VHWE = qkv_TE.view(views, side, side, -1)
            window = cast("SamBlock", block).window_size
            if window:
                out = kernels.window_attention(qkv_VHWE, layer.qkv_bias_E, rows_KD, columns_KD, heads, window)
            else:
                out = kernels.grid_attention(qkv_VHWE, rows_KD, columns_KD, heads)
            del qkv_TE, qkv_VHWE
            stream.add_linear(out.flatten(0, 2), layer.out_weight_CC)
            del out
            stream.add_mlp(layer, Activation.GELU)
        return self._shrink(stream.tokens(), views, side)

    def _embed(self, views_VPPC: Tensor, constants: SamConstants) -> Tensor:
        """Patches with their positions, without the convolution's bias where it is one convolution: `[T, C]`."""
        views = views_VPPC.shape[0]
        if self._patch_weight_CE is None:  # a stack of convolutions
            x_VHWC = self._sam.patch_embed(normalise_views(views_VPPC, self._dtype))
            return (x_VHWC.flatten(1, 2) + constants.positions_TC).flatten(0, 1)
        x_TC = constants.positions_TC.repeat(views, 1)
        return x_TC.addmm_(
            self._kernels.patches(views_VPPC, self._config.patch_size, self._dtype), self._patch_weight_CE.t()
        )

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

    def _norm(self, x_TC: Tensor, norm: Affine) -> Tensor:
        return normed(x_TC, norm, self._kernels)

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
        self._neck_bias_C = through(self._neck_weight, shift_C, None)
        self._neck_norms = affine(first, None), affine(second, None)
        self._neck_conv = conv.weight.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def _sam_layer(block: SamBlock, shift_C: Tensor | None, *, is_fp8: bool) -> tuple[Layer, Tensor]:
    """A layer of the first encoder, and what the stream lacks after it."""
    after_attention = added(shift_C, block.attn.proj.bias)
    layer = Layer(
        before_attention=affine(block.norm1, shift_C),
        qkv_weight_EC=weight_of(block.attn.qkv.weight, is_fp8=is_fp8),
        qkv_bias_E=block.attn.qkv.bias,
        out_weight_CC=block.attn.proj.weight,
        before_mlp=affine(block.norm2, after_attention),
        up_weight=weight_of(block.mlp.lin1.weight, is_fp8=is_fp8),
        up_bias=block.mlp.lin1.bias,
        down_weight=weight_of(block.mlp.lin2.weight, is_fp8=is_fp8),
    )
    return layer, added(after_attention, block.mlp.lin2.bias)


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
