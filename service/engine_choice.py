"""Which engine the settings mean: the fake one, or the native one over a checkpoint, on which device, in which type.

Free of torch: the device's process loads it.
"""

from __future__ import annotations

import importlib.metadata
from functools import partial
from pathlib import Path

import shared.nano
from service.config import SHIPPED_MODEL, Device, DType, EngineKind, ServiceSettings
from service.engine.client import ProcessEngine
from service.engine.fake import FakeEngine, FakeEngineHandle
from service.engine.loader import EngineLimits, EngineSource, load_engine
from service.engine.protocol import EngineHandle
from service.errors import ConfigurationError

SHIPPED_FOLDER = Path(shared.nano.__path__[0])
_CUDA_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""The driver's control device on Linux, and its counterpart under WSL."""


def has_cuda() -> bool:
    """Whether there is a GPU and a torch that can use it, found out without loading torch."""
    try:
        is_cpu_build = importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return not is_cpu_build and any(path.exists() for path in _CUDA_DEVICES)


def choose_source(settings: ServiceSettings, *, cuda: bool) -> EngineSource:
    """What the native engine is to load.

    Args:
        settings: The settings.
        cuda: Whether a GPU can be used.

    Returns:
        Checkpoint, device, type and limits.

    Raises:
        ConfigurationError: The shipped model is meant and is not there.
    """
    is_shipped = settings.model == SHIPPED_MODEL
    if is_shipped and not (SHIPPED_FOLDER / "config.json").is_file():
        raise ConfigurationError(
            "the shipped model is missing: shared/nano/ holds no config.json; set DEEPSYNTH_MODEL to a checkpoint's "
            "folder or Hugging Face id, or DEEPSYNTH_ENGINE=fake to try the service without a model"
        )
    device = settings.device
    if device is Device.AUTO:
        device = Device.CUDA if cuda else Device.CPU
    dtype = settings.dtype
    if dtype is DType.AUTO:
        dtype = DType.BFLOAT16 if device is Device.CUDA else DType.FLOAT32
    return EngineSource(
        checkpoint=str(SHIPPED_FOLDER) if is_shipped else settings.model,
        device=device.value,
        dtype=dtype.value,
        model_id=SHIPPED_MODEL if is_shipped else None,
        limits=EngineLimits(batch_size=settings.ocr_batch_size, max_new_tokens=settings.max_new_tokens),
    )


def build_engine(settings: ServiceSettings) -> EngineHandle:
    """The engine that the settings ask for.

    Args:
        settings: The settings.

    Returns:
        The engine, not started yet.
    """
    if settings.engine is EngineKind.FAKE:
        return FakeEngineHandle(FakeEngine(batch_size=settings.ocr_batch_size), step_s=settings.fake_step_ms / 1000)
    source = choose_source(settings, cuda=has_cuda())
    return ProcessEngine(
        partial(load_engine, source),
        max_wait_s=settings.ocr_max_wait_ms / 1000,
        num_threads=settings.cpu_threads,
    )
