"""Merges an adapter into its base model: a full checkpoint in the public layout, shard by shard.

Owns the arithmetic (`W + scaling * B A` in float32, rounded once) and the files of the new folder. Works on the files,
not on a loaded model, where tensors have the modules' names: the result has the same tensors, shards and companion
files as the base, so whatever loads the base loads it. Whether it reads as base and adapter do, `agreement` decides.

Shape letters: R rank, I inputs, O outputs of a linear module.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shared.contract.shipped import local_model
from shared.deepseek_ocr.checkpoint import (
    CONFIG_FILE,
    INDEX_FILE,
    CheckpointError,
    read_config,
    share_weights,
    weight_files,
)
from shared.deepseek_ocr.loading import HUB_FILES, find_checkpoint
from shared.deepseek_ocr.quantisation import SCALE_SUFFIX, dequantise_rows
from shared.deepseek_ocr.registry import find_kind
from trainer.publishing.agreement import MergeError
from trainer.reading.adapters import AdapterFolder

DTYPES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
WEIGHT: Final = ".weight"
COMPANIONS: Final = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template*",
    "processor_config.json", "preprocessor_config.json", "generation_config.json", "*.py", "LICENSE*",
)  # fmt: skip
"""Files that are copied as they are. The base's card and records describe other weights; so does its calibration."""


@dataclass(frozen=True, slots=True)
class MergedWeights:
    """What was written.

    Attributes:
        modules: number of changed weight matrices.
        dtype: of those matrices.
        rounding_ratio: norm of what rounding to `dtype` took from or added to the adapter's change, over the norm of
            the change; 0 is exact.
    """

    modules: int
    dtype: str
    rounding_ratio: float


@dataclass(slots=True)
class _Rounding:
    """Sums of squares over all modules: of the change, and of its error."""

    change: float = 0.0
    error: float = 0.0


def download_base(folder_or_repo: str) -> Path:
    """The folder of a base model with every file that a merged checkpoint takes over, downloaded if necessary.

    Args:
        folder_or_repo: a folder, or a repository `owner/name` of the Hub.

    Returns:
        The folder.

    Raises:
        CheckpointError: There is no such checkpoint.
    """
    folder, _ = find_checkpoint(folder_or_repo)
    if Path(local_model(folder_or_repo)).is_dir():
        return folder
    # Readers need neither the code of a repository nor its processor's configuration; other engines do.
    return Path(snapshot_download(folder_or_repo, allow_patterns=[*HUB_FILES, *COMPANIONS]))


def write_merged(base: Path, adapter: AdapterFolder, target: Path, dtype: str | None = None) -> MergedWeights:
    """Write base and adapter as one checkpoint.

    Args:
        base: folder of the base model.
        adapter: from `read_adapter`.
        target: a new folder.
        dtype: of all floating-point tensors, a key of `DTYPES`. None keeps each tensor's type; int8 rows become
            float32, which holds them exactly.

    Returns:
        What was written.

    Raises:
        CheckpointError: The base is not a checkpoint of this family.
        MergeError: A module of the adapter is not in the base (`module_unknown`), has another shape
            (`shape_mismatch`), or the merged weights are not finite (`not_finite`).
    """
    config = read_config(base)
    kind = find_kind(config.get("model_type"))
    if kind is None:
        raise CheckpointError(f"{base}: config.json has the unknown model_type {config.get('model_type')!r}")
    shards = weight_files(base)
    target.mkdir(parents=True)
    if kind.names_are_tensors:
        merged = _merge_files(shards, adapter, target, DTYPES[dtype] if dtype else None)
        (target / CONFIG_FILE).write_text(json.dumps(_config(config, merged.dtype), indent=2) + "\n", encoding="utf-8")
    else:
        merged = _merge_model(base, adapter, target, dtype)
    share_weights(target, CONFIG_FILE)
    for pattern in COMPANIONS:
        for path in sorted(base.glob(pattern)):
            if path.is_file() and not (target / path.name).exists():
                shutil.copyfile(path, target / path.name)
    return merged


