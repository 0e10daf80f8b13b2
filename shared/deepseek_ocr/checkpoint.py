"""Loads and saves weights in the public layout of `deepseek-ai/DeepSeek-OCR`.

Owns the folder's files (`config.json`, `model.safetensors` or shards with their index), and checks that no tensor is
missing, unknown or of the wrong shape. Knows neither the Hub nor tokenizers; see `loading.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shared.deepseek_ocr.configuration import DeepseekOcrConfig
from shared.deepseek_ocr.layout import is_unused, public_slots
from shared.deepseek_ocr.modelling import DeepseekOcrForConditionalGeneration
from shared.deepseek_ocr.public_config import ConfigError, config_from_public, config_to_public
from shared.deepseek_ocr.quantisation import SCALE_SUFFIX, dequantise_rows, is_quantisable, quantise_rows

CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"
LAYERS = "model.layers."
"""Prefix of the names of the decoder's layers."""
MAX_NAMED_KEYS = 8
"""Keys that an error lists; it only counts the rest."""

Storage = Literal["int8", "bfloat16", "float32"]


class CheckpointError(OSError):
    """A folder without a valid checkpoint; the message names the file, key or value."""


def read_config(folder: Path) -> dict[str, Any]:
    """Parse a checkpoint's config.json.

    Args:
        folder: of a checkpoint.

    Returns:
        The file's JSON object.

    Raises:
        CheckpointError: The file is missing, or is not a JSON object.
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
    make_config: Callable[..., DeepseekOcrConfig] = config_from_public,
) -> DeepseekOcrForConditionalGeneration:
    """Build the model of a checkpoint and load its weights.

    The weights are copied from the files straight to their destination, so loading needs no second copy of the model.

    Args:
        folder: a checkpoint in the public layout, quantised or not.
        device: of the weights.
        dtype: of the weights, whatever the files have.
        layers_device: of the weights in the decoder's layers, for a caller that moves the layers one by one; None: as
            the others.
        model_class: of the model; its configuration's `model_type` has to be the folder's.
        make_config: has the signature of `config_from_public`; for files of another layout.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: A file is missing or broken; a tensor is missing, unknown or has the wrong shape.
    """
    values = read_config(folder)
    config_class, given = model_class.config_class, values.get("model_type")
    if given not in (config_class.model_type, *config_class.other_model_types):
        raise CheckpointError(f"{folder}: config.json: model_type is {given!r}, expected {config_class.model_type!r}")
    try:
        config = make_config(values, config_class)
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


def skeleton(values: dict[str, Any]) -> DeepseekOcrForConditionalGeneration:
    """The model without weights.

    Args:
        values: of config.json in the public layout.

    Returns:
        On the device `meta`.
    """
    with torch.device("meta"):
        return DeepseekOcrForConditionalGeneration(config_from_public(values))


def save_checkpoint(model: DeepseekOcrForConditionalGeneration, folder: Path, storage: Storage = "bfloat16") -> None:
    """Write a model in the public layout.

    Args:
        model: in any dtype, on any device.
        folder: made if it does not exist; files of the same names are replaced.
        storage: `int8` stores matrices as rows with scales and everything else as float32.

    Raises:
        ValueError: `storage` is unknown.
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
            # A copy, since safetensors refuses tensors that share memory.
            dtype = torch.bfloat16 if storage == "bfloat16" else torch.float32
            tensors[key] = tensor.to(dtype, copy=True).contiguous()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    values = config_to_public(model.config) | {"torch_dtype": "float32" if storage == "float32" else "bfloat16"}
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    share_weights(folder, CONFIG_FILE)


def share_weights(folder: Path, like: str) -> None:
    """Let the weights be read by those who may read another file of their folder.

    safetensors writes files that only their owner may read, so a service that runs as another user could not load them.

    Args:
        folder: a checkpoint or an adapter, just written.
        like: name of a file in it that has the usual permissions.
    """
    for path in folder.glob("*.safetensors"):
        shutil.copymode(folder / like, path)


def weight_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's weights: one, or those that its index names.

    Args:
        folder: of a checkpoint.

    Returns:
        Files that exist, by name.

    Raises:
        CheckpointError: A file is missing, or the index is not one.
    """
    index = folder / INDEX_FILE
    if not index.is_file():
        files = [folder / WEIGHTS_FILE]
    else:
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            files = [folder / name for name in sorted(names)]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index} is not an index of shards") from error
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise CheckpointError(f"{folder}: missing files: {_name(missing)}")
    return files


def _fill(state: dict[str, Tensor], folder: Path) -> None:
    """Copy every tensor of the files into its slot, and check that none is missing or unknown."""
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
    """Read the tensors of all files, and convert int8 rows back to floats."""
    for path in weight_files(folder):
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


def _name(keys: set[str] | list[str]) -> str:
    named = sorted(keys)
    rest = len(named) - MAX_NAMED_KEYS
    return ", ".join(named[:MAX_NAMED_KEYS]) + (f" and {rest} more" if rest > 0 else "")
