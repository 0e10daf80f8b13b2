"""The library that reads canvases on processors without tiles: which file is loaded, and how it takes weights.

`step_library` builds it. Its products take weights as whole numbers, which is what they are where a checkpoint has int8
rows with scales. Knows no layers. Used by the engine's single thread.

Shape letters: O outputs, I inputs.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from service.engine.cpu.loaded_library import NoLibraryError, load_first
from service.engine.cpu.packed_weights import find_levels, in_panels
from service.engine.cpu.step_library import CANVASES, Library

VERSION = 3
"""Of the library's functions; another one's is not called."""
HEAD_DIM = 64
ROWS = 100
"""Tokens that go through a layer together, at most."""
OUTPUTS = 32
"""Outputs of a matrix are a multiple of it."""
MAX_LEVELS, WEIGHT_LEVELS = 32767, 127


class Matrix(ctypes.Structure):
    """Weights as the library takes them; without outputs there are none."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("levels", "scales", "bias", "sums")),
        *((name, ctypes.c_int32) for name in ("inputs", "outputs")),
    )


class Keeper:
    """Lays out weights, and keeps what the library has addresses of.

    Args:
        library: From `load`.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._panel: int = library.canvases_panel()
        self._coarse: int = library.canvases_coarse()
        self._kept: list[Any] = []

    def matrix(self, weight_OI: Tensor, bias_O: Tensor | None = None, *, is_fine: bool = False) -> Matrix:
        """Weights, and zeros where their outputs are no multiple of `OUTPUTS`.

        Args:
            weight_OI: float32, an even number of inputs, for coarse levels a multiple of four.
            bias_O: Added to the outputs; None: nothing is.
            is_fine: Whether fine levels are multiplied by them, not coarse ones.

        Returns:
            As the library takes them.

        Raises:
            NoLibraryError: They are not levels with a scale for each output.
        """
        rows = find_levels(weight_OI.detach().contiguous())
        if rows is None:
            raise NoLibraryError("weights are not 8-bit rows")
        levels_OI, scale_O = rows
        missing = -len(scale_O) % OUTPUTS
        levels_OI, scale_O = F.pad(levels_OI, (0, 0, 0, missing)), F.pad(scale_O, (0, missing))
        outputs, inputs = levels_OI.shape
        in_a_word = 2 if is_fine else self._coarse
        blocks = in_panels(levels_OI, self._panel, in_a_word)
        bias = None if bias_O is None else self.address(bias_O)
        sums = None if is_fine else self.address(levels_OI.sum(1) * scale_O)
        return Matrix(self.address(blocks), self.address(scale_O), bias, sums, inputs, outputs)

    def address(self, tensor: Tensor) -> int:
        """Where a tensor's numbers are, in their order."""
        tensor = tensor.detach().contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def array(self, structures: Sequence[ctypes.Structure]) -> Any:
        """Structures of one type, one after another."""
        array = (type(structures[0]) * len(structures))(*structures)
        self._kept.append(array)
        return array


def most_levels(inputs: int) -> int:
    """Levels that inputs may have for the sum of so many products to fit into 31 bits."""
    return min(MAX_LEVELS, (2**31 - 1) // (WEIGHT_LEVELS * inputs))


def load(libraries: Sequence[Library] = CANVASES) -> ctypes.CDLL:
    """Load the first library that this processor can run; see `load_first`."""
    library = load_first(libraries, "canvases_version", VERSION)
    library.canvas_room_bytes.restype = library.prompt_room_bytes.restype = ctypes.c_int64
    library.encode_canvas.restype = library.read_prompt.restype = None
    return library


class Rooms:
    """Memory that calls of the library work in, kept for the next ones; may be used by several threads."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    @contextlib.contextmanager
    def room(self, num_bytes: int) -> Iterator[ctypes.c_void_p]:
        """Memory of this size or more, for one call."""
        room = self._free.pop() if self._free else torch.empty(0, dtype=torch.uint8)
        if len(room) < num_bytes:
            room = torch.empty(num_bytes, dtype=torch.uint8)
        try:
            yield ctypes.c_void_p(room.data_ptr())
        finally:
            self._free.append(room)
