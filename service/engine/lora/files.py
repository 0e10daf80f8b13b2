"""Adapters as PEFT writes them: reading a folder, what its options mean, and which projections its tensors change.

Owns PEFT's names and their way to layers, groups and parts of groups. Knows no slots and no devices. Stateless.

Routed experts have two forms: stacked, as PEFT writes them for this repository's model (`target_parameters`; the gates
and ups of all experts in one pair of matrices, the downs in another, the inner one under the name `base_layer`), and
expert by expert, as adapters of the public checkpoint's own code have them.

Shape letters: R rank, I inputs, O outputs, E experts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from service.engine.lora.registry import AdapterError
from shared.deepseek_ocr.configuration import TextConfig

_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_MODULE = re.compile(r"model\.layers\.(\d+)\.(.+)")
_STACKED = ("mlp.experts", "mlp.experts.base_layer")
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(\w+)")
_UNSERVED = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication",
             "trainable_token_indices", "lora_bias", "fan_in_fan_out")  # fmt: skip
"""Options that change the arithmetic."""
_ATTENTION = {"self_attn.q_proj": ("qkv", 0), "self_attn.k_proj": ("qkv", 1), "self_attn.v_proj": ("qkv", 2),
              "self_attn.o_proj": ("out", 0)}  # fmt: skip
_MLP = {"gate_proj": ("gate_up", 0), "up_proj": ("gate_up", 1), "down_proj": ("down", 0)}
ROUTED = {"gate_up": "routed_gate_up", "down": "routed_down"}
"""Groups of routed experts by those of the other MLPs."""


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """What PEFT writes: tensors by name, and the config."""

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]


def read_adapter(folder: Path | str) -> AdapterFiles:
    """Read a PEFT folder. The weights are read, not mapped: a mapped file that is cut kills the process.

    Args:
        folder: With `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        Both.

    Raises:
        AdapterError: `config_not_json`, `file_missing` or `header_invalid`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        config = json.loads((Path(folder) / "adapter_config.json").read_bytes())
        tensors = load((Path(folder) / "adapter_model.safetensors").read_bytes())
    except OSError as error:
        raise AdapterError("file_missing", str(error)) from error
    except ValueError as error:
        raise AdapterError("config_not_json", str(error)) from error
    except SafetensorError as error:
        raise AdapterError("header_invalid", str(error)) from error
    if not isinstance(config, dict):
        raise AdapterError("config_not_json", "the config is no object")
    return AdapterFiles(tensors, config)


@dataclass(frozen=True, slots=True)
class Pair:
    """One projection's matrices, or those of one projection of several experts."""

    layer: int
    group: str
    part: int
    first: int
    last: int
    """Of the group's experts; a group without has one."""
    a_ERI: Tensor
    b_EOR: Tensor
    """Not yet multiplied by the scaling."""


def find_pairs(tensors: Mapping[str, Tensor], rank: int, text: TextConfig, *, takes_experts: bool) -> list[Pair]:
    """Sort an adapter's tensors by what they change.

    Args:
        tensors: By PEFT's names.
        rank: Of all of them.
        text: The decoder's dimensions.
        takes_experts: Whether routed experts may be changed.

    Returns:
        Pairs whose shapes are right for their projections, none twice.

    Raises:
        AdapterError: With the reason.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise AdapterError("unexpected_tensor", ascii(key[:120]))
        modules.setdefault(match[1], {})[match[2]] = tensor
    if not modules:
        raise AdapterError("tensor_missing", "there are no tensors")
    pairs: list[Pair] = []
    for module, sides in modules.items():
        if sides.keys() != {"A", "B"}:
            raise AdapterError("tensor_missing", f"{module} has lora_{'/'.join(sides)} alone")
        if not all(sides[side].is_floating_point() for side in "AB"):
            raise AdapterError("wrong_dtype", f"{module} has {sides['A'].dtype} and {sides['B'].dtype}")
        match = _MODULE.fullmatch(module)
        if match is None:
            raise AdapterError("target_not_allowed", f"{module[:120]!a} is no projection of a decoder layer")
        name = match[2]
        if name in _STACKED or name.startswith("mlp.experts."):
            if not takes_experts:
                reason = "adapters of routed experts are not served; set adapter_experts"
                raise AdapterError("target_not_allowed", f"{module[:120]!a}: {reason}")
            read = _read_experts
        else:
            read = _read_projection
        pairs += read(int(match[1]), name, sides["A"], sides["B"], rank, text)
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


def read_config(config: Mapping[str, Any], max_rank: int) -> tuple[int, float]:
    """Read what an adapter's numbers mean.

    Args:
        config: What PEFT writes.
        max_rank: That can be served.

    Returns:
        Rank and scaling.

    Raises:
        AdapterError: With the reason.
    """
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if config.get("peft_type", "LORA") != "LORA":
        raise AdapterError("not_lora", f"peft_type is {config['peft_type']!r}")
    switched_on = [name for name in _UNSERVED if config.get(name)]
    if switched_on or config.get("bias", "none") != "none":
        raise AdapterError("unsupported_option", ", ".join([*switched_on, f"bias {config.get('bias', 'none')!r}"]))
    if type(rank) is not int or rank < 1:
        raise AdapterError("config_invalid", f"r is {rank!r}")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise AdapterError("config_invalid", f"lora_alpha is {alpha!r}")
    if rank > max_rank:
        raise AdapterError("rank_too_large", f"rank {rank}, the slots hold {max_rank}")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