def _merge_files(
    shards: Sequence[Path], adapter: AdapterFolder, target: Path, dtype: torch.dtype | None
) -> MergedWeights:
    rounding = _Rounding()
    found: dict[str, torch.dtype] = {}
    places: dict[str, str] = {}
    size_bytes = 0
    for shard in shards:
        tensors: dict[str, Tensor] = {}
        for key, tensor in _read(shard):
            module = key.removesuffix(WEIGHT)
            stored = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            if key.endswith(WEIGHT) and module in adapter.modules:
                tensors[key] = _merged(module, tensor, stored, adapter, rounding).contiguous()
                found[module] = stored
            else:
                tensors[key] = tensor.to(stored).contiguous()
            places[key] = shard.name
            size_bytes += tensors[key].nbytes
        save_file(tensors, target / shard.name, metadata={"format": "pt"})
    _check_found(adapter, found)
    if shards[0].with_name(INDEX_FILE).is_file():
        index = {"metadata": {"total_size": size_bytes}, "weight_map": dict(sorted(places.items()))}
        (target / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return MergedWeights(len(found), _name(next(iter(found.values()))), _ratio(rounding))


def _merge_model(base: Path, adapter: AdapterFolder, target: Path, dtype: str | None) -> MergedWeights:
    """By way of transformers' class, which saves under the file's names what it renames when loading."""
    from transformers import AutoModelForImageTextToText

    chosen: Any = DTYPES[dtype] if dtype else "auto"
    model: Any = AutoModelForImageTextToText.from_pretrained(base, dtype=chosen, local_files_only=True)
    weights = dict(model.named_parameters())
    rounding = _Rounding()
    found: dict[str, torch.dtype] = {}
    with torch.no_grad():
        for module in adapter.modules:
            weight = weights.get(f"{module}{WEIGHT}")
            if weight is None:
                continue
            found[module] = weight.dtype
            weight.copy_(_merged(module, weight, weight.dtype, adapter, rounding))
    _check_found(adapter, found)
    model.save_pretrained(target)
    return MergedWeights(len(found), _name(next(iter(found.values()))), _ratio(rounding))


def _read(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file by name, int8 rows as float32."""
    try:
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            for key in sorted(keys):
                if key.endswith(SCALE_SUFFIX) and key.removesuffix(SCALE_SUFFIX) in keys:
                    continue
                tensor = file.get_tensor(key)
                if tensor.dtype == torch.int8 and key + SCALE_SUFFIX in keys:
                    tensor = dequantise_rows(tensor, file.get_tensor(key + SCALE_SUFFIX))
                yield key, tensor
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _merged(module: str, weight_OI: Tensor, stored: torch.dtype, adapter: AdapterFolder, rounding: _Rounding) -> Tensor:
    """The new weight in its stored type."""
    down_RI, up_OR = (matrix.float() for matrix in adapter.modules[module])
    if weight_OI.shape != (up_OR.shape[0], down_RI.shape[1]):
        raise MergeError(
            "shape_mismatch",
            f"{module} is {list(weight_OI.shape)} in the base, the adapter is for {[up_OR.shape[0], down_RI.shape[1]]}",
            "name the base model that it was trained on with --base",
        )
    change_OI = adapter.config.scaling * (up_OR @ down_RI)
    merged_OI = (weight_OI.float() + change_OI).to(stored)
    if not bool(torch.isfinite(merged_OI).all()):
        raise MergeError("not_finite", f"{module} is not finite as {_name(stored)}", "use --dtype float32")
    error_OI = merged_OI.float() - weight_OI.float() - change_OI
    rounding.change += float(change_OI.double().square().sum())
    rounding.error += float(error_OI.double().square().sum())
    return merged_OI


def _check_found(adapter: AdapterFolder, found: Mapping[str, object]) -> None:
    missing = sorted(adapter.modules.keys() - found.keys())
    if missing:
        raise MergeError(
            "module_unknown",
            f"the base has no weights for {len(missing)} of {len(adapter.modules)} adapted modules, first {missing[0]}",
            "name the base model that it was trained on with --base",
        )


def _config(values: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The base's configuration with the new type under the name that it has there: `dtype` in newer files."""
    return values | {"dtype" if "dtype" in values else "torch_dtype": dtype}


def _ratio(rounding: _Rounding) -> float:
    return (rounding.error / rounding.change) ** 0.5 if rounding.change else 0.0


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
