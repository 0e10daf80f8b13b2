"""PEFT adapters on a loaded model: attached, and switched off for a while to read with the base model.

Owns the steps from a PEFT folder to a model that reads with it, and the checks that nothing is lost between. PEFT does
the arithmetic. Needs only torch, peft and safetensors. `shared.contract` reads the config and names the tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from shared.contract.lora_content import pair_matrices
from shared.contract.peft_config import PeftConfig, parse_config
from shared.contract.refusals import AdapterRefusedError
from shared.contract.volume import CONFIG_FILE, WEIGHTS_FILE
from trainer.reading.protocol import ReaderError

_NAMED_MODULES = 3
"""Modules that a message lists; it only counts the rest."""


class AdapterError(ReaderError):
    """A folder without an adapter for the model; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """The content of a PEFT folder."""

    config: PeftConfig
    tensors: Mapping[str, Tensor]
    """By PEFT's names."""
    modules: Mapping[str, tuple[Tensor, Tensor]]
    """The same tensors as pairs of lora_A `[rank, inputs]` and lora_B `[outputs, rank]`, by the module's whole name."""
    sha256: str
    """Of the weights' file; it identifies the adapter in evaluations and manifests."""


@dataclass(frozen=True, slots=True)
class AttachedAdapter:
    """A model with an adapter, which is active except within `base_alone`."""

    model: Any
    """The model itself, not PEFT's wrapper, so that it has its own methods."""
    sha256: str
    _wrapper: Any

    @contextmanager
    def base_alone(self) -> Iterator[Any]:
        """Switch the adapter off within a block: the model reads exactly as before.

        Yields:
            The model.
        """
        with self._wrapper.disable_adapter():
            yield self.model
        # When PEFT switches the adapter on again it makes it trainable.
        self._wrapper.requires_grad_(requires_grad=False)


def read_adapter(folder: Path | str) -> AdapterFolder:
    """Read a PEFT folder. No code from the folder is run: weights are read from safetensors only.

    Args:
        folder: Has `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        Config and weights; all values are finite.

    Raises:
        AdapterError: A file is missing or broken, or the contract refuses it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AdapterError(f"there is no adapter at {folder}: give the folder that training left, such as RUN/best")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            hint = "; save it as safetensors" if (folder / "adapter_model.bin").is_file() else ""
            raise AdapterError(f"{folder} is no PEFT folder: it has no {name}{hint}")
    data = (folder / WEIGHTS_FILE).read_bytes()
    try:
        config = parse_config((folder / CONFIG_FILE).read_bytes())
        tensors = load(data)
        modules = pair_matrices(tensors)
    except AdapterRefusedError as error:
        # The refusal's text has its code, what was found and what to do.
        raise AdapterError(f"the adapter in {folder} cannot be used: {error}") from error
    except SafetensorError as error:
        raise AdapterError(f"{folder / WEIGHTS_FILE} cannot be read ({error}); save the adapter again") from error
    not_finite = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if not_finite:
        raise AdapterError(f"{folder / WEIGHTS_FILE}: {not_finite[0]} is NaN or infinite; train at a lower rate")
    return AdapterFolder(config, tensors, modules, hashlib.sha256(data).hexdigest())


def attach_adapter(model: Any, adapter: AdapterFolder | Path | str) -> AttachedAdapter:
    """Attach an adapter to a model, in place; the model's own weights do not change. A model takes one adapter.

    Args:
        model: DeepSeek-OCR, DeepSeek-OCR-2 or nano, from `load_checkpoint`.
        adapter: A PEFT folder, or the result of `read_adapter`.

    Returns:
        The model with the adapter, in evaluation mode and in the model's dtype.

    Raises:
        AdapterError: The adapter cannot be read or does not fit the model, which is then unchanged.
    """
    files = adapter if isinstance(adapter, AdapterFolder) else read_adapter(adapter)
    _check_fit(model, files)
    # PEFT takes seconds to import.
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict

    # The tensors say which modules are adapted, so no pattern from the folder is evaluated. They get the model's dtype:
    # PEFT would make them float32, which is slower and differs from the service.
    wrapper = PeftModel(model, _lora_config(files), autocast_adapter_dtype=False)
    # Value by value: PEFT's own loading renames keys by transformers' table for old checkpoints, and for DeepSeek-OCR-2
    # (PEFT 0.21.2, transformers 5.17) then finds none of the keys that it wrote itself.
    own = get_peft_model_state_dict(wrapper, save_embedding_layers=False)
    if lost := sorted(own.keys() ^ files.tensors.keys()):
        wrapper.unload()
        raise AdapterError(f"the adapter and PEFT disagree about {lost[0]}; save it with PEFT 0.18 or newer")
    if any(tensor.shape != files.tensors[name].shape for name, tensor in own.items()):
        wrapper.unload()
        raise AdapterError(f"{CONFIG_FILE} and the weights are of different ranks; save the adapter again")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(files.tensors[name])
    wrapper.requires_grad_(requires_grad=False)
    return AttachedAdapter(wrapper.eval().get_base_model(), files.sha256, wrapper)


def _check_fit(model: nn.Module, files: AdapterFolder) -> None:
    """Check that every pair of matrices fits a linear module of the model."""
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    missing = [name for name in files.modules if name not in linear]
    if missing:
        named = ", ".join(missing[:_NAMED_MODULES]) + (", ..." if len(missing) > _NAMED_MODULES else "")
        raise AdapterError(
            f"{len(missing)} of {len(files.modules)} adapted modules are not in the base model: {named}; "
            "give the base model that the adapter was trained on (routed experts cannot be adapted) [module_unknown]"
        )
    for name, (down, up) in files.modules.items():
        found, wanted = (down.shape[-1], up.shape[0]), (linear[name].in_features, linear[name].out_features)
        if found != wanted or down.shape[0] != up.shape[-1]:
            raise AdapterError(
                f"{name} has {wanted[0]} inputs and {wanted[1]} outputs, the adapter is for {found[0]} and {found[1]}; "
                "give the base model that it was trained on [shape_mismatch]"
            )


def _lora_config(files: AdapterFolder) -> Any:
    from peft import LoraConfig

    try:
        config = LoraConfig.from_peft_type(**files.config.values)
    except (TypeError, ValueError, KeyError) as error:
        raise AdapterError(f"{CONFIG_FILE} is not as PEFT writes it: {error}") from error
    config.target_modules = set(files.modules)
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.init_lora_weights, config.inference_mode, config.lora_dropout = True, True, 0.0
    return config
