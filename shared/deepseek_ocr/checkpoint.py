"""Weights in the public layout of `deepseek-ai/DeepSeek-OCR`: from files into the model and back.

Owns the folder's files (`config.json`, `model.safetensors` or shards with their index) and the check that every
tensor is there, fits and is known. Knows nothing of the Hub or of tokenizers; see `loading.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shared.deepseek_ocr.layout import is_unused, public_slots
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.public_config import ConfigError, config_from_public, config_to_public
from shared.deepseek_ocr.quantisation import SCALE_SUFFIX, dequantise_rows, is_quantisable, quantise_rows

CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"
LAYERS = "model.layers."
"""What names of the decoder's layers begin with."""
MAX_NAMED_KEYS = 8
"""Keys that an error names before it only counts."""

Storage = Literal["int8", "bfloat16", "float32"]


class CheckpointError(OSError):
    """A folder that does not hold the checkpoint it should; the message names file, key or value."""


def read_config(folder: Path) -> dict[str, Any]:
    """Parse a checkpoint's config.json.

    Args:
        folder: the checkpoint.

    Returns:
        Its values.

    Raises:
        CheckpointError: The file is missing or is no JSON object.
    """
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return values


def load_model(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    layers_device: torch.device | str | None = None,
    model_class: type[DeepseekOcrForConditionalGeneration] = DeepseekOcrForConditionalGeneration,
) -> DeepseekOcrForConditionalGeneration:
    """Build the model that a folder describes and fill in its weights.

    The weights go from the files straight into their final place, so that loading needs no second copy of the model.

    Args:
        folder: a checkpoint in the public layout, quantised or not.
        device: where the weights go.
        dtype: what they become.
        layers_device: where those of the decoder's layers go, for whoever moves them on one by one; None: as the rest.
        model_class: of the model; the `model_type` of its configuration has to be the folder's.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: A file is missing or broken; a tensor is missing, unknown or has the wrong shape.
    """
    values = read_config(folder)
    config_class, given = model_class.config_class, values.get("model_type")
    if given != config_class.model_type:
        raise CheckpointError(f"{folder}: config.json: model_type is {given!r}, expected {config_class.model_type!r}")
    try:
        config = config_from_public(values, config_class)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    with torch.device("meta"):
        model = model_class(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    places = {name: (layers_device if name.startswith(LAYERS) else None) or device for name in shapes}
    state = {name: torch.empty(shape, device=places[name], dtype=dtype) for name, shape in shapes.items()}
    _fill(state, folder)
    model.load_state_dict(state, assign=True)
    return model.eval()


def save_checkpoint(model: DeepseekOcrForConditionalGeneration, folder: Path, storage: Storage = "bfloat16") -> None:
    """Write a model in the public layout.

    Args:
        model: the model.
        folder: made where it does not exist; files of the same names are replaced.
        storage: `int8` stores matrices as rows with scales and everything else as float32.

    Raises:
        ValueError: `storage` is none of the three.
    """
    if storage not in ("int8", "bfloat16", "float32"):
        raise ValueError(f"storage is {storage!r}; known: int8, bfloat16, float32")
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for key, slot in public_slots({name: tensor.shape for name, tensor in state.items()}).items():
        tensor = slot.of(state[slot.parameter]).cpu()
        if storage == "int8" and is_quantisable(key, tensor):
            tensors[key], tensors[key + SCALE_SUFFIX] = quantise_rows(tensor)
        else:
            # A copy, as safetensors refuses tensors that share memory.
            dtype = torch.bfloat16 if storage == "bfloat16" else torch.float32
            tensors[key] = tensor.to(dtype, copy=True).contiguous()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    values = config_to_public(model.config) | {"torch_dtype": "float32" if storage == "float32" else "bfloat16"}
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _fill(state: dict[str, Tensor], folder: Path) -> None:
    """Copy every tensor of the files into its slot and see to it that nothing is left over on either side."""
    slots = public_slots({name: tensor.shape for name, tensor in state.items()})
    missing = set(slots)
    unknown = []
    for key, tensor in _read_tensors(folder):
        slot = slots.get(key)
        if slot is None:
            if not is_unused(key):
                unknown.append(key)
            continue
        target = slot.of(state[slot.parameter])
        if tensor.shape != target.shape:
            raise CheckpointError(
                f"{folder}: {key} has shape {list(tensor.shape)}, config.json makes it {list(target.shape)}"
            )
        target.copy_(tensor)
        missing.discard(key)
    if missing or unknown:
        lines = [
            f"{word} tensors: {_name(keys)}" for word, keys in (("missing", missing), ("unknown", unknown)) if keys
        ]
        raise CheckpointError(f"{folder}: {'; '.join(lines)}")


def _read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Go through the tensors of all files, turning int8 rows back into floats."""
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                keys = set(file.keys())
                for key in sorted(keys):
                    if key.endswith(SCALE_SUFFIX) and key.removesuffix(SCALE_SUFFIX) in keys:
                        continue
                    tensor = file.get_tensor(key)
                    if tensor.dtype == torch.int8:
                        tensor = _dequantised(key, tensor, file.get_tensor(key + SCALE_SUFFIX), path)
                    yield key, tensor
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: {error}") from error


def _dequantised(key: str, values: Tensor, scale: Tensor, path: Path) -> Tensor:
    try:
        return dequantise_rows(values, scale)
    except ValueError as error:
        raise CheckpointError(f"{path}: {key}: {error}") from error


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if not index.is_file():
        return [folder / WEIGHTS_FILE]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of shards") from error
    return [folder / name for name in sorted(names)]


def _name(keys: set[str] | list[str]) -> str:
    named = sorted(keys)
    rest = len(named) - MAX_NAMED_KEYS
    return ", ".join(named[:MAX_NAMED_KEYS]) + (f" and {rest} more" if rest > 0 else "")
