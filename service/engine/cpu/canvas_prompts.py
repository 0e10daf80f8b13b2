"""Prompts of canvases through a decoder in one call of compiled code each, where its library was built.

Owns how the library is called and what shapes it takes; the arithmetic is in `canvas_prompts.c`. Result and cache are
those of the model in float32 up to rounding, as for `canvas_encoder`. Used by the engine's single thread, which reads
as many prompts at once as torch has threads.

Shape letters: B rows, L tokens, H hidden width, N heads, D head width, P positions, V vocabulary.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import torch
from torch import Tensor

from service.engine.cpu.canvas_library import HEAD_DIM, OUTPUTS, Keeper, Matrix, Rooms
from service.engine.cpu.kv_cache import PrefillWindow
from service.engine.cpu.loaded_library import NoLibraryError
from service.engine.cpu.packed_decoder import signed_rotary_tables
from shared.deepseek_ocr.decoder import DecoderLayer
from shared.deepseek_ocr.moe import MixtureOfExperts, Mlp
from shared.deepseek_ocr.protocol import OcrModel
from shared.deepseek_ocr.registry import kind_of

MAX_EXPERTS = 64


class _Mlp(ctypes.Structure):
    _fields_ = (("gate_up", Matrix), ("down", Matrix))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("before", "between")),
        *((name, Matrix) for name in ("qkv", "out")),
        *((name, ctypes.POINTER(_Mlp)) for name in ("common", "experts")),
        ("router", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("num_experts", "top_k", "normalise")),
        ("scale", ctypes.c_float),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        *((name, ctypes.c_int32) for name in ("num_layers", "hidden")),
        ("eps", ctypes.c_float),
    )


class PromptReader:
    """A model's decoder as the library takes it: a copy of its weights.

    Args:
        library: From `canvas_library.load`.
        model: In float32 on a CPU.
        max_tokens: Positions that may occur.

    Raises:
        NoLibraryError: The library does not take such a model; says why.
    """

    def __init__(self, library: ctypes.CDLL, model: OcrModel, max_tokens: int) -> None:
        if not _can_read(model):
            raise NoLibraryError("other shapes")
        text = model.decoder.config
        self._library, self._keeper, self._rooms = library, Keeper(library), Rooms()
        self._num_layers, self._heads, self._hidden = text.num_hidden_layers, text.num_attention_heads, text.hidden_size
        self._norm, self._head = model.decoder.norm, model.lm_head
        self._cos_PD, self._sin_PD = signed_rotary_tables(text, max_tokens)
        layers = self._keeper.array([self._layer(cast("DecoderLayer", each)) for each in model.decoder.layers])
        self._decoder = _Decoder(layers, len(layers), text.hidden_size, text.rms_norm_eps)
        self._threads: ThreadPoolExecutor | None = None

    @torch.inference_mode()
    def read(self, embeds_BLH: Tensor, positions_BL: Tensor, window: PrefillWindow) -> Tensor:
        """Read prompts of one length.

        Args:
            embeds_BLH: Embedded tokens, float32.
            positions_BL: Their positions.
            window: Takes their keys and values.

        Returns:
            Logits of the last tokens, `[B, V]`, float32.
        """
        rows, length, hidden = embeds_BLH.shape
        # The library checks nothing: what does not fit would be read from, or written into, other memory.
        assert positions_BL.shape == (rows, length)
        assert hidden == self._hidden
        assert embeds_BLH.dtype == torch.float32
        x_BLH = embeds_BLH.clone(memory_format=torch.contiguous_format)
        cos_BLD, sin_BLD = self._cos_PD[positions_BL], self._sin_PD[positions_BL]
        kept = torch.empty(2, self._num_layers, rows, self._heads, length, HEAD_DIM)
        num_bytes = self._library.prompt_room_bytes(ctypes.byref(self._decoder), length)

        def read(row: int) -> None:
            parts = (x_BLH[row], cos_BLD[row], sin_BLD[row], kept[0, 0, row], kept[1, 0, row])
            addresses = (ctypes.c_void_p(each.data_ptr()) for each in parts)
            with self._rooms.room(num_bytes) as room:
                layer_step = ctypes.c_int64(kept.stride(1))
                self._library.read_prompt(ctypes.byref(self._decoder), length, *addresses, layer_step, room)

        if rows > 1 and torch.get_num_threads() > 1:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(torch.get_num_threads(), "prompts")
            list(self._threads.map(read, range(rows)))
        else:
            for row in range(rows):
                read(row)
        for layer, (keys_BNLD, values_BNLD) in enumerate(zip(*kept, strict=True)):
            window.update(keys_BNLD, values_BNLD, layer)
        return self._head(self._norm(x_BLH[:, -1]))

    def _layer(self, layer: DecoderLayer) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = torch.cat([each.weight for each in (attention.q_proj, attention.k_proj, attention.v_proj)])
        described = _Layer(
            *(self._keeper.address(each.weight) for each in (layer.input_layernorm, layer.post_attention_layernorm)),
            self._keeper.matrix(qkv),
            self._keeper.matrix(attention.o_proj.weight),
        )
        common = mlp if isinstance(mlp, Mlp) else mlp.shared_experts
        if common:
            gate_up = torch.cat([common.gate_proj.weight, common.up_proj.weight])
            described.common = self._mlps([(gate_up, common.down_proj.weight)])
        if isinstance(mlp, MixtureOfExperts):
            gate, experts = mlp.gate, mlp.experts
            described.experts = self._mlps(list(zip(experts.gate_up_proj, experts.down_proj, strict=True)))
            described.router, described.num_experts = self._keeper.address(gate.weight), len(gate.weight)
            described.top_k, described.normalise = gate.top_k, gate.norm_topk_prob
            described.scale = gate.routed_scaling_factor
        return described

    def _mlps(self, weights: list[tuple[Tensor, Tensor]]) -> ctypes.Array[_Mlp]:
        matrix = self._keeper.matrix
        return self._keeper.array([_Mlp(matrix(gate_up), matrix(down)) for gate_up, down in weights])


def _can_read(model: OcrModel) -> bool:
    """Whether a model has the shapes that the library takes."""
    if not kind_of(model).has_fast_decoder:
        return False
    text = model.decoder.config
    widths = (text.hidden_size, text.intermediate_size, text.moe_intermediate_size)
    return (
        text.hidden_size == text.num_attention_heads * HEAD_DIM
        and text.num_key_value_heads == text.num_attention_heads
        and all(each % OUTPUTS == 0 for each in widths)
        and text.num_experts_per_tok <= text.n_routed_experts <= MAX_EXPERTS
    )
