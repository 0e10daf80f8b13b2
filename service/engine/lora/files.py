"""Adapters as PEFT writes them: reading a folder, and which projections its tensors change.

Owns the mapping from module names to layers, groups and parts of groups. What a config means and how tensors are named
is the contract's (`shared.contract`). Knows no slots and no devices. Stateless.

Routed experts come in two forms: stacked, as PEFT writes them for this repository's model (`target_parameters`: one
pair of matrices for the gates and ups of all experts, another for the downs; PEFT calls the inner of the two
`base_layer`), and expert by expert, as in adapters trained with the public checkpoint's own code.

Shape letters: R rank, I inputs, O outputs, E experts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from service.engine.lora.registry import AdapterError
from shared.contract.lora_content import pair_matrices
from shared.contract.peft_config import PeftConfig, parse_config
from shared.contract.refusals import AdapterRefusedError
from shared.contract.volume import CONFIG_FILE, WEIGHTS_FILE
from shared.deepseek_ocr.configuration import TextConfig

_MODULE = re.compile(r"(.+?\.)(\d+)\.(.+)")
"""Prefix, layer and name in the layer; only routed experts have a second number."""
_STACKED = ("mlp.experts", "mlp.experts.base_layer")
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(\w+)")
_ATTENTION = {"self_attn.q_proj": ("qkv", 0), "self_attn.k_proj": ("qkv", 1), "self_attn.v_proj": ("qkv", 2),
              "self_attn.o_proj": ("out", 0)}  # fmt: skip
_MLP = {"gate_proj": ("gate_up", 0), "up_proj": ("gate_up", 1), "down_proj": ("down", 0)}
ROUTED = {"gate_up": "routed_gate_up", "down": "routed_down"}
"""Groups of routed experts, by the corresponding group of the other MLPs."""


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """The content of an adapter's two files."""

    tensors: Mapping[str, Tensor]
    """By PEFT's names."""
    config: PeftConfig


def read_adapter(folder: Path | str) -> AdapterFiles:
    """Read a PEFT folder. The weights are not memory-mapped: truncating a mapped file kills the process.

    Args:
        folder: Has `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        Config and tensors; the tensors are not yet checked.

    Raises:
        AdapterError: `file_missing`, `header_invalid`, or a reason of `parse_config`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        with _refusals_translated():
            config = parse_config((Path(folder) / CONFIG_FILE).read_bytes(), takes_parameters=True)
        tensors = load((Path(folder) / WEIGHTS_FILE).read_bytes())
    except OSError as error:
        raise AdapterError("file_missing", str(error)) from error
    except SafetensorError as error:
        raise AdapterError("header_invalid", str(error)) from error
    return AdapterFiles(tensors, config)


@dataclass(frozen=True, slots=True)
class Pair:
    """Matrices of one projection, or of the same projection of several experts."""

    layer: int
    group: str
    part: int
    first: int
    last: int
    """Range of the group's experts, `last` included; a group without experts counts as one."""
    a_ERI: Tensor
    b_EOR: Tensor
    """Before scaling."""


def find_pairs(
    tensors: Mapping[str, Tensor], rank: int, text: TextConfig, *, prefixes: Collection[str], takes_experts: bool
) -> list[Pair]:
    """Find the projection that each of an adapter's matrices changes.

    Args:
        tensors: By PEFT's names.
        rank: R, the same for every module.
        text: Dimensions of the base model's decoder.
        prefixes: Of the names of its layers.
        takes_experts: Whether routed experts may be changed.

    Returns:
        Pairs with the right shapes for their projections; no projection occurs twice.

    Raises:
        AdapterError: With the reason.
    """
    with _refusals_translated():
        modules = pair_matrices(tensors)
    pairs: list[Pair] = []
    for module, (a, b) in modules.items():
        if not a.is_floating_point() or not b.is_floating_point():
            raise AdapterError("wrong_dtype", f"{module} has {a.dtype} and {b.dtype}")
        match = _MODULE.fullmatch(module)
        if match is None or match[1] not in prefixes:
            raise AdapterError("target_not_allowed", f"{module[:120]!a} is no projection of a decoder layer")
        name = match[3]
        if name in _STACKED or name.startswith("mlp.experts."):
            if not takes_experts:
                detail = "adapters of routed experts are not served; set DEEPSYNTH_ADAPTER_EXPERTS"
                raise AdapterError("target_not_allowed", f"{module[:120]!a}: {detail}")
            read = _read_experts
        else:
            read = _read_projection
        pairs += read(int(match[2]), name, a, b, rank, text)
    taken: set[tuple[int, str, int, int]] = set()
    for pair in pairs:
        places = {(pair.layer, pair.group, pair.part, expert) for expert in range(pair.first, pair.last + 1)}
        if taken & places:
            raise AdapterError("unexpected_tensor", f"layer {pair.layer}, {pair.group} is changed twice")
        taken |= places
    return pairs


