"""From the name of a checkpoint and of a device to a reader that is ready."""

from __future__ import annotations

from pathlib import Path

import torch

from shared.contract.identity import weights_revision
from shared.deepseek_ocr.checkpoint import CheckpointError
from shared.deepseek_ocr.loading import load_checkpoint
from trainer.readers.model import ModelReader, ReadingOptions
from trainer.readers.protocol import ReaderError


def load_model_reader(checkpoint: str, device: str, threads: int, options: ReadingOptions) -> ModelReader:
    """Load a checkpoint: float32 on the CPU, bfloat16 on a GPU.

    Args:
        checkpoint: Folder or repository.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: Threads of torch on the CPU.
        options: How the model is asked.

    Returns:
        The reader, called after the checkpoint.

    Raises:
        ReaderError: The device or the checkpoint is not there.
    """
    chosen = choose_device(device)
    if chosen.type == "cpu":
        torch.set_num_threads(threads)
    dtype = torch.bfloat16 if chosen.type == "cuda" else torch.float32
    try:
        loaded = load_checkpoint(checkpoint, chosen, dtype)
    except CheckpointError as error:
        raise ReaderError(str(error)) from error
    return ModelReader(
        loaded.model,
        loaded.tokenizer,
        loaded.geometry,
        Path(loaded.model_id).name,
        options,
        weights_revision(Path(checkpoint)),
    )


def choose_device(name: str) -> torch.device:
    """Choose a device.

    Args:
        name: `auto` (CUDA where there is a device), `cpu`, `cuda` or `cuda:N`.

    Returns:
        The device.

    Raises:
        ReaderError: CUDA was asked for and is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ReaderError("there is no CUDA device here; use --device cpu")
    return device
