"""Settings of the service, and the only reader of its environment.

Each setting is one field with type, bounds and meaning; `docs/configuration.md` and `.env.example` are generated from
them. To rename a setting, rename the field and add the old name to `RENAMED`.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from service.engine.config import SHIPPED_MODEL
from service.errors import ConfigurationError
from service.jobs.origins import parse_origins, parse_secret
from service.ocr.outcome import MIN_CONFIDENCE, MIN_COVERAGE, BlankPages, Orientation

PREFIX = "DEEPSYNTH_"
TRAINER_PREFIX = "DEEPSYNTH_TRAINER_"
MIB = 1024 * 1024
RENAMED = {
    "QUEUE_SIZE": "MAX_CONCURRENT_REQUESTS",
    "DECODE_WORKERS": "IMAGE_WORKERS",
    "DECODE_TIMEOUT_S": "IMAGE_TIMEOUT_S",
    "DECODE_MEMORY_BYTES": "IMAGE_MEMORY_BYTES",
    "WEIGHTS": "QUANTIZATION",
}
"""Old names, without the prefix, that are still read, with a warning."""

_log = logging.getLogger(__name__)


class Device(StrEnum):
    """Where the engine runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class DType(StrEnum):
    """Data type of the engine's computation."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Quantization(StrEnum):
    """How a GPU holds the decoder's weights."""

    AUTO = "auto"
    NONE = "none"
    INT8 = "int8"

    @classmethod
    def _missing_(cls, value: object) -> Quantization | None:
        """`full`, the word for `none` while the setting was named WEIGHTS."""
        return cls.NONE if value == "full" else None


class EngineKind(StrEnum):
    """Which engine reads the pages."""

    NATIVE = "native"
    FAKE = "fake"


class SampleImages(StrEnum):
    """What is kept of a page."""

    FULL = "full"
    THUMBNAIL = "thumbnail"


