"""Adapters that are resident: LoRA matrices of all slots, stacked, one pair of tensors for each group of projections.

Owns those tensors, their layout, and the way there from what PEFT writes. A group is projections that share an input
and are computed as one product: query, key and value; out; gate and up; down. Gate, up and down are those of the dense
MLP or of the shared experts; routed experts are refused for now (they would be further groups, `A [S, E, R, H]`, added
by pair of token and expert).
Knows no sequences. Used by the engine's single thread.

Shape letters: S slots, R largest rank, P parts of a group, Q = P * R, H inputs, G blocks, W outputs of a part in a
block, O = G * P * W outputs, T tokens.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from service.engine.adapters import AdapterError
from shared.deepseek_ocr.configuration import TextConfig

if TYPE_CHECKING:
    from service.engine.loader import EngineLimits
    from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration

_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_MODULE = re.compile(r"model\.layers\.(\d+)\.(.+)")
_UNSERVED = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "target_parameters", "layer_replication",
             "trainable_token_indices", "lora_bias", "fan_in_fan_out")  # fmt: skip
"""Options that change the arithmetic."""
_ATTENTION = {"self_attn.q_proj": ("qkv", 0), "self_attn.k_proj": ("qkv", 1), "self_attn.v_proj": ("qkv", 2),
              "self_attn.o_proj": ("out", 0)}  # fmt: skip
_MLP = {"gate_proj": ("gate_up", 0), "up_proj": ("gate_up", 1), "down_proj": ("down", 0)}


@dataclass(frozen=True, slots=True)
class GroupShape:
    """Dimensions of a group's matrices in one layer."""

    inputs: int
    parts: int
    """Projections side by side: 3 for query, key and value."""
    part_width: int
    """Outputs of a part in one block."""
    blocks: int = 1
    """How often the parts repeat: gates and ups of shared experts that stand expert by expert."""

    @property
    def outputs(self) -> int:
        """O."""
        return self.blocks * self.parts * self.part_width

    def num_values(self, max_rank: int) -> int:
        """Numbers of one slot's matrices."""
        return max_rank * (self.parts * self.inputs + self.outputs)


@dataclass(frozen=True, slots=True)
class LowRank:
    """A group's matrices in one layer, of all slots; `kernels.lora_add` says what they mean."""

    A_SQH: Tensor
    B_SOR: Tensor
    """Multiplied by the adapters' scaling."""
    part_width: int

    def part(self, index: int) -> LowRank:
        """One projection of a group of one block; views."""
        rank, width = self.B_SOR.shape[2], self.part_width
        rows = slice(index * rank, (index + 1) * rank)
        return LowRank(self.A_SQH[:, rows], self.B_SOR[:, index * width : (index + 1) * width], width)


