"""Makes readers from the names of a checkpoint, an adapter and a device."""

from __future__ import annotations

from pathlib import Path

import torch

from shared.contract.identity import weights_revision
from shared.deepseek_ocr.checkpoint import CheckpointError
from shared.deepseek_ocr.loading import LoadedCheckpoint, load_checkpoint
from trainer.evaluation.paths import AdapterLocation
from trainer.reading.adapters import attach_adapter, read_adapter
from trainer.reading.model import BaseReader, ModelReader, ReadingOptions
from trainer.reading.protocol import ReaderError


def load_model_reader(checkpoint: str, device: str, threads: int, options: ReadingOptions) -> ModelReader:
    """Load a checkpoint: float32 on the CPU, bfloat16 on a GPU.

    Args:
        checkpoint: Folder or repository.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: Torch's threads on a CPU.
        options: Task, mode and limits.

    Returns:
        The reader, named after the checkpoint.

    Raises:
        ReaderError: The device or the checkpoint is missing.
    """
    loaded = _load(checkpoint, device, threads)
    return _reader(loaded, options, weights_revision(Path(checkpoint)))


def load_adapter_readers(
    checkpoint: str, place: AdapterLocation, device: str, threads: int, options: ReadingOptions
) -> tuple[ModelReader, BaseReader]:
    """Load a checkpoint once, to read with an adapter and without.

    Args:
        checkpoint: Folder or repository of the base model.
        place: From `locate_adapter`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: Torch's threads on a CPU.
        options: Task, mode and limits, for both readers.

    Returns:
        The adapter's reader and the base's. They share the model, so one reads after the other.

    Raises:
        ReaderError: The device, the checkpoint or the adapter is missing, or the adapter is for another model.
    """
    # First, since loading the checkpoint takes longer.
    files = read_adapter(place.folder)
    loaded = _load(checkpoint, device, threads)
    attached = attach_adapter(loaded.model, files)
    weights = weights_revision(Path(checkpoint))
    adapted = _reader(loaded, options, weights, name=place.label, adapter_sha256=attached.sha256)
    return adapted, BaseReader(_reader(loaded, options, weights), attached)


def _load(checkpoint: str, device: str, threads: int) -> LoadedCheckpoint:
    chosen = choose_device(device)
    if chosen.type == "cpu":
        torch.set_num_threads(threads)
    dtype = torch.bfloat16 if chosen.type == "cuda" else torch.float32
    try:
        return load_checkpoint(checkpoint, chosen, dtype)
    except CheckpointError as error:
        raise ReaderError(f"{error}; name another checkpoint [model_unusable]") from error


def _reader(
    loaded: LoadedCheckpoint,
    options: ReadingOptions,
    weights_sha256: str | None,
    *,
    name: str | None = None,
    adapter_sha256: str | None = None,
) -> ModelReader:
    return ModelReader(
        loaded.model,
        loaded.tokenizer,
        loaded.geometry,
        name or Path(loaded.model_id).name,
        options,
        weights_sha256,
        adapter_sha256,
    )


def choose_device(name: str) -> torch.device:
    """Choose a device.

    Args:
        name: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.

    Returns:
        The device.

    Raises:
        ReaderError: CUDA was requested but is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ReaderError("there is no CUDA device here; use --device cpu [gpu_missing]")
    return device