class LogFormat(StrEnum):
    """Format of log lines."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """Minimum level of log lines that are written."""

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
    """Port to listen on; 0 for any free port."""
    allowed_hosts: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:\[\]~, -]*$")] = ""
    """Host names and addresses under which requests may come, without port, separated by commas; any when empty."""

    model: Annotated[str, Field(min_length=1)] = SHIPPED_MODEL
    """Base model: a folder, a Hugging Face id such as `deepseek-ai/DeepSeek-OCR`, or `nano`, which is included."""
    default_model: str | None = None
    """Model for requests that name none; the base model when unset."""
    engine: EngineKind = EngineKind.NATIVE
    """`native` reads pages; `fake` needs no model and answers from the bytes of the image, for testing clients."""
    fake_step_ms: Annotated[float, Field(ge=0, le=600_000)] = 10.0
    """Time per word of the fake engine, in milliseconds."""
    device: Device = Device.AUTO
    """Where the engine runs. With `auto` the GPU is detected automatically."""
    dtype: DType = DType.AUTO
    """Data type of the computation: `auto` is bfloat16 on CUDA, float32 on a CPU and for nano, whose canvases of
    lines a CPU with AMX reads in bfloat16, and another by compiled code that rounds less, where that was built;
    compiled steps have keys in bfloat16."""

    quantization: Quantization = Quantization.AUTO
    """Weights of DeepSeek-OCR's decoder on a GPU: `none` keeps them in the data type of the computation, `int8` rounds
    them to 8 bits and halves their memory, `auto` quantizes only if the GPU is too small. A CPU refuses `int8`."""
    gpu_memory_fraction: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the GPU's memory that may be in use, counting other processes on the same GPU."""
    cpu_threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Threads of the engine on a CPU; when unset, the processors that affinity and the container's quota leave it."""

    engine_stall_s: Annotated[float, Field(ge=1, le=3600)] | None = None
    """Longest time without a step of the engine while pages wait, in seconds; then it is restarted. 60 on a CPU and 10
    on a GPU when unset; more than its slowest step takes."""

    ocr_batch_size: Annotated[int, Field(ge=1, le=256)] | None = None
    """Maximum pages that are read together; 16 on a CPU and 64 on a GPU when unset."""
    ocr_max_wait_ms: Annotated[float, Field(ge=0, le=1000)] = 5.0
    """Batching window: how long an idle engine waits for more pages before its first step, in milliseconds. A page that
    is alone in the service does not wait."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 4096
    """Maximum tokens per page that a request may ask for; the default for requests that do not say."""
    max_concurrent_requests: Annotated[int, Field(ge=1, le=10000)] = 64
    """Maximum concurrent requests, waiting and running; further ones get 429. A client without any in work, by its key
    or address, still finds one of as many further places as an eighth of them."""
    deadline_s: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """Maximum time until a request's next page is finished, in seconds, counted from the end of its upload: a long
    document has as long as its pages need. Pages that are missing then have failed; without any page, 504."""
    document_deadline_s: Annotated[float, Field(gt=0, le=86_400)] | None = None
    """Maximum time for all pages of a request, in seconds, such as the limit of a proxy in front; none when unset. A
    document that cannot be read in that time, at the pace of the pages before it, is refused at once."""
    blank_pages: BlankPages = BlankPages.SKIP
    """What to do with pages that show no print: `skip` reports them as blank, `read` lets the model read them."""
    min_confidence: Annotated[float, Field(ge=0, le=1)] = MIN_CONFIDENCE
    """Below it, an answer for a page with little print is reported as unreadable, without its text."""
    review_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """Answers list the words whose confidence is below it (docs/confidence.md); none are listed when unset."""
    min_coverage: Annotated[float, Field(ge=0, le=1)] = MIN_COVERAGE
    """A page of whose print the text accounts for less than this share gets the warning `partly_read`."""
    orientation: Orientation = Orientation.AUTO
    """What to do with pages that are not upright: `auto` finds them by their print and turns them, `as-is` reads every
    page as the file has it."""

    max_upload_bytes: Annotated[int, Field(ge=1024, le=1024 * MIB)] = 20 * MIB
    """Maximum file size in bytes."""
    max_pixels: Annotated[int, Field(ge=1024, le=178_000_000)] = 40_000_000
    """Maximum pixels per page, checked before the page is decoded or rendered."""
    max_side_px: Annotated[int, Field(ge=64, le=65_500)] = 12_000
    """Maximum width and height of a page in pixels."""
    max_frames: Annotated[int, Field(ge=1, le=1000)] = 16
    """Maximum pages of a TIFF, or selected frames of another image, per request."""
    max_pdf_pages: Annotated[int, Field(ge=1, le=1000)] = 50
    """Maximum pages of a PDF per request."""
    pdf_dpi: Annotated[int, Field(ge=36, le=600)] = 150
    """Resolution at which PDF pages are rendered, in dots per inch; less for sheets that would be too large."""
    body_idle_s: Annotated[float, Field(gt=0, le=600)] = 15.0
    """Maximum pause in an upload, in seconds; then 408."""
    body_total_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Maximum time for an upload, in seconds; then 408."""

    image_workers: Annotated[int, Field(ge=1, le=64)] | None = None
    """Processes that decode images and render PDF pages; 2 with an engine on a CPU, half of the cores with a GPU when
    unset."""
    image_timeout_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    """Maximum time to decode one page, both CPU time and wall time, in seconds; then its process is killed."""
    image_memory_bytes: Annotated[int, Field(ge=256 * MIB, le=64 * 1024 * MIB)] = 1536 * MIB
    """Address space of an image process in bytes."""

    adapter_dir: Path | None = None
    """Root of the adapter volume (docs/adapters.md), may be mounted read-only; adapters are not served when unset."""
    adapter_state_dir: Path | None = None
    """Folder for copies of adapters, operators' decisions and the audit log, not shared with another service; when
    unset, all of them except the log lines are lost when the process ends."""
    adapter_slots: Annotated[int, Field(ge=1, le=64)] = 8
    """Maximum adapters in memory; each slot is allocated at the start, for the largest rank."""
    adapter_max_rank: Annotated[int, Field(ge=1, le=128)] = 64
    """Maximum LoRA rank."""
    adapter_experts: bool = False
    """Whether adapters may change routed experts; a slot then takes about twenty times the memory (docs/engine.md)."""
    adapter_poll_s: Annotated[float, Field(ge=0.1, le=60)] = 0.25
    """Pause between scans of the adapter volume, in seconds; up to a second if a scan is slow."""
    adapter_wait_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    """Maximum time a request waits for its adapter to be loaded, in seconds; then 503."""
    adapter_rollback_pages: Annotated[int, Field(ge=0, le=10_000)] = 100
    """Newest pages of a version and of its predecessor that automatic rollback compares; 0 turns it off."""
    adapter_rollback_margin: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of pages by which a version's loops, or failures, must exceed its predecessor's for a rollback."""

    api_key: Annotated[SecretStr, Field(min_length=16, max_length=200)] | None = None
    """One key that clients must send; at least 16 characters. For several, or for limits, use DEEPSYNTH_KEY_FILE."""
    key_file: Path | None = None
    """File with hashed keys, their scopes and limits, written by `deepsynth keys`; read again when it changes."""
    require_keys: bool = False
    """Refuse to start if neither DEEPSYNTH_API_KEY nor DEEPSYNTH_KEY_FILE is set."""
    admin_key: Annotated[SecretStr, Field(min_length=16, max_length=200)] | None = None
    """Key with which operators pin, roll back and refuse adapters; at least 16 characters. Disabled when unset."""

    job_dir: Path | None = None
    """Folder for the documents and results of jobs (`POST /jobs`), not shared with another service; no jobs are taken
    when unset."""
    job_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of DEEPSYNTH_OCR_BATCH_SIZE that pages of jobs may take at once, at least one page; the rest is left for
    requests, also while there are none."""
    job_max_pages: Annotated[int, Field(ge=1, le=5000)] = 1000
    """Maximum pages per job."""
    job_max_unfinished: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Maximum jobs that wait or run; further ones get 429. An owner without any still finds one of as many further
    places as an eighth of them."""
    job_max_bytes: Annotated[int, Field(ge=MIB)] = 2048 * MIB
    """Maximum bytes of documents and results of jobs; further jobs get 507."""
    job_ttl_s: Annotated[float, Field(gt=0, le=31_536_000)] = 86_400.0
    """How long a job is kept after its end, in seconds; then its document and result are erased."""
    job_owner_header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")] | None = None
    """Request header whose value says whose a job is, such as `X-Forwarded-User`, where a proxy authenticates clients
    and always sets it; when unset, the key of the request."""
    job_webhook_origins: str | None = None
    """Where webhooks may be sent when a job ends, such as `https://hooks.example.org,http://10.0.0.5:8080`; nowhere
    when unset."""
    job_webhook_secret: SecretStr | None = None
    """Signs webhooks: `whsec_` and 24 to 64 bytes in base64, as of `echo whsec_$(openssl rand -base64 32)`."""
    cascade_url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    """Another service that reads pages again of which this one is unsure, for requests with the model `auto`. Pages of
    these requests are sent there."""
    cascade_key: SecretStr | None = None
    """Sent to that service as `Authorization: Bearer KEY`."""
    cascade_model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Model that reads these pages: one of the other service if that is set, else an adapter or the base model of this
    one."""
    cascade_min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.9
    """With the model `auto`, pages below it are read again."""

    drain_grace_s: Annotated[float, Field(ge=0, le=300)] = 0.0
    """How long a stopping process still serves requests while `/readyz` says 503, so that load balancers notice; in
    seconds."""
    enable_metrics: bool = True
    """Serve `/metrics` for Prometheus."""
    metrics_cache_s: Annotated[float, Field(ge=0, le=60)] = 1.0
    """For how long scrapes of `/metrics` get the same text, in seconds, which bounds what they cost; 0 writes it for
    each."""
    admin_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port for `/metrics`, operators' commands and exports of samples, which DEEPSYNTH_PORT then refuses; health and
    `GET /adapters` are on both. All are on DEEPSYNTH_PORT when unset."""
    admin_host: str | None = None
    """Address for DEEPSYNTH_ADMIN_PORT; DEEPSYNTH_HOST when unset."""
    enable_tracing: bool = False
    """Send OpenTelemetry spans."""
    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://\S+$")] = "http://127.0.0.1:4318/v1/traces"
    """Where spans are sent: the traces URL of an OTLP collector, over HTTP."""
    log_level: LogLevel = LogLevel.INFO
    """Minimum level of log lines that are written."""
    log_format: LogFormat = LogFormat.TEXT
    """`text` for people, `json` for log collectors."""

    ocr_save_samples: bool = False
    """Keep pages and what was read on them, to learn from; requires `DEEPSYNTH_OCR_PRIVACY_ALLOWED` as well."""
    ocr_privacy_allowed: bool = False
    """The operator's statement that keeping pages is lawful here; without it none is kept."""
    sample_dir: Path = Path("samples")
    """Folder for kept pages, not shared with another service; readable by its owner alone."""
    sample_images: SampleImages = SampleImages.FULL
    """`full` keeps each page without loss; `thumbnail` a small picture that shows no print and cannot be trained on."""
    sample_quota_bytes: Annotated[int, Field(ge=MIB)] = 1024 * MIB
    """Maximum bytes of kept pages and their records, in blocks of 4 KiB; then the oldest pages without a correction
    are erased."""
    sample_ttl_days: Annotated[float, Field(gt=0, le=3650)] = 30.0
    """Days after which a kept page is erased, corrected or not, counted from the last time it was read."""

    @property
    def needs_key(self) -> bool:
        """Whether clients must send a key to read documents."""
        return self.api_key is not None or self.key_file is not None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.require_keys and not self.needs_key:
            raise ValueError("DEEPSYNTH_REQUIRE_KEYS=true, but neither DEEPSYNTH_API_KEY nor DEEPSYNTH_KEY_FILE is set")
        if self.admin_port is not None and self.admin_port == self.port:
            raise ValueError("DEEPSYNTH_ADMIN_PORT is the same as DEEPSYNTH_PORT")
        if self.admin_host is not None and self.admin_port is None:
            raise ValueError("DEEPSYNTH_ADMIN_HOST is set without DEEPSYNTH_ADMIN_PORT")
        if self.cascade_key is not None and self.cascade_url is None:
            raise ValueError("DEEPSYNTH_CASCADE_KEY is set without DEEPSYNTH_CASCADE_URL")
        if self.ocr_batch_size is not None and self.max_concurrent_requests < self.ocr_batch_size:
            raise ValueError(
                "DEEPSYNTH_MAX_CONCURRENT_REQUESTS is smaller than DEEPSYNTH_OCR_BATCH_SIZE, so no batch could fill"
            )
        if self.max_side_px**2 < self.max_pixels:
            raise ValueError("DEEPSYNTH_MAX_PIXELS is more than DEEPSYNTH_MAX_SIDE_PX squared")
        if self.job_max_bytes < self.max_upload_bytes:
            raise ValueError(
                "DEEPSYNTH_JOB_MAX_BYTES is smaller than DEEPSYNTH_MAX_UPLOAD_BYTES, so a document may never fit"
            )
        if self.job_webhook_origins is not None and self.job_webhook_secret is None:
            raise ValueError(
                "DEEPSYNTH_JOB_WEBHOOK_ORIGINS is set, but not DEEPSYNTH_JOB_WEBHOOK_SECRET, which signs them"
            )
        return self

    @field_validator("job_webhook_origins")
    @classmethod
    def _check_origins(cls, value: str | None) -> str | None:
        if value is not None:
            parse_origins(value)
        return value

    @field_validator("job_webhook_secret")
    @classmethod
    def _check_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parse_secret(value.get_secret_value())
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from the constructor alone; `load_settings` reads the environment."""
        return (init_settings,)


def variable_names() -> dict[str, str]:
    """Environment name of every field, such as `DEEPSYNTH_PORT`, with the field's name."""
    return {f"{PREFIX}{name.upper()}": name for name in ServiceSettings.model_fields}