def _read_projection(layer: int, name: str, a: Tensor, b: Tensor, rank: int, text: TextConfig) -> list[Pair]:
    """A projection of the attention, the dense MLP or the shared experts."""
    is_dense = layer < text.first_k_dense_replace
    mlp = "mlp." if is_dense else "mlp.shared_experts."
    place = _ATTENTION.get(name) or _MLP.get(name.removeprefix(mlp) if name.startswith(mlp) else "")
    width = text.intermediate_size if is_dense else text.moe_intermediate_size * text.n_shared_experts
    if layer >= text.num_hidden_layers or place is None or (place[0] in ROUTED and not width):
        raise AdapterError("unknown_module", ascii(f"layer {layer}, {name[:120]}"))
    hidden = text.hidden_size
    inputs = width if place[0] == "down" else hidden
    outputs = width if place[0] == "gate_up" else hidden
    _check_shapes(layer, name, (a, b), ((rank, inputs), (outputs, rank)))
    return [Pair(layer, *place, 0, 0, a.unsqueeze(0), b.unsqueeze(0))]


def _read_experts(layer: int, name: str, a: Tensor, b: Tensor, rank: int, text: TextConfig) -> list[Pair]:
    """Routed experts, in either form."""
    hidden, width, num_experts = text.hidden_size, text.moe_intermediate_size, text.n_routed_experts
    is_mixture = text.first_k_dense_replace <= layer < text.num_hidden_layers
    if is_mixture and name in _STACKED:
        a_ERI = a.unflatten(0, (num_experts, -1)) if a.ndim == 2 and len(a) == num_experts * rank else a
        b_EOR = b.unflatten(1, (-1, num_experts)).permute(2, 0, 1) if b.shape[1:] == (rank * num_experts,) else b
        if len(b) == 2 * width and a.shape[1:] == (hidden,):
            _check_shapes(layer, name, (a_ERI, b_EOR), ((num_experts, rank, hidden), (num_experts, 2 * width, rank)))
            gates_EOR, ups_EOR = b_EOR.chunk(2, dim=1)
            sides = enumerate((gates_EOR, ups_EOR))
            return [Pair(layer, ROUTED["gate_up"], part, 0, num_experts - 1, a_ERI, side) for part, side in sides]
        _check_shapes(layer, name, (a_ERI, b_EOR), ((num_experts, rank, width), (num_experts, hidden, rank)))
        return [Pair(layer, ROUTED["down"], 0, 0, num_experts - 1, a_ERI, b_EOR)]
    match = _EXPERT.fullmatch(name)
    place = _MLP.get(match[2]) if match else None
    if not is_mixture or match is None or place is None or int(match[1]) >= num_experts:
        raise AdapterError("unknown_module", ascii(f"layer {layer}, {name[:120]}"))
    expert, group = int(match[1]), ROUTED[place[0]]
    inputs, outputs = (width, hidden) if place[0] == "down" else (hidden, width)
    _check_shapes(layer, name, (a, b), ((rank, inputs), (outputs, rank)))
    return [Pair(layer, group, place[1], expert, expert, a.unsqueeze(0), b.unsqueeze(0))]


def _check_shapes(
    layer: int, name: str, found: tuple[Tensor, Tensor], expected: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    shapes = tuple(found[0].shape), tuple(found[1].shape)
    if shapes != expected:
        raise AdapterError("wrong_shape", f"layer {layer}, {name[:120]!a} has {shapes}, expected {expected}")


@contextmanager
def _refusals_translated() -> Iterator[None]:
    try:
        yield
    except AdapterRefusedError as error:
        raise AdapterError(error.code, error.detail) from error
