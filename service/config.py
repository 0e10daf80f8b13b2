"""Settings of the online process, and the only reader of its environment.

Every setting is one field: type, bounds, meaning. `docs/configuration.md` and `.env.example` are written from this
file. Nothing here is changed after `load_settings` returned.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from service.errors import ConfigurationError

PREFIX = "DEEPSYNTH_"
TRAINER_PREFIX = "DEEPSYNTH_TRAINER_"
SHIPPED_MODEL = "nano"
MIB = 1024 * 1024


class Device(StrEnum):
    """Where the engine runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class DType(StrEnum):
    """Arithmetic of the engine."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Weights(StrEnum):
    """How a GPU holds the decoder's matrices."""

    AUTO = "auto"
    FULL = "full"
    INT8 = "int8"


class EngineKind(StrEnum):
    """Which engine reads the pages."""

    NATIVE = "native"
    FAKE = "fake"


class LogFormat(StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """Least serious log line that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class ServiceSettings(BaseSettings):
    """Everything an operator can set; frozen, unknown names refused."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one."""

    model: Annotated[str, Field(min_length=1)] = SHIPPED_MODEL
    """Base model: a folder, a Hugging Face id such as `deepseek-ai/DeepSeek-OCR`, or `nano`, which ships with it."""
    default_model: str | None = None
    """Model that answers when a request names none; the base model when unset."""
    engine: EngineKind = EngineKind.NATIVE
    """`native` reads pages; `fake` answers from the bytes of the image without a model, for trying clients."""
    fake_step_ms: Annotated[float, Field(ge=0, le=600_000)] = 10.0
    """Time the fake engine takes for a word, in milliseconds."""
    device: Device = Device.AUTO
    """Where the engine runs: `auto` takes CUDA when there is one."""
    dtype: DType = DType.AUTO
    """Arithmetic: `auto` is bfloat16 on CUDA, but float32 on a CPU and for nano."""

    weights: Weights = Weights.AUTO
    """How a GPU holds DeepSeek-OCR's decoder: `full`, in the type of the arithmetic; `int8`, rounded to 8 bits, in half
    the memory; `auto` is full unless the card is too small for that. On a CPU `int8` is refused."""
    gpu_memory_fraction: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the GPU's memory that may be used, by this service and whatever else runs on the card."""
    cpu_threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads of the engine on a CPU; as many as there are cores when unset."""

    ocr_batch_size: Annotated[int, Field(ge=1, le=256)] | None = None
    """Most pages that are read together; 8 on a CPU and 64 on a GPU when unset."""
    ocr_max_wait_ms: Annotated[float, Field(ge=0, le=1000)] = 5.0
    """Longest an idle engine waits for company before its first step, in milliseconds."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 4096
    """Most tokens a request may ask for, and what it gets when it asks for nothing."""
    queue_size: Annotated[int, Field(ge=1, le=10000)] = 64
    """Most requests in the house at once, waiting and running together; the next one gets 429."""
    deadline_s: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """Longest a request may wait and run once its upload is complete, in seconds; then 504."""

    max_upload_bytes: Annotated[int, Field(ge=1024, le=1024 * MIB)] = 20 * MIB
    """Largest file in bytes."""
    max_pixels: Annotated[int, Field(ge=1024, le=178_000_000)] = 40_000_000
    """Most pixels of one page, known before it is decoded or rendered."""
    max_side_px: Annotated[int, Field(ge=64, le=65_500)] = 12_000
    """Longest side of one page in pixels."""
    max_frames: Annotated[int, Field(ge=1, le=1000)] = 16
    """Most pages of a TIFF or frames of another image in one request."""
    max_pdf_pages: Annotated[int, Field(ge=1, le=1000)] = 50
    """Most pages of a PDF in one request."""
    pdf_dpi: Annotated[int, Field(ge=36, le=600)] = 150
    """Resolution at which PDF pages are rendered, in dots per inch."""
    body_idle_s: Annotated[float, Field(gt=0, le=600)] = 15.0
    """Longest pause in an upload, in seconds; then 408."""
    body_total_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Longest an upload may take, in seconds; then 408."""

    decode_workers: Annotated[int, Field(ge=1, le=64)] | None = None
    """Processes that decode files; 2 beside an engine on a CPU, half of the cores beside a GPU when unset."""
    decode_timeout_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    """Longest one page may take to decode, in seconds of CPU and of the clock; then its process is killed."""
    decode_memory_bytes: Annotated[int, Field(ge=256 * MIB, le=64 * 1024 * MIB)] = 1536 * MIB
    """Address space of a decoding process in bytes."""

    adapter_dir: Path | None = None
    """Root of the adapter volume (docs/adapters.md), may be mounted read-only; adapters are not served when unset."""
    adapter_state_dir: Path | None = None
    """Folder of this service alone for copies of adapters, operators' decisions and the audit log; when unset they
    go with the process, all but what the log says."""
    adapter_slots: Annotated[int, Field(ge=1, le=64)] = 8
    """Adapters that can be resident at once; each takes the memory of the largest rank, from the start."""
    adapter_max_rank: Annotated[int, Field(ge=1, le=128)] = 64
    """Largest rank of an adapter."""
    adapter_experts: bool = False
    """Whether adapters may change routed experts; a slot then takes some twenty times the memory (docs/engine.md)."""
    adapter_poll_s: Annotated[float, Field(ge=0.1, le=60)] = 0.25
    """Pause between two looks at the adapter volume, in seconds; up to a second where a look takes long."""
    adapter_wait_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    """Longest a request waits for its adapter to become resident, in seconds; then 503."""
    adapter_rollback_pages: Annotated[int, Field(ge=0, le=10_000)] = 100
    """Newest pages of a version and of its predecessor that are compared to take a bad version back; 0 for never."""
    adapter_rollback_margin: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of pages by which a version's loops, or failures, must exceed its predecessor's to be taken back."""
    admin_key: Annotated[SecretStr, Field(min_length=16, max_length=200)] | None = None
    """What operators show to pin, roll back and refuse adapters; at least 16 characters. Nobody can when unset."""

    drain_grace_s: Annotated[float, Field(ge=0, le=300)] = 0.0
    """How long a stopping process still listens, answering 503, so that a load balancer notices; in seconds."""
    enable_metrics: bool = True
    """Serve `/metrics` for Prometheus."""
    enable_tracing: bool = False
    """Send OpenTelemetry spans."""
    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://\S+$")] = "http://127.0.0.1:4318/v1/traces"
    """Where spans go: an OTLP collector's traces address over HTTP."""
    log_level: LogLevel = LogLevel.INFO
    """Least serious log line that is written."""
    log_format: LogFormat = LogFormat.TEXT
    """`text` for people, `json` for collectors."""

    ocr_save_samples: bool = False
    """Keep pages that clients consented to; not built into this version, so `true` refuses to start."""
    ocr_privacy_allowed: bool = False
    """The operator's statement that keeping pages is lawful here; saving needs it as well as the flag above."""
    sample_dir: Path = Path("samples")
    """Folder for kept pages."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.ocr_save_samples:
            raise ValueError(
                "DEEPSYNTH_OCR_SAVE_SAMPLES=true, but this version cannot keep samples yet; "
                "unset it, so that nobody believes pages are being collected"
            )
        if self.ocr_batch_size is not None and self.queue_size < self.ocr_batch_size:
            raise ValueError("DEEPSYNTH_QUEUE_SIZE is smaller than DEEPSYNTH_OCR_BATCH_SIZE, so no batch could fill")
        if self.max_side_px**2 < self.max_pixels:
            raise ValueError("DEEPSYNTH_MAX_PIXELS is more than a square of DEEPSYNTH_MAX_SIDE_PX holds")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from the constructor alone; `load_settings` reads the environment once.

        Args:
            settings_cls: This class.
            init_settings: Values of the constructor.
            env_settings: Not used.
            dotenv_settings: Not used.
            file_secret_settings: Not used.

        Returns:
            The one source.
        """
        return (init_settings,)


def variable_names() -> dict[str, str]:
    """Environment name of every field, such as `DEEPSYNTH_PORT`, with the field's name."""
    return {f"{PREFIX}{name.upper()}": name for name in ServiceSettings.model_fields}


def load_settings(
    environment: Mapping[str, str] | None = None, env_file: Path | None = Path(".env")
) -> ServiceSettings:
    """Read the settings from `.env` and the environment, which wins.

    Args:
        environment: Variables to read instead of the process's own.
        env_file: File with defaults; may be missing.

    Returns:
        Checked settings.

    Raises:
        ConfigurationError: A name is unknown or a value is out of bounds; the message says which and why.
    """
    merged: dict[str, str | None] = {}
    if env_file is not None and env_file.is_file():
        merged.update(dotenv_values(env_file))
    merged.update(os.environ if environment is None else environment)  # noqa: TID251 -- the one place
    given = {name: value for name, value in merged.items() if name.startswith(PREFIX) and value is not None}
    given = {name: value for name, value in given.items() if not name.startswith(TRAINER_PREFIX)}
    known = variable_names()
    _refuse_unknown(given, known)
    try:
        # An empty value means unset: compose files pass `DEEPSYNTH_X=${DEEPSYNTH_X:-}`.
        return ServiceSettings.model_validate({known[name]: value for name, value in given.items() if value})
    except ValidationError as error:
        raise ConfigurationError(_explain(error)) from None


def _refuse_unknown(given: Mapping[str, str], known: Mapping[str, str]) -> None:
    complaints = []
    # Without the prefix, which would make everything look alike.
    endings = [name.removeprefix(PREFIX) for name in known]
    for name in sorted(set(given) - set(known)):
        nearest = difflib.get_close_matches(name.removeprefix(PREFIX), endings, n=1, cutoff=0.6)
        hint = f"; did you mean {PREFIX}{nearest[0]}?" if nearest else f"; trainer settings start with {TRAINER_PREFIX}"
        complaints.append(f"{name} is not a setting{hint}")
    if complaints:
        raise ConfigurationError("\n".join(complaints))


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        place = f"{PREFIX}{str(problem['loc'][0]).upper()}: " if problem["loc"] else ""
        lines.append(place + str(problem["msg"]).removeprefix("Value error, "))
    return "\n".join(lines)
