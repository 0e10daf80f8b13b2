"""A decoder's step in one call of compiled code, where its library was built.

Owns how the library is called; `step_library` builds it, and the arithmetic is in `decode_step.c`. A step of a small
model starts some 200 operations, which takes nearly as long as their numbers.
A step may feed several tokens of a row, the newest and drafts: each is computed as if it were alone, but weights, and a
row's keys and values, are read once for all. Used by the engine's single thread.

Shape letters: B rows, T tokens of all rows, H hidden width, O outputs, I inputs, V vocabulary, K drafts, D head width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from service.engine.cpu.layer_weights import LayerWeights
from service.engine.cpu.loaded_library import load_first
from service.engine.cpu.packed_weights import find_levels, in_panels
from service.engine.cpu.step_library import DECODE_STEPS, Library
from service.engine.kernels.int8_rows import nearest_levels
from shared.deepseek_ocr.draft_head import DraftHead

VERSION = 4
"""Of the library's functions; another one's is not called."""
HEAD_DIM = 64
MAX_EXPERTS, MAX_PARTS = 16, 32
MAX_TOKENS = 4
"""Of one row in a step."""


@dataclass(frozen=True, slots=True)
class LanguageHead:
    """From a last layer's residual to logits, and from tokens to embeddings."""

    embeddings_VH: Tensor
    """float32."""
    norm_H: Tensor
    """float32."""
    levels_VH: Tensor
    """Whole numbers of 8 bits."""
    scale_V: Tensor
    """float32; times the levels, the head's weights."""


def language_head(embeddings_VH: Tensor, norm_H: Tensor, weight_VH: Tensor) -> LanguageHead | None:
    """Describe a head as the library takes it.

    Args:
        embeddings_VH: float32.
        norm_H: float32.
        weight_VH: float32.

    Returns:
        The head; None if its weights are not int8 rows with scales, which the library computes exactly, or of another
        shape.
    """
    vocabulary, hidden = weight_VH.shape
    if vocabulary % 16 or embeddings_VH.shape != weight_VH.shape or norm_H.shape != (hidden,):
        return None
    rows = find_levels(weight_VH.detach())
    if rows is None:
        return None
    return LanguageHead(embeddings_VH.detach().contiguous(), norm_H.detach().contiguous(), *rows)


class _Form(IntEnum):
    """Of weights, as the library knows them."""

    PAIRS = 0
    FINE = 1
    COARSE = 2


