"""What reads a document, built from the settings: the engine, the image processes, their limits and the gate.

Apart from the application, because `deepsynth ocr` and `deepsynth bulk` read without HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from service.admission.gate import Gate
from service.config import EngineKind, Quantization, ServiceSettings
from service.engine.config import EngineLimits, WeightForm
from service.engine.factory import load_engine
from service.engine.fake import FakeEngine
from service.engine.process.engines import ProcessEngine
from service.engine.process.supervision import Supervision
from service.engine.protocol import EngineHandle
from service.engine.resolve import CPU_BATCH_SIZE, GPU_BATCH_SIZE, choose_source, has_cuda, runs_on_cuda
from service.intake.limits import IntakeLimits
from service.intake.pool import ImagePool
from shared.contract.processors import usable_processors

PAGES_AHEAD = 2
"""Page slots per place in a batch: one batch running and one prepared after it."""
MAX_IMAGE_WORKERS = 16
CPU_STALL_S, GPU_STALL_S = 60.0, 10.0
_WEIGHT_FORMS = {
    Quantization.AUTO: WeightForm.AUTO,
    Quantization.NONE: WeightForm.FULL,
    Quantization.INT8: WeightForm.INT8,
}


def batch_size(settings: ServiceSettings) -> int:
    """Pages read together: the setting, or a default for the device."""
    if settings.ocr_batch_size is not None:
        return settings.ocr_batch_size
    return min(GPU_BATCH_SIZE if _has_gpu(settings) else CPU_BATCH_SIZE, settings.max_concurrent_requests)


def image_workers(settings: ServiceSettings) -> int:
    """Image processes: the setting; else few if the engine needs the cores itself."""
    if settings.image_workers is not None:
        return settings.image_workers
    return min(MAX_IMAGE_WORKERS, max(2, usable_processors() // 2)) if _has_gpu(settings) else 2


def _has_gpu(settings: ServiceSettings) -> bool:
    return settings.engine is EngineKind.NATIVE and runs_on_cuda(settings.device.value, cuda=has_cuda())


def build_engine(settings: ServiceSettings) -> EngineHandle:
    """The configured engine, not started yet."""
    if settings.engine is EngineKind.FAKE:
        return ProcessEngine(
            partial(
                FakeEngine,
                batch_size=batch_size(settings),
                adapter_slots=adapter_slots(settings),
                step_s=settings.fake_step_ms / 1000,
            ),
            supervision=supervision(settings),
        )
    source = choose_source(
        model=settings.model,
        device=settings.device.value,
        dtype=settings.dtype.value,
        limits=EngineLimits(
            batch_size=batch_size(settings),
            max_new_tokens=settings.max_new_tokens,
            gpu_memory_fraction=settings.gpu_memory_fraction,
            weights=_WEIGHT_FORMS[settings.quantization],
            adapter_slots=adapter_slots(settings),
            adapter_max_rank=settings.adapter_max_rank,
            adapter_experts=settings.adapter_experts,
        ),
        cuda=has_cuda(),
    )
    return ProcessEngine(
        partial(load_engine, source),
        max_wait_s=settings.ocr_max_wait_ms / 1000,
        num_threads=settings.cpu_threads,
        supervision=supervision(settings),
    )


def supervision(settings: ServiceSettings) -> Supervision:
    """When the engine counts as lost."""
    stall_s = settings.engine_stall_s
    if stall_s is None:
        stall_s = GPU_STALL_S if _has_gpu(settings) else CPU_STALL_S
        if settings.engine is EngineKind.FAKE:
            stall_s = max(stall_s, 2 * settings.fake_step_ms / 1000)
    return Supervision(stall_s=stall_s)


def adapter_slots(settings: ServiceSettings) -> int:
    """Slots for adapters: none without an adapter volume."""
    return settings.adapter_slots if settings.adapter_dir is not None else 0


def build_limits(settings: ServiceSettings) -> IntakeLimits:
    """Bounds on documents."""
    return IntakeLimits(
        max_pixels=settings.max_pixels,
        max_side_px=settings.max_side_px,
        max_frames=settings.max_frames,
        max_pdf_pages=settings.max_pdf_pages,
        pdf_dpi=settings.pdf_dpi,
    )


def build_gate(settings: ServiceSettings) -> Gate:
    """Admission of requests."""
    page_slots = PAGES_AHEAD * batch_size(settings)
    return Gate(capacity=settings.max_concurrent_requests, page_slots=page_slots, clock=time.monotonic)


def build_pool(settings: ServiceSettings, on_restart: Callable[[str], None] = lambda _: None) -> ImagePool:
    """The image processes, not started yet."""
    return ImagePool(
        workers=image_workers(settings),
        memory_bytes=settings.image_memory_bytes,
        timeout_s=settings.image_timeout_s,
        max_file_bytes=settings.max_upload_bytes,
        on_restart=on_restart,
    )
