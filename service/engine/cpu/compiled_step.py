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

import torch
from torch import Tensor

from service.engine.cpu.layer_weights import LayerWeights
from service.engine.cpu.loaded_library import load_first
from service.engine.cpu.packed_weights import find_levels
from service.engine.cpu.step_library import DECODE_STEPS, Library
from shared.deepseek_ocr.draft_head import DraftHead

VERSION = 3
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


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("qkv", "out", "gate_up", "down", "router")),
        *((name, ctypes.c_int32) for name in ("width", "parts", "experts", "top_k", "normalise")),
        ("scale", ctypes.c_float),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        *((name, ctypes.c_void_p) for name in ("embeddings", "norm", "head", "scales")),
        *((name, ctypes.c_int32) for name in ("num_layers", "hidden", "heads", "vocabulary")),
        ("eps", ctypes.c_float),
    )


class _Room(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("wide", "normed", "some", "factors", "scores", "chosen"))


class _DraftHead(ctypes.Structure):
    _fields_ = (("mix", ctypes.c_void_p), ("mlp", _Layer), ("norm", ctypes.c_void_p))


class CompiledStep:
    """A decoder's layers, and its heads, as the library takes them: a copy in bfloat16.

    Args:
        library: From `load`.
        layers: What `can_compile` accepts.
        eps: Of the norms.
        head: From `language_head`; None: `run` gives no logits.
        drafts: Proposes tokens, of the decoder's width; only with `head`.

    Attributes:
        build: For which processors the library was built.
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
        self._kept: list[Tensor] = []
        described = [self._describe(layer) for layer in layers]
        self._hidden = layers[0].out.shape[0]
        self._vocabulary = 0 if head is None else len(head.levels_VH)
        # 4: the gates and ups of a draft head.
        self._widest = max(4 * self._hidden, self._vocabulary, *(2 * each.width for each in described))
        self._layers = (_Layer * len(described))(*described)
        heads = self._hidden // HEAD_DIM
        outputs = (None,) * 4 if head is None else self._describe_outputs(head)
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
            ]
            self._room = _Room(*(each.data_ptr() for each in self._room_tensors))

    def _describe_outputs(self, head: LanguageHead) -> list[int]:
        return [
            self._keep(head.embeddings_VH),
            self._keep(head.norm_H),
            self._lay_out(head.levels_VH),
            self._keep(head.scale_V.float().contiguous()),
        ]

    def _describe_drafts(self, head: DraftHead) -> _DraftHead:
        """With the norms' weights multiplied into the matrices that follow."""
        hidden, ones_H = self._hidden, torch.ones(self._hidden)
        assert head.mix.weight.shape == (hidden, 2 * hidden)
        assert head.gate_up.weight.shape == (4 * hidden, hidden)
        assert head.down.weight.shape == (hidden, 2 * hidden)
        mix = head.mix.weight * torch.cat([ones_H, head.token_norm.weight])
        mlp = _Layer(gate_up=self._lay_out(head.gate_up.weight * head.mlp_norm.weight))
        mlp.down, mlp.width, mlp.parts = self._lay_out(head.down.weight), head.down.in_features, 1
        return _DraftHead(self._lay_out(mix), mlp, self._keep(head.norm.weight.detach().contiguous()))

    def _describe(self, layer: LayerWeights) -> _Layer:
        hidden, width = layer.down.shape
        by_part = layer.gate_up.view(2, layer.parts, -1, hidden).transpose(0, 1).reshape(2 * width, hidden)
        downs = layer.down.view(hidden, layer.parts, -1).transpose(0, 1).reshape(hidden * layer.parts, -1)
        matrices = [self._lay_out(each) for each in (layer.qkv, layer.out, by_part, downs)]
        router = None if layer.router is None else self._keep(layer.router.detach().float().contiguous())
        experts = 0 if layer.router is None else len(layer.router)
        return _Layer(*matrices, router, width, layer.parts, experts, layer.top_k, layer.normalise, layer.scale)

    def _lay_out(self, weight_OI: Tensor) -> int:
        outputs, inputs = weight_OI.shape
        blocks = weight_OI.detach().bfloat16().view(outputs // self._lanes, self._lanes, inputs // 2, 2)
        return self._keep(blocks.transpose(1, 2).contiguous())

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()


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
