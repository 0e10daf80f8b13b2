"""Steps of the rounded decoder in one call of compiled code, where its library was built.

Owns how the library is called; `step_library` builds it, and the arithmetic is in `decode_step.c`. A step of a small
model starts some 200 operations, which takes nearly as long as their numbers. Without the library steps are torch's.
Used by the engine's single thread.

Shape letters: B rows, H hidden width, O outputs, I inputs, P positions, D head width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from service.engine.cpu.kv_cache import DecodeWindow
from service.engine.cpu.step_library import DECODE_STEP

VERSION = 1
"""Of the library's functions; another one's is not called."""
HEAD_DIM = 64
MAX_EXPERTS, MAX_PARTS = 16, 32


class NoLibraryError(Exception):
    """Steps are torch's; says why in a few words."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """A layer's matrices, `[O, I]`, float32, with the norms' weights multiplied in."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    """Gates of all parts, then ups."""
    down: Tensor
    router: Tensor | None
    parts: int = 1
    """Of the MLP, equally wide: experts, then what every token passes."""
    top_k: int = 0
    normalise: bool = False
    scale: float = 1.0


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("qkv", "out", "gate_up", "down", "router")),
        *((name, ctypes.c_int32) for name in ("width", "parts", "experts", "top_k", "normalise")),
        ("scale", ctypes.c_float),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        *((name, ctypes.c_int32) for name in ("num_layers", "hidden", "heads")),
        ("eps", ctypes.c_float),
    )


class CompiledStep:
    """A decoder's layers as the library takes them: a copy in bfloat16.

    Args:
        library: From `load`.
        layers: What `can_compile` accepts.
        eps: Of the norms.
    """

    def __init__(self, library: ctypes.CDLL, layers: Sequence[LayerWeights], eps: float) -> None:
        self._step = library.decode_step
        self._kept: list[Tensor] = []
        described = [self._describe(layer) for layer in layers]
        self._hidden = layers[0].out.shape[0]
        self._widest = max(3 * self._hidden, *(2 * each.width for each in described))
        self._layers = (_Layer * len(described))(*described)
        heads = self._hidden // HEAD_DIM
        self._decoder = _Decoder(self._layers, len(described), self._hidden, heads, eps)
        self._room: tuple[Tensor, ...] = ()
        self._room_for = (0, 0)

    def run(self, x_BH: Tensor, cos_BD: Tensor, sin_BD: Tensor, window: DecodeWindow) -> None:
        """Put a token of each row through all layers, and its keys and values into the cache.

        Args:
            x_BH: Embedded tokens, float32, contiguous; changed in place.
            cos_BD: Of `packed_decoder.signed_rotary_tables`, float32, at the tokens' positions.
            sin_BD: As the cosines.
            window: Of this step; one that hides no cells but those after a row's own.
        """
        storage, rows = window.storage, len(x_BH)
        _, layers, max_rows, heads, capacity, _ = storage.shape
        # The library checks nothing: what does not fit would be written into other memory.
        assert not window.hides_cells
        assert (layers, heads) == (self._decoder.num_layers, self._decoder.heads)
        assert storage.shape[0] == 2
        assert storage.shape[5] == HEAD_DIM
        assert storage.dtype == torch.bfloat16
        assert 0 < rows == len(window.cells) <= max_rows
        assert 0 <= min(window.cells) <= max(window.cells) < capacity
        assert x_BH.shape[1] == self._hidden
        assert cos_BD.shape == sin_BD.shape == (rows, HEAD_DIM)
        assert all(each.dtype == torch.float32 for each in (x_BH, cos_BD, sin_BD))
        assert all(each.is_contiguous() for each in (x_BH, cos_BD, sin_BD, storage))
        if self._room_for != (max_rows, capacity):
            self._room_for = max_rows, capacity
            self._room = (
                torch.empty(max_rows, self._widest),
                torch.empty(max_rows, self._hidden),
                torch.empty(max_rows, self._widest, dtype=torch.bfloat16),
                torch.empty(capacity + 16),
            )
        self._step(
            ctypes.byref(self._decoder),
            rows,
            *(ctypes.c_void_p(each.data_ptr()) for each in (x_BH, cos_BD, sin_BD, storage)),
            max_rows,
            capacity,
            (ctypes.c_int32 * rows)(*window.cells),
            *(ctypes.c_void_p(each.data_ptr()) for each in self._room),
        )

    def _describe(self, layer: LayerWeights) -> _Layer:
        matrices = [self._keep(_laid_out(each)) for each in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        router = None if layer.router is None else self._keep(layer.router.detach().float().contiguous())
        experts = 0 if layer.router is None else len(layer.router)
        width = layer.down.shape[1]
        return _Layer(*matrices, router, width, layer.parts, experts, layer.top_k, layer.normalise, layer.scale)

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


def load(path: Path = DECODE_STEP.path) -> ctypes.CDLL:
    """Load the library.

    Args:
        path: Its file.

    Returns:
        Its functions.

    Raises:
        NoLibraryError: It was not built, is another version's or has no place on this processor; says which.
    """
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if not capabilities.get("avx512_bf16"):
        raise NoLibraryError("no AVX-512 BF16")
    if not path.is_file():
        raise NoLibraryError("not built")
    try:
        library = ctypes.CDLL(str(path))
        version = library.decode_step_version()
    except (OSError, AttributeError):
        raise NoLibraryError("the library cannot be loaded") from None
    if version != VERSION:
        raise NoLibraryError("the library is another version's")
    return library


def _laid_out(weight_OI: Tensor) -> Tensor:
    outputs, inputs = weight_OI.shape
    blocks = weight_OI.detach().bfloat16().view(outputs // 16, 16, inputs // 2, 2)
    return blocks.transpose(1, 2).contiguous()
