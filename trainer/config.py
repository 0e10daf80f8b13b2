"""The trainer's settings: the only module in `trainer` that reads the environment.

Settings of a machine are `DEEPSYNTH_TRAINER_*` variables; what differs from run to run is a flag of its command.
Imports nothing outside the standard library, so a training machine needs nothing but torch and transformers.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from shared.contract.processors import usable_processors

PREFIX = "DEEPSYNTH_TRAINER_"


class SettingsError(ValueError):
    """An unknown variable, or an invalid value."""


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """Settings of a machine; each field is a variable: `threads` is `DEEPSYNTH_TRAINER_THREADS`."""

    device: str = "auto"
    """`auto` (CUDA where there is a device), `cpu`, `cuda` or `cuda:N`."""
    threads: int = 0
    """Threads of torch on the CPU and of RapidOCR, processes of Tesseract; 0 for as many as this process may use."""
    tesseract: str = "tesseract"
    """Name or path of the Tesseract program."""
    api_key: str = field(default="", repr=False)
    """Key that a service asks for, where `evaluate --url` reads with one."""
    tracing: bool = False
    """Send OpenTelemetry spans of every command, configured by the OTEL_* variables."""

    def __post_init__(self) -> None:
        if self.device not in {"auto", "cpu", "cuda"} and not self.device.removeprefix("cuda:").isdigit():
            raise SettingsError(f"{PREFIX}DEVICE is {self.device!r}; it is auto, cpu, cuda or cuda:N")
        if self.threads < 0:
            raise SettingsError(f"{PREFIX}THREADS is {self.threads}; it is 0 or more")

    @property
    def num_threads(self) -> int:
        """Threads to use."""
        return self.threads or usable_processors()


def load_settings(environment: Mapping[str, str] | None = None) -> TrainerSettings:
    """Read the settings from `environment`, or else this process's; raises `SettingsError`."""
    variables = os.environ if environment is None else environment  # noqa: TID251 - this is the trainer's config
    known = {f"{PREFIX}{each.name.upper()}": each.name for each in fields(TrainerSettings)}
    given = {name: value for name, value in variables.items() if name.startswith(PREFIX)}
    for name in given.keys() - known.keys():
        near = difflib.get_close_matches(name, known, n=1)
        raise SettingsError(f"unknown variable {name}" + (f"; did you mean {near[0]}?" if near else ""))
    texts = {known[name]: value for name, value in given.items()}
    try:
        threads = int(texts.pop("threads", "0"))
    except ValueError as error:
        raise SettingsError(f"{PREFIX}THREADS is not a whole number") from error
    tracing = texts.pop("tracing", "false").lower()
    if tracing not in {"true", "false"}:
        raise SettingsError(f"{PREFIX}TRACING is {tracing!r}; it is true or false")
    return TrainerSettings(threads=threads, tracing=tracing == "true", **texts)


@dataclass(frozen=True, slots=True)
class ProcessRank:
    """This process's ranks among those that torchrun has started; 0 of 1 without torchrun."""

    rank: int = 0
    local_rank: int = 0
    """Rank on this machine: the number of its GPU."""
    world_size: int = 1


def process_rank() -> ProcessRank:
    """The ranks from torchrun's variables."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    rank, local_rank, world_size = (os.environ.get(name, "") for name in names)  # noqa: TID251 - the trainer's config
    return ProcessRank(int(rank or 0), int(local_rank or 0), int(world_size or 1))


def child_environment() -> dict[str, str]:
    """The environment for programs that the trainer starts."""
    return dict(os.environ)  # noqa: TID251 - this is the trainer's config
