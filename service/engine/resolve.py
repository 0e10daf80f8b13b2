"""From what an operator wants to what the native engine is to load: which checkpoint, device and type.

Free of torch: the process that owns the device loads it.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from pathlib import Path

import shared.nano
from service.engine.config import SHIPPED_MODEL, EngineLimits, EngineSource, WeightForm
from service.errors import ConfigurationError

AUTO, CPU, CUDA = "auto", "cpu", "cuda"
SHIPPED_FOLDER = Path(shared.nano.__path__[0])
_CUDA_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""The driver's control device on Linux, and its counterpart under WSL."""

CPU_BATCH_SIZE, GPU_BATCH_SIZE = 16, 64
"""A page of nano by its lines on canvases of 160 px took 8 to 11 % less time 16 at a time than 8 (one core of an EPYC,
`benchmarks/LOG.md`). On an H100 a step of 64 rows takes five times as long as a step of one
(`benchmarks/engine_steps.py decode`), so each page is still fast."""


def runs_on_cuda(device: str, *, cuda: bool) -> bool:
    """Whether the engine will run on a GPU.

    Args:
        device: `cpu`, `cuda` or `auto`.
        cuda: Whether a GPU can be used.

    Returns:
        What `device` comes to.
    """
    return device == CUDA or (device == AUTO and cuda)


def has_cuda() -> bool:
    """Whether there is a GPU and a torch that can use it, found out without loading torch."""
    try:
        is_cpu_build = importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return not is_cpu_build and any(path.exists() for path in _CUDA_DEVICES)


def choose_source(*, model: str, device: str, dtype: str, limits: EngineLimits, cuda: bool) -> EngineSource:
    """Decide what to load.

    Args:
        model: A folder, a repository of the Hugging Face Hub, or `nano` for the one that ships.
        device: `cpu`, `cuda` or `auto`.
        dtype: A torch type by its name, or `auto`: bfloat16 on CUDA, but float32 on a CPU and for the shipped model,
            which is so small that rounding changes what it reads (docs/performance.md, 'Same text'); a CPU with AMX
            rounds canvases of lines nevertheless.
        limits: What the engine may hold and do.
        cuda: Whether a GPU can be used.

    Returns:
        Checkpoint, device, type and limits.

    Raises:
        ConfigurationError: The shipped model is meant and is not there, or 8-bit weights are wanted on a CPU.
    """
    is_shipped = model == SHIPPED_MODEL
    if is_shipped and not (SHIPPED_FOLDER / "config.json").is_file():
        raise ConfigurationError(
            "the shipped model is missing: shared/nano/ holds no config.json; set DEEPSYNTH_MODEL to a checkpoint's "
            "folder or Hugging Face id, or DEEPSYNTH_ENGINE=fake to try the service without a model"
        )
    device = CUDA if runs_on_cuda(device, cuda=cuda) else CPU
    if limits.weights is WeightForm.INT8 and device == CPU:
        raise ConfigurationError("DEEPSYNTH_QUANTIZATION=int8 needs a GPU; unset it, or set it to none")
    if dtype == AUTO:
        limits = replace(limits, rounds_canvases=device == CPU)
        dtype = "bfloat16" if device == CUDA and not is_shipped else "float32"
    return EngineSource(
        checkpoint=str(SHIPPED_FOLDER) if is_shipped else model,
        device=device,
        dtype=dtype,
        model_id=SHIPPED_MODEL if is_shipped else None,
        limits=limits,
    )
