"""Canvases through both encoders in one call of compiled code, where its library was built.

Owns how the library is called and what shapes it takes; the arithmetic is in `canvas_encoder.c`. Linear
layers round what they multiply to bytes where the processor multiplies these, all else to 15 bits. So the result is the
float32 one within 2 %, or without bytes 0.1 %; in bfloat16 it is within 1.5 %. Used by the engine's single thread,
which encodes as many canvases at once as torch has threads.

Shape letters: C channels, O outputs, N tokens, D decoder width.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeGuard, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.engine.cpu.bands import BandPixels
from service.engine.cpu.canvas_library import HEAD_DIM, OUTPUTS, ROWS, Keeper, Matrix, Rooms, most_levels
from service.engine.cpu.loaded_library import NoLibraryError
from shared.deepseek_ocr.clip import ClipLayer
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.protocol import OcrModel
from shared.deepseek_ocr.sam import ChannelNorm, SamBlock, stored_positions

WINDOW = 10
MAX_LINE = 320
"""Positions of a line after the first convolution."""
PIXEL_STEP = 1 / 255
"""Pixels are the levels `2 * value - 255`."""


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("eps", ctypes.c_float))


class _Convolution(ctypes.Structure):
    _fields_ = (
        ("matrix", Matrix),
        ("norm", _Norm),
        ("step", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("size", "stride")),
    )


class _Block(ctypes.Structure):
    _fields_ = (
        *((name, _Norm) for name in ("before", "between")),
        *((name, Matrix) for name in ("qkv", "out", "up", "down", "relative")),
        *((name, ctypes.c_int32) for name in ("windows", "side", "smooth")),
    )


class _Encoder(ctypes.Structure):
    _fields_ = (
        ("stem", ctypes.POINTER(_Convolution)),
        *((name, ctypes.POINTER(_Block)) for name in ("blocks", "mixing")),
        ("narrow", Matrix),
        ("narrow_norm", _Norm),
        *((name, _Convolution) for name in ("neck", "halve", "widen")),
        ("mixing_norm", _Norm),
        ("projector", Matrix),
        *((name, ctypes.c_int32) for name in ("stem_length", "num_blocks", "num_mixing", "width_px")),
    )


class CanvasEncoder:
    """A model's encoders as the library takes them: a copy of their weights.

    Args:
        library: From `canvas_library.load`.
        model: In float32 on a CPU.

    Raises:
        NoLibraryError: The library does not take such a model; says why.
    """

    def __init__(self, library: ctypes.CDLL, model: OcrModel) -> None:
        if not _can_encode(model):
            raise NoLibraryError("other shapes")
        inner = model.model
        self._library, self._keeper, self._rooms = library, Keeper(library), Rooms()
        self._config, self._positions = model.config.sam_config, inner.sam_model.pos_embed.detach()
        self._embeddings = inner.vision_model.embeddings
        self._decoder_width = model.config.text_config.hidden_size
        self._encoder = self._describe(model)
        self._threads: ThreadPoolExecutor | None = None

    def encode(self, bands: Sequence[BandPixels]) -> list[Tensor]:
        """Encode bands of rows of views, as `encode_bands` of the model does.

        Args:
            bands: Of any rows, at least a window's; of one that ends within a window, this has fewer positions.

        Returns:
            `[N, D]` of each, float32.
        """
        num_threads = torch.get_num_threads()
        if num_threads == 1 or len(bands) == 1:
            return [self._encode(band) for band in bands]
        if self._threads is None:
            self._threads = ThreadPoolExecutor(num_threads, "canvases")
        return list(self._threads.map(self._encode, bands))

    @torch.inference_mode()
    def _encode(self, pixels: BandPixels) -> Tensor:
        config, downsample = self._config, self._config.downsample
        rows, columns = pixels.band.num_rows, config.grid_size // downsample
        pixels_HWC = np.ascontiguousarray(pixels.pixels_HWC)
        height_px = rows * downsample * config.patch_size
        # The library checks nothing: what does not fit would be read from, or written into, other memory.
        assert pixels_HWC.dtype == np.uint8
        assert pixels_HWC.shape == (height_px, config.image_size, 3)
        assert rows * downsample >= WINDOW
        first_patch = pixels.band.first_row * downsample
        patches_1HWC = stored_positions(self._positions, rows * downsample, config.grid_size, first_patch).contiguous()
        tokens_NC = self._token_positions(pixels.band.first_row, rows, columns)
        out_ND = torch.empty(rows * columns, self._decoder_width)
        with self._rooms.room(self._library.canvas_room_bytes(ctypes.byref(self._encoder), height_px)) as room:
            self._library.encode_canvas(
                ctypes.byref(self._encoder),
                ctypes.c_void_p(pixels_HWC.ctypes.data),
                height_px,
                *(ctypes.c_void_p(each.data_ptr()) for each in (patches_1HWC, tokens_NC)),
                room,
                ctypes.c_void_p(out_ND.data_ptr()),
            )
        return out_ND

    def _token_positions(self, first_row: int, rows: int, columns: int) -> Tensor:
        """What the second encoder begins with: the class token, and the positions of the others."""
        stored_LC = self._embeddings.position_embedding.weight
        grid_1HWC = stored_LC[1:].view(1, columns, columns, -1)
        class_1C = (self._embeddings.class_embedding + stored_LC[0]).unsqueeze(0)
        return torch.cat((class_1C, stored_positions(grid_1HWC, rows, columns, first_row).flatten(0, 2)))

    def _describe(self, model: DeepseekOcrForConditionalGeneration) -> _Encoder:
        sam, clip, projector = model.model.sam_model, model.model.vision_model, model.model.projector.layers
        layers = list(cast("nn.Sequential", sam.patch_embed.proj))
        norms = [each for each in layers if isinstance(each, ChannelNorm)]
        convolutions = [each for each in layers if isinstance(each, nn.Conv2d)]
        stem = [
            self._convolution(each, norm, _step(before, each))
            for each, norm, before in zip(convolutions, [*norms, None], [None, *norms], strict=True)
        ]
        blocks = [self._sam_block(cast("SamBlock", each)) for each in sam.blocks]
        mixing = [self._clip_layer(cast("ClipLayer", each)) for each in clip.transformer.layers]
        narrow, narrow_norm, neck, neck_norm = (cast("nn.Conv2d", each) for each in sam.neck)
        return _Encoder(
            *(self._keeper.array(each) for each in (stem, blocks, mixing)),
            self._keeper.matrix(narrow.weight.flatten(1)),
            self._norm(narrow_norm),
            self._convolution(neck, neck_norm, _step(narrow_norm, neck)),
            self._convolution(sam.net_2, None, _step(neck_norm, sam.net_2)),
            self._convolution(sam.net_3, None, 0.0),
            self._norm(clip.pre_layrnorm),
            self._keeper.matrix(projector.weight, projector.bias),
            len(stem),
            len(blocks),
            len(mixing),
            model.config.sam_config.image_size,
        )

    def _sam_block(self, block: SamBlock) -> _Block:
        attention, mlp = block.attn, block.mlp
        linears = (attention.qkv, attention.proj, mlp.lin1, mlp.lin2)
        # From the farthest before on, so that keys of a row follow one another.
        relative = torch.cat((attention.rel_pos_h.flip(0), attention.rel_pos_w.flip(0)))
        side = (len(attention.rel_pos_h) + 1) // 2
        return _Block(
            *(self._norm(norm) for norm in (block.norm1, block.norm2)),
            *(self._keeper.matrix(linear.weight, linear.bias) for linear in linears),
            self._keeper.matrix(relative, is_fine=True),
            block.window_size > 0,
            side,
        )

    def _clip_layer(self, layer: ClipLayer) -> _Block:
        linears = (layer.self_attn.qkv_proj, layer.self_attn.out_proj, layer.mlp.fc1, layer.mlp.fc2)
        return _Block(
            *(self._norm(norm) for norm in (layer.layer_norm1, layer.layer_norm2)),
            *(self._keeper.matrix(linear.weight, linear.bias) for linear in linears),
            smooth=True,
        )

    def _convolution(self, layer: nn.Conv2d, norm: nn.Module | None, step: float) -> _Convolution:
        weight_OHWC = layer.weight.permute(0, 2, 3, 1)
        # Colours become four, as levels go into registers in pairs.
        weight_OHWC = F.pad(weight_OHWC, (0, weight_OHWC.shape[3] % 2))
        matrix = self._keeper.matrix(weight_OHWC.flatten(1), layer.bias, is_fine=True)
        described = _Norm() if norm is None else self._norm(norm)
        return _Convolution(matrix, described, step, layer.kernel_size[0], layer.stride[0])

    def _norm(self, norm: nn.Module) -> _Norm:
        weight, bias = (self._keeper.address(cast("Tensor", each)) for each in (norm.weight, norm.bias))
        return _Norm(weight, bias, cast("float", norm.eps))


def _step(before: nn.Module | None, layer: nn.Conv2d) -> float:
    """What a level of a convolution's inputs is; they are pixels, or normalised, which bounds them."""
    if before is None:
        return PIXEL_STEP
    weight_C, bias_C = cast("Tensor", before.weight).detach(), cast("Tensor", before.bias).detach()
    # Of C numbers of variance 1 none is larger than this root.
    largest_C = weight_C.abs() * math.sqrt(len(weight_C) - 1) + bias_C.abs()
    return float(largest_C.max()) / most_levels(layer.weight[0].numel())


def _can_encode(model: OcrModel) -> TypeGuard[DeepseekOcrForConditionalGeneration]:
    """Whether a model has the shapes that the library takes."""
    if type(model) is not DeepseekOcrForConditionalGeneration:
        return False
    sam, clip, text = model.config.sam_config, model.config.clip_config, model.config.text_config
    outputs = (
        *sam.stem_channels,
        sam.neck_channels,
        *sam.downsample_channels,
        int(sam.hidden_size * sam.mlp_ratio),
        clip.intermediate_size,
        text.hidden_size,
    )
    return (
        all(each % OUTPUTS == 0 for each in outputs)
        and bool(sam.stem_channels)
        and sam.hidden_size == sam.num_attention_heads * HEAD_DIM
        and clip.hidden_size == clip.num_attention_heads * HEAD_DIM == sam.downsample_channels[1]
        and sam.window_size == WINDOW
        and sam.downsample_strides == (2, 1)
        and sam.grid_size == 2 * clip.grid_size
        and clip.grid_size % WINDOW == 0
        and sam.grid_size <= ROWS
        and sam.image_size <= 2 * MAX_LINE
    )
