"""A LoRA's content: names of its tensors, and whether config and tensors agree, module by module.

Knows only the content of the two files: no manifest, no volume, and of the base model only the modules it is given.

Shape letters: R rank, I inputs, O outputs of a linear module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from shared.contract.manifest import LoraRecord
from shared.contract.peft_config import PeftConfig, matches_target, parse_config
from shared.contract.refusals import AdapterRefusedError, Reason
from shared.contract.tensor_file import TensorEntry, is_all_zero, read_header

_KEY = re.compile(r"base_model\.model\.([A-Za-z0-9_]{1,80}(?:\.[A-Za-z0-9_]{1,80}){0,31})\.lora_([AB])\.weight")
"""PEFT's name for a module's matrix."""
_Tensor = TypeVar("_Tensor")

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ContentLimits:
    """The largest adapter that is accepted."""

    max_rank: int = 128
    max_tensors: int = 5000
    max_weights_bytes: int = 512 * MIB


@dataclass(frozen=True, slots=True)
class LoraModule:
    """The two matrices of one module."""

    down: TensorEntry
    """lora_A, `[R, I]`."""
    up: TensorEntry
    """lora_B, `[O, R]`."""


@dataclass(frozen=True, slots=True)
class LoraContent:
    """A LoRA whose config and tensors agree."""

    config: PeftConfig
    modules: Mapping[str, LoraModule]
    """By the module's whole name in the base model, sorted."""
    dtype: str

    @property
    def record(self) -> LoraRecord:
        """Its entry in the manifest."""
        return LoraRecord.model_validate(
            {
                "rank": self.config.rank,
                "alpha": self.config.alpha,
                "use_rslora": self.config.use_rslora,
                "dtype": self.dtype,
                "targets": tuple(sorted({name.rsplit(".", 1)[-1] for name in self.modules})),
                "num_tensors": 2 * len(self.modules),
            }
        )


def pair_matrices(tensors: Mapping[str, _Tensor]) -> dict[str, tuple[_Tensor, _Tensor]]:
    """Find the two matrices of each adapted module.

    Args:
        tensors: By PEFT's names, such as `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.

    Returns:
        lora_A and lora_B by the module's whole name in the base model, sorted by that name.

    Raises:
        AdapterRefusedError: `unexpected_tensor` or `tensor_missing`.
    """
    found: dict[str, dict[str, _Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise AdapterRefusedError(Reason.UNEXPECTED_TENSOR, f"{key[:120]!a}")
        found.setdefault(match[1], {})[match[2]] = tensor
    if not found:
        raise AdapterRefusedError(Reason.TENSOR_MISSING, "the file has no LoRA matrices")
    for name, sides in found.items():
        if len(sides) != 2:
            raise AdapterRefusedError(
                Reason.TENSOR_MISSING, f"{name} has only one of the two matrices, lora_{next(iter(sides))}"
            )
    return {name: (sides["A"], sides["B"]) for name, sides in sorted(found.items())}


def read_content(config_path: Path, weights_path: Path, limits: ContentLimits) -> LoraContent:
    """Read and check both files, including every value.

    Args:
        config_path: adapter_config.json.
        weights_path: adapter_model.safetensors. Both files are private copies whose sizes were checked.
        limits: Bounds on rank and number of tensors; the caller has checked the size in bytes.

    Returns:
        The LoRA.

    Raises:
        AdapterRefusedError: With any reason of `peft_config` or `tensor_file`, or because the files disagree.
    """
    config = parse_config(config_path.read_bytes())
    if config.rank > limits.max_rank:
        raise AdapterRefusedError(Reason.RANK_TOO_LARGE, f"rank {config.rank}, the limit is {limits.max_rank}")
    with weights_path.open("rb") as weights:
        entries = {entry.name: entry for entry in read_header(weights, limits.max_tensors)}
        modules = {name: LoraModule(down, up) for name, (down, up) in pair_matrices(entries).items()}
        dtype = _one_dtype(modules)
        _check_shapes(modules, config.rank)
        _check_targets(modules, config.target_modules)
        _check_values(weights, modules)
    return LoraContent(config, modules, dtype)


def check_modules(content: LoraContent, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Compare an adapter with the base model's linear modules.

    Args:
        content: The adapter, already checked by itself.
        shapes: `(O, I)` of every module that may be adapted, by its whole name.

    Raises:
        AdapterRefusedError: `unknown_module` or `wrong_shape`.
    """
    for name, module in content.modules.items():
        if name not in shapes:
            raise AdapterRefusedError(Reason.UNKNOWN_MODULE, f"the base model has no module {name}")
        outputs, inputs = shapes[name]
        if (module.up.shape[0], module.down.shape[1]) != (outputs, inputs):
            raise AdapterRefusedError(
                Reason.WRONG_SHAPE,
                f"{name} has {inputs} inputs and {outputs} outputs, the adapter is for "
                f"{module.down.shape[1]} and {module.up.shape[0]}",
            )


def _one_dtype(modules: Mapping[str, LoraModule]) -> str:
    dtypes = sorted({entry.dtype for module in modules.values() for entry in (module.down, module.up)})
    if len(dtypes) > 1:
        raise AdapterRefusedError(Reason.WRONG_DTYPE, f"tensors have the types {' and '.join(dtypes)}")
    return dtypes[0]


def _check_shapes(modules: Mapping[str, LoraModule], rank: int) -> None:
    for name, module in modules.items():
        down, up = module.down.shape, module.up.shape
        if len(down) != 2 or len(up) != 2 or down[0] != rank or up[1] != rank:
            raise AdapterRefusedError(
                Reason.WRONG_SHAPE, f"{name} has shapes {list(down)} and {list(up)}, which do not fit rank {rank}"
            )


def _check_targets(modules: Mapping[str, LoraModule], targets: tuple[str, ...] | None) -> None:
    if targets is None:
        return
    used = set()
    for name in modules:
        target = matches_target(name, targets)
        if target is None:
            raise AdapterRefusedError(Reason.CONFIG_CONFLICT, f"{name} is not among the config's target modules")
        used.add(target)
    unused = sorted(set(targets) - used)
    if unused:
        raise AdapterRefusedError(
            Reason.TARGET_WITHOUT_TENSORS, f"no tensor belongs to {', '.join(ascii(name[:60]) for name in unused[:5])}"
        )


def _check_values(weights: BinaryIO, modules: Mapping[str, LoraModule]) -> None:
    has_effect = False
    for name, module in modules.items():
        if is_all_zero(weights, module.down):
            raise AdapterRefusedError(Reason.ZEROED, f"lora_A of {name} is all zeros")
        has_effect |= not is_all_zero(weights, module.up)
    if not has_effect:
        raise AdapterRefusedError(Reason.NO_EFFECT, f"lora_B is zero in all {len(modules)} modules")