class _Weights(ctypes.Structure):
    _fields_ = (*((name, ctypes.c_void_p) for name in ("numbers", "scales", "sums")), ("form", ctypes.c_int32))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Weights) for name in ("qkv", "out")),
        *((name, ctypes.POINTER(_Weights)) for name in ("gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("router", "before", "between")),
        *((name, ctypes.c_int32) for name in ("width", "parts", "experts", "top_k", "normalise")),
        ("scale", ctypes.c_float),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        *((name, ctypes.c_void_p) for name in ("embeddings", "norm")),
        ("head", _Weights),
        *((name, ctypes.c_int32) for name in ("num_layers", "hidden", "heads", "vocabulary")),
        ("eps", ctypes.c_float),
    )


class _Room(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in ("wide", "normed", "some", "factors", "scores", "chosen", "levels", "scales", "lows")
    )


class _DraftHead(ctypes.Structure):
    _fields_ = (("mix", _Weights), ("mlp", _Layer), ("norm", ctypes.c_void_p))


class CompiledStep:
    """A decoder's layers, and its heads, as the library takes them: a copy.

    Weights are bfloat16. Where the processor multiplies bytes and all of the layers' weights are int8 rows with scales,
    their levels are kept, and what they multiply is rounded to bytes; so are a draft head's, which changes no text. The
    language head's levels are exact in any form, and what these multiply is then rounded to 15 bits.

    Args:
        library: From `load`.
        layers: What `can_compile` accepts.
        eps: Of the norms.
        head: From `language_head`; None: `run` gives no logits.
        drafts: Proposes tokens, of the decoder's width; only with `head`.

    Attributes:
        build: For which processors the library was built.
        multiplies_bytes: Whether layers are computed by bytes.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        layers: Sequence[LayerWeights],
        eps: float,
        head: LanguageHead | None = None,
        drafts: DraftHead | None = None,
    ) -> None:
        self._step, self._draft = library.decode_step, library.draft_tokens
        self._lanes: int = library.decode_step_lanes()
        self.build = "AVX-512" if self._lanes == 16 else "AVX2"
        self._panel: int = library.decode_step_panel()
        self._kept: list[Any] = []
        in_levels = [self._describe_levels(layer) for layer in layers] if self._panel else [None]
        described = [each for each in in_levels if each is not None]
        self.multiplies_bytes = len(described) == len(layers)
        if not self.multiplies_bytes:
            described = [self._describe(layer.folded()) for layer in layers]
        self._hidden = layers[0].out.shape[0]
        self._vocabulary = 0 if head is None else len(head.levels_VH)
        # 4: the gates and ups of a draft head.
        self._widest = max(4 * self._hidden, self._vocabulary, *(2 * each.width for each in described))
        self._layers = (_Layer * len(described))(*described)
        heads = self._hidden // HEAD_DIM
        outputs = (None, None, _Weights()) if head is None else self._describe_outputs(head)
        self._decoder = _Decoder(self._layers, *outputs, len(described), self._hidden, heads, self._vocabulary, eps)
        self._drafts = None if drafts is None else self._describe_drafts(drafts)
        self._room, self._room_tensors = _Room(), list[Tensor]()
        self._room_for = (0, 0)

    @property
    def gives_logits(self) -> bool:
        """Whether `run` does."""
        return self._vocabulary > 0

    def run(
        self, x_TH: Tensor, cos_TD: Tensor, sin_TD: Tensor, storage: Tensor, cells: Sequence[int], counts: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Put tokens of each row through all layers, and their keys and values into the cache.

        Args:
            x_TH: Embedded tokens, those of a row next to one another, float32, contiguous; changed in place to what the
                last layer leaves.
            cos_TD: Of `packed_decoder.signed_rotary_tables`, float32, at the tokens' positions.
            sin_TD: As the cosines.
            storage: The cache's tensor, `[2, layers, rows, N, capacity, D]`.
            cells: Where each row's first token goes, the others after it; a token sees all cells up to its own.
            counts: Tokens of each row, 1 to `MAX_TOKENS`.

        Returns:
            What the language head reads, `[T, H]`, and logits, `[T, V]`, float32; both empty if there is no head.
        """
        tokens, rows = sum(counts), len(counts)
        _, layers, max_rows, heads, capacity, _ = storage.shape
        # The library checks nothing: what does not fit would be written into other memory.
        assert (layers, heads) == (self._decoder.num_layers, self._decoder.heads)
        assert storage.shape[0] == 2
        assert storage.shape[5] == HEAD_DIM
        assert storage.dtype == torch.bfloat16
        assert 0 < rows == len(cells) <= max_rows
        assert 0 < min(counts) <= max(counts) <= MAX_TOKENS
        assert min(cells) >= 0
        assert all(cell + count <= capacity for cell, count in zip(cells, counts, strict=True))
        assert x_TH.shape == (tokens, self._hidden)
        assert cos_TD.shape == sin_TD.shape == (tokens, HEAD_DIM)
        assert all(each.dtype == torch.float32 for each in (x_TH, cos_TD, sin_TD))
        assert all(each.is_contiguous() for each in (x_TH, cos_TD, sin_TD, storage))
        self._make_room(max_rows, capacity)
        given = tokens if self.gives_logits else 0
        states_TH, logits_TV = x_TH.new_empty(given, self._hidden), x_TH.new_empty(given, self._vocabulary)
        self._step(
            ctypes.byref(self._decoder),
            rows,
            (ctypes.c_int32 * rows)(*counts),
            (ctypes.c_int32 * rows)(*cells),
            *_pointers(x_TH, cos_TD, sin_TD, storage),
            max_rows,
            capacity,
            *_pointers(states_TH, logits_TV),
            ctypes.byref(self._room),
        )
        return states_TH, logits_TV

    def draft(self, states_BH: Tensor, newest: Sequence[int], count: int) -> list[list[int]]:
        """Propose the tokens after rows' newest.

        Args:
            states_BH: What the language head read when it chose these, float32, contiguous; changed in place.
            newest: Ids, one for each row.
            count: How many to propose, at least 1.

        Returns:
            As many for each row, `[B][K]`.
        """
        rows = len(newest)
        assert self._drafts is not None
        assert count > 0
        assert states_BH.shape == (rows, self._hidden)
        assert states_BH.dtype == torch.float32
        assert states_BH.is_contiguous()
        assert 0 <= min(newest) <= max(newest) < self._vocabulary
        self._make_room(rows, 0)
        drafted = (ctypes.c_int32 * (rows * count))()
        self._draft(
            ctypes.byref(self._decoder),
            ctypes.byref(self._drafts),
            rows,
            count,
            *_pointers(states_BH),
            (ctypes.c_int32 * rows)(*newest),
            drafted,
            ctypes.byref(self._room),
        )
        return [drafted[row * count : (row + 1) * count] for row in range(rows)]

    def _make_room(self, rows: int, capacity: int) -> None:
        if rows > self._room_for[0] or capacity > self._room_for[1]:
            self._room_for = rows, capacity = max(rows, self._room_for[0]), max(capacity, self._room_for[1])
            tokens = rows * MAX_TOKENS
            self._room_tensors = [
                torch.empty(tokens, self._widest),
                *(torch.empty(tokens, self._hidden) for _ in range(2)),
                torch.empty(tokens, MAX_PARTS),
                torch.empty(MAX_TOKENS, capacity + 16),
                torch.empty(tokens, dtype=torch.int32),
                torch.empty(tokens, self._widest, dtype=torch.int16),
                *(torch.empty(tokens) for _ in range(2)),
            ]
            self._room = _Room(*(each.data_ptr() for each in self._room_tensors))

    def _describe_outputs(self, head: LanguageHead) -> tuple[int, int, _Weights]:
        embeddings, norm = self._keep(head.embeddings_VH), self._keep(head.norm_H)
        scale_V = head.scale_V.float()
        if self.multiplies_bytes and len(scale_V) % self._panel == 0:
            return embeddings, norm, self._levels(head.levels_VH, scale_V, _Form.FINE)
        levels = self._pairs(head.levels_VH)
        levels.scales = self._keep(scale_V)
        return embeddings, norm, levels

    def _describe_drafts(self, head: DraftHead) -> _DraftHead:
        """With the norms' weights multiplied into the matrices that follow."""
        hidden, ones_H = self._hidden, torch.ones(self._hidden)
        assert head.mix.weight.shape == (hidden, 2 * hidden)
        assert head.gate_up.weight.shape == (4 * hidden, hidden)
        assert head.down.weight.shape == (hidden, 2 * hidden)
        mix = head.mix.weight * torch.cat([ones_H, head.token_norm.weight])
        mlp = _Layer(width=head.down.in_features, parts=1)
        mlp.gate_up = self._array([self._drafting(head.gate_up.weight * head.mlp_norm.weight)])
        mlp.down = self._array([self._drafting(head.down.weight)])
        return _DraftHead(self._drafting(mix), mlp, self._keep(head.norm.weight))

    def _drafting(self, weight_OI: Tensor) -> _Weights:
        if not self.multiplies_bytes:
            return self._pairs(weight_OI)
        return self._levels(*nearest_levels(weight_OI.detach()), _Form.COARSE)

    def _describe(self, layer: LayerWeights) -> _Layer:
        gates_ups = [self._pairs(each) for each in _gates_ups(layer)]
        downs = [self._pairs(each) for each in layer.down.chunk(layer.parts, dim=1)]
        return self._layer(layer, self._pairs(layer.qkv), self._pairs(layer.out), gates_ups, downs)

    def _describe_levels(self, layer: LayerWeights) -> _Layer | None:
        """The layer in levels; None if its weights are none."""
        experts = 0 if layer.router is None else len(layer.router)
        width = layer.down.shape[1] // layer.parts
        if layer.before_H is None or layer.between_H is None or width % self._panel:
            return None
        downs = [find_levels(each.contiguous()) for each in layer.down.split(width, dim=1)[:experts]]
        # What every token passes is one matrix in parts, so that its scales are of all of them.
        common = layer.down[:, experts * width :]
        found = find_levels(common.contiguous()) if common.numel() else None
        if found:
            downs += [(levels_OI, found[1]) for levels_OI in found[0].split(width, dim=1)]
        others = [find_levels(each.detach().contiguous()) for each in (layer.qkv, layer.out, *_gates_ups(layer))]
        if len(downs) < layer.parts or None in downs or None in others:
            return None
        qkv, out, *gates_ups = (self._levels(*each, _Form.COARSE) for each in others if each)
        described = self._layer(
            layer, qkv, out, gates_ups, [self._levels(*each, _Form.COARSE) for each in downs if each]
        )
        described.before, described.between = self._keep(layer.before_H), self._keep(layer.between_H)
        return described

    def _layer(
        self, layer: LayerWeights, qkv: _Weights, out: _Weights, gates_ups: list[_Weights], downs: list[_Weights]
    ) -> _Layer:
        described = _Layer(qkv, out, self._array(gates_ups), self._array(downs))
        if layer.router is not None:
            described.router, described.experts = self._keep(layer.router.float()), len(layer.router)
        described.width, described.parts, described.top_k = layer.down.shape[1], layer.parts, layer.top_k
        described.normalise, described.scale = layer.normalise, layer.scale
        return described

    def _pairs(self, weight_OI: Tensor) -> _Weights:
        outputs, inputs = weight_OI.shape
        blocks = weight_OI.detach().bfloat16().reshape(outputs // self._lanes, self._lanes, inputs // 2, 2)
        return _Weights(self._keep(blocks.transpose(1, 2)), form=_Form.PAIRS)

    def _levels(self, levels_OI: Tensor, scale_O: Tensor, form: _Form) -> _Weights:
        blocks = in_panels(levels_OI.contiguous(), self._panel, 4 if form is _Form.COARSE else 2)
        sums = self._keep(levels_OI.sum(1) * scale_O) if form is _Form.COARSE else None
        return _Weights(self._keep(blocks), self._keep(scale_O), sums, form)

    def _array(self, weights: list[_Weights]) -> ctypes.Array[_Weights]:
        array = (_Weights * len(weights))(*weights)
        self._kept.append(array)
        return array

    def _keep(self, tensor: Tensor) -> int:
        """Where a tensor's numbers are, in their order."""
        tensor = tensor.detach().contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


def _gates_ups(layer: LayerWeights) -> list[Tensor]:
    """Of each part, `[2 * width, H]`."""
    gates, ups = (each.chunk(layer.parts) for each in layer.gate_up.chunk(2))
    return [torch.cat(each) for each in zip(gates, ups, strict=True)]


def can_compile(layers: Sequence[LayerWeights], head_dim: int) -> bool:
    """Whether the library takes layers of these shapes; it does not look at them itself."""
    hidden = layers[0].out.shape[0]
    return head_dim == HEAD_DIM and hidden % HEAD_DIM == 0 and all(_fits(layer, hidden) for layer in layers)


def _fits(layer: LayerWeights, hidden: int) -> bool:
    width = layer.down.shape[1]
    experts = 0 if layer.router is None else len(layer.router)
    return (
        layer.qkv.shape == (3 * hidden, hidden)
        and layer.out.shape == (hidden, hidden)
        and layer.gate_up.shape == (2 * width, hidden)
        and layer.down.shape == (hidden, width)
        and width % (16 * layer.parts) == 0
        and (layer.parts == 1 if layer.router is None else experts <= layer.parts <= MAX_PARTS)
        and experts <= MAX_EXPERTS
        and (layer.router is None or layer.router.shape == (experts, hidden))
    )


def load(libraries: Sequence[Library] = DECODE_STEPS) -> ctypes.CDLL:
    """Load the first library that this processor can run; see `load_first`."""
    return load_first(libraries, "decode_step_version", VERSION)


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(each.data_ptr()) for each in tensors]