@dataclass(frozen=True, slots=True)
class ExpertLowRank:
    """Matrices of a layer's routed experts, of all slots; `kernels.mixture_lora` says what they mean.

    Shape letters beside the file's: E experts, I their width, J = 2 * I gates and ups, here Q = 2 * R.
    """

    up_A_SEQH: Tensor
    up_B_SEJR: Tensor
    down_A_SERI: Tensor
    down_B_SEHR: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All of them, in order."""
        return self.up_A_SEQH, self.up_B_SEJR, self.down_A_SERI, self.down_B_SEHR


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


def layer_shapes(text: TextConfig, layer: int, *, splits_shared: bool = False) -> dict[str, GroupShape]:
    """Groups of a layer.

    Args:
        text: The decoder's dimensions.
        layer: Its index.
        splits_shared: Whether gates and ups of shared experts stand expert by expert, as `GpuDecoder` has them.

    Returns:
        Shapes by the groups' names.
    """
    hidden = text.hidden_size
    shapes = {"qkv": GroupShape(hidden, 3, hidden), "out": GroupShape(hidden, 1, hidden)}
    blocks = 1
    if layer < text.first_k_dense_replace:
        width = text.intermediate_size
    else:
        width = text.moe_intermediate_size * text.n_shared_experts
        blocks = text.n_shared_experts if splits_shared else 1
    if width:
        shapes |= {"gate_up": GroupShape(hidden, 2, width // blocks, blocks), "down": GroupShape(width, 1, hidden)}
    return shapes


def bank_bytes(text: TextConfig, *, num_slots: int, max_rank: int, value_bytes: int) -> int:
    """Memory of a bank."""
    shapes = [shape for layer in range(text.num_hidden_layers) for shape in layer_shapes(text, layer).values()]
    return num_slots * value_bytes * sum(shape.num_values(max_rank) for shape in shapes)


class AdapterBank:
    """Slots for adapters of one base model.

    Invariant: an empty rank, a projection that an adapter leaves alone, and a slot that nothing was loaded into are
    zeros; all numbers are finite.

    Args:
        text: The decoder's dimensions.
        num_slots: S.
        max_rank: R.
        device: Where the matrices live.
        dtype: Of the matrices, that of the model.
        splits_shared: See `layer_shapes`.
    """

    def __init__(
        self,
        text: TextConfig,
        *,
        num_slots: int,
        max_rank: int,
        device: torch.device | str,
        dtype: torch.dtype,
        splits_shared: bool = False,
    ) -> None:
        self._text = text
        self.num_slots = num_slots
        self.max_rank = max_rank
        self._shapes = [
            layer_shapes(text, layer, splits_shared=splits_shared) for layer in range(text.num_hidden_layers)
        ]
        self.layers: list[dict[str, LowRank]] = [
            {name: _zeros(shape, (num_slots,), max_rank, dtype, device) for name, shape in shapes.items()}
            for shapes in self._shapes
        ]
        # One slot on the host, from which all is copied without waiting.
        is_cuda = torch.device(device).type == "cuda"
        self._staging = [
            {name: _zeros(shape, (), max_rank, dtype, "cpu", pinned=is_cuda) for name, shape in shapes.items()}
            for shapes in self._shapes
        ]
        self._staged = torch.cuda.Event() if is_cuda else None

    @torch.inference_mode()
    def load(self, slot: int, files: AdapterFiles) -> None:
        """Put an adapter into a slot that no row uses; enqueued, so rows that are started afterwards use it.

        Args:
            slot: Whatever was in it is replaced as a whole.
            files: The adapter. Nothing is changed where it is refused.

        Raises:
            AdapterError: With the reason.
        """
        rank, scaling = _read_config(files.config, self.max_rank)
        pairs = self._find_pairs(files.tensors, rank)
        if self._staged:
            self._staged.synchronize()  # the adapter before may still be on its way
        for group in (group for groups in self._staging for group in groups.values()):
            group.A_SQH.zero_()
            group.B_SOR.zero_()
        for (layer, name, part), (a_RI, b_OR) in pairs.items():
            shape, group = self._shapes[layer][name], self._staging[layer][name]
            group.A_SQH.view(shape.parts, self.max_rank, -1)[part, :rank] = a_RI
            target_GWR = group.B_SOR.view(shape.blocks, shape.parts, shape.part_width, -1)[:, part, :, :rank]
            target_GWR.copy_((b_OR.float() * scaling).view(shape.blocks, shape.part_width, rank))
            # In the model's type: what fits into float32 may not fit into float16.
            if not bool(group.A_SQH.isfinite().all()) or not bool(group.B_SOR.isfinite().all()):
                raise AdapterError("not_finite", f"layer {layer}, {name}")
        for staged, resident in zip(self._staging, self.layers, strict=True):
            for name, group in resident.items():
                group.A_SQH[slot].copy_(staged[name].A_SQH, non_blocking=True)
                group.B_SOR[slot].copy_(staged[name].B_SOR, non_blocking=True)
        if self._staged:
            self._staged.record()

    def _find_pairs(
        self, tensors: Mapping[str, Tensor], rank: int
    ) -> dict[tuple[int, str, int], tuple[Tensor, Tensor]]:
        """Matrices by layer, group and part."""
        modules: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            match = _KEY.fullmatch(key)
            if match is None:
                # What PEFT writes for stacked experts looks no different but for the module.
                reason = "target_not_allowed" if ".experts." in key and ".shared_experts." not in key else None
                raise AdapterError(reason or "unexpected_tensor", ascii(key[:120]))
            modules.setdefault(match[1], {})[match[2]] = tensor
        if not modules:
            raise AdapterError("tensor_missing", "there are no tensors")
        pairs = {}
        for module, sides in modules.items():
            layer, name, part = self._place(module)
            if sides.keys() != {"A", "B"}:
                raise AdapterError("tensor_missing", f"{module} has lora_{'/'.join(sides)} alone")
            shape = self._shapes[layer][name]
            expected = [(rank, shape.inputs), (shape.blocks * shape.part_width, rank)]
            found = [tuple(sides[side].shape) for side in "AB"]
            if found != expected:
                raise AdapterError("wrong_shape", f"{module} has {found}, expected {expected}")
            if not all(sides[side].is_floating_point() for side in "AB"):
                raise AdapterError("wrong_dtype", f"{module} has {sides['A'].dtype} and {sides['B'].dtype}")
            pairs[layer, name, part] = sides["A"], sides["B"]
        return pairs

    def _place(self, module: str) -> tuple[int, str, int]:
        """Layer, group and part of a module."""
        match = _MODULE.fullmatch(module)
        if match is None:
            raise AdapterError("target_not_allowed", f"{module[:120]!a} is no projection of a decoder layer")
        layer, rest = int(match[1]), match[2]
        if rest == "mlp.experts" or rest.startswith("mlp.experts."):
            raise AdapterError("target_not_allowed", f"{module}: adapters of routed experts are not served")
        is_dense = layer < self._text.first_k_dense_replace
        mlp = "mlp." if is_dense else "mlp.shared_experts."
        place = _ATTENTION.get(rest) or _MLP.get(rest.removeprefix(mlp) if rest.startswith(mlp) else "")
        if layer >= len(self._shapes) or place is None or place[0] not in self._shapes[layer]:
            raise AdapterError("unknown_module", ascii(module[:120]))
        return layer, *place


def make_bank(
    model: DeepseekOcrForConditionalGeneration, limits: EngineLimits, *, splits_shared: bool = False
) -> AdapterBank | None:
    """The bank that an engine's limits ask for, where the model is; None: none."""
    if not limits.adapter_slots:
        return None
    return AdapterBank(
        model.config.text_config,
        num_slots=limits.adapter_slots,
        max_rank=limits.adapter_max_rank,
        device=model.lm_head.weight.device,
        dtype=model.lm_head.weight.dtype,
        splits_shared=splits_shared,
    )


def _zeros(
    shape: GroupShape,
    slots: tuple[int, ...],
    max_rank: int,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    pinned: bool = False,
) -> LowRank:
    def zeros(*sizes: int) -> Tensor:
        return torch.zeros((*slots, *sizes), dtype=dtype, device=device, pin_memory=pinned)

    return LowRank(zeros(shape.parts * max_rank, shape.inputs), zeros(shape.outputs, max_rank), shape.part_width)


def _read_config(config: Mapping[str, Any], max_rank: int) -> tuple[int, float]:
    """Rank and scaling."""
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
