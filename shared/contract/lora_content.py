"""What a LoRA's two files hold together: config against tensors, module by module.

Knows the files' content alone: no manifest, no volume, no base model beyond the modules it is told of.

Shape letters: R rank, I inputs, O outputs of a linear module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shared.contract.manifest import LoraRecord
from shared.contract.peft_config import PeftConfig, matches_target, parse_config
from shared.contract.refusals import AdapterRefusedError, Reason
from shared.contract.tensor_file import TensorEntry, is_all_zero, read_header

_KEY = re.compile(r"base_model\.model\.([A-Za-z0-9_]{1,80}(?:\.[A-Za-z0-9_]{1,80}){0,31})\.lora_([AB])\.weight")
"""PEFT's name of a linear module's matrix."""

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ContentLimits:
    """What an adapter may be at most."""

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
    """A LoRA whose files agree."""

    config: PeftConfig
    modules: Mapping[str, LoraModule]
    """By the module's whole name in the base model."""
    dtype: str

    @property
    def record(self) -> LoraRecord:
        """What the manifest says about it."""
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


def read_content(config_path: Path, weights_path: Path, limits: ContentLimits) -> LoraContent:
    """Read and check both files, every value included.

    Args:
        config_path: adapter_config.json.
        weights_path: adapter_model.safetensors. Both are this process's own copies, their sizes already limited.
        limits: What is accepted.

    Returns:
        The LoRA.

    Raises:
        AdapterRefusedError: With the reason; see `peft_config` and `tensor_file` for theirs.
    """
    config = parse_config(config_path.read_bytes())
    if config.rank > limits.max_rank:
        raise AdapterRefusedError(Reason.RANK_TOO_LARGE, f"rank {config.rank}, the limit is {limits.max_rank}")
    with weights_path.open("rb") as weights:
        modules = _modules(read_header(weights, limits.max_tensors))
        dtype = _one_dtype(modules)
        _check_shapes(modules, config.rank)
        _check_targets(modules, config.target_modules)
        _check_values(weights, modules)
    return LoraContent(config, modules, dtype)


def check_modules(content: LoraContent, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Compare an adapter with the base model's linear modules.

    Args:
        content: The adapter.
        shapes: Outputs and inputs of every module that may be adapted, by its whole name.

    Raises:
        AdapterRefusedError: `unknown_module` or `wrong_shape`.
    """
    for name, module in content.modules.items():
        if name not in shapes:
            raise AdapterRefusedError(Reason.UNKNOWN_MODULE, f"{name} is no module of the base model")
        outputs, inputs = shapes[name]
        if (module.up.shape[0], module.down.shape[1]) != (outputs, inputs):
            raise AdapterRefusedError(
                Reason.WRONG_SHAPE,
                f"{name} has {inputs} inputs and {outputs} outputs, the adapter is for "
                f"{module.down.shape[1]} and {module.up.shape[0]}",
            )


def _modules(entries: list[TensorEntry]) -> dict[str, LoraModule]:
    found: dict[str, dict[str, TensorEntry]] = {}
    for entry in entries:
        match = _KEY.fullmatch(entry.name)
        if match is None:
            raise AdapterRefusedError(Reason.UNEXPECTED_TENSOR, f"{entry.name[:120]!a}")
        found.setdefault(match[1], {})[match[2]] = entry
    if not found:
        raise AdapterRefusedError(Reason.TENSOR_MISSING, "the file has no tensors")
    for name, sides in found.items():
        if len(sides) != 2:
            raise AdapterRefusedError(Reason.TENSOR_MISSING, f"{name} has lora_{'/'.join(sides)} alone")
    return {name: LoraModule(sides["A"], sides["B"]) for name, sides in sorted(found.items())}


def _one_dtype(modules: Mapping[str, LoraModule]) -> str:
    dtypes = sorted({entry.dtype for module in modules.values() for entry in (module.down, module.up)})
    if len(dtypes) > 1:
        raise AdapterRefusedError(Reason.WRONG_DTYPE, f"tensors are of {' and '.join(dtypes)}")
    return dtypes[0]


def _check_shapes(modules: Mapping[str, LoraModule], rank: int) -> None:
    for name, module in modules.items():
        down, up = module.down.shape, module.up.shape
        if len(down) != 2 or len(up) != 2 or down[0] != rank or up[1] != rank:
            raise AdapterRefusedError(
                Reason.WRONG_SHAPE, f"{name} has {list(down)} and {list(up)}, which are no matrices of rank {rank}"
            )


def _check_targets(modules: Mapping[str, LoraModule], targets: tuple[str, ...] | None) -> None:
    if targets is None:
        return
    used = set()
    for name in modules:
        target = matches_target(name, targets)
        if target is None:
            raise AdapterRefusedError(Reason.CONFIG_CONFLICT, f"{name} is none of the config's target modules")
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