def load_settings(
    environment: Mapping[str, str] | None = None,
    env_file: Path | None = Path(".env"),
    warn: Callable[[str], None] = _log.warning,
) -> ServiceSettings:
    """Read the settings from `.env` and the environment, which wins.

    Args:
        environment: Variables to read instead of the process's own.
        env_file: File with defaults; may be missing.
        warn: Called with a text for each old name in use.

    Returns:
        Checked settings.

    Raises:
        ConfigurationError: A name is unknown, given along with its old name, or a value is out of bounds; the message
            says which and why.
    """
    merged: dict[str, str | None] = {}
    if env_file is not None and env_file.is_file():
        merged.update(dotenv_values(env_file))
    merged.update(os.environ if environment is None else environment)  # noqa: TID251 -- the one place
    given = {name: value for name, value in merged.items() if name.startswith(PREFIX) and value is not None}
    given = {name: value for name, value in given.items() if not name.startswith(TRAINER_PREFIX)}
    known = variable_names()
    renamed = {PREFIX + old: PREFIX + new for old, new in RENAMED.items()}
    _refuse_unknown(given, {**{name: name for name in known}, **renamed})
    # An empty value means unset: compose files pass `DEEPSYNTH_X=${DEEPSYNTH_X:-}`.
    given = {name: value for name, value in given.items() if value}
    for old in sorted(given.keys() & renamed):
        if renamed[old] in given:
            raise ConfigurationError(f"{old} is the old name of {renamed[old]}, and both are set; unset {old}")
        warn(f"{old} has been renamed to {renamed[old]}; the old name will be removed in a later version")
    names = {known[renamed.get(name, name)]: name for name in given}
    try:
        return ServiceSettings.model_validate({field: given[name] for field, name in names.items()})
    except ValidationError as error:
        raise ConfigurationError(_explain(error, names)) from None


def _refuse_unknown(given: Mapping[str, str], current: Mapping[str, str]) -> None:
    """Compare names with those known, old ones included; `current` maps each to the name to suggest."""
    complaints = []
    # Without the prefix, which would make everything look alike.
    endings = [name.removeprefix(PREFIX) for name in current]
    for name in sorted(set(given) - set(current)):
        nearest = difflib.get_close_matches(name.removeprefix(PREFIX), endings, n=1, cutoff=0.6)
        suggestion = current[PREFIX + nearest[0]] if nearest else None
        hint = f"; did you mean {suggestion}?" if suggestion else f"; trainer settings start with {TRAINER_PREFIX}"
        complaints.append(f"{name} is not a setting{hint}")
    if complaints:
        raise ConfigurationError("\n".join(complaints))


def _explain(error: ValidationError, names: Mapping[str, str]) -> str:
    """One line per problem; `names` maps a field to the variable that was set."""
    lines = []
    for problem in error.errors():
        place = f"{names[str(problem['loc'][0])]}: " if problem["loc"] else ""
        lines.append(place + str(problem["msg"]).removeprefix("Value error, "))
    return "\n".join(lines)
