"""The key file: JSON with an entry for each key, hashes instead of secrets, replaced as a whole."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from service.access.key import Key
from service.errors import ConfigurationError
from shared.contract.durable import closing_descriptor, folder_descriptor, replace_file

MAX_BYTES = 1024 * 1024
MAX_KEYS = 1000
"""Each key is a label in the metrics, and each is compared at every request."""
_TEMPORARY_PREFIX = ".deepsynth-keys-"


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: tuple[Key, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [key.name for key in self.keys]
        if len(names) > MAX_KEYS:
            raise ValueError(f"more than {MAX_KEYS} keys")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"more than one key has the name {twice[0]}")
        return self


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read a key file; a `ConfigurationError` names its first fault, never a hash."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or type(error).__name__}") from None
    if len(data) > MAX_BYTES:
        raise ConfigurationError(f"{path}: larger than {MAX_BYTES} bytes")
    try:
        return _Content.model_validate_json(data).keys
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        reason = str(fault["msg"]).removeprefix("Value error, ")
        raise ConfigurationError(f"{path}: {place + ': ' if place else ''}{reason}") from None


@contextlib.contextmanager
def editing(path: Path) -> Iterator[list[Key]]:
    """Let a block change the keys of a file, which is then replaced as a whole; others that edit it wait.

    The file may be readable by all: secrets cannot be computed from their hashes.

    Args:
        path: The file; it starts empty if it does not exist.

    Yields:
        Its keys, to be changed in place.

    Raises:
        ConfigurationError: The file is not valid.
        OSError: It cannot be written, and is unchanged.
    """
    with closing_descriptor(folder_descriptor(path.parent)) as folder:
        fcntl.flock(folder, fcntl.LOCK_EX)
        keys = list(read_keys(path)) if path.exists() else []
        yield keys
        body = _Content(keys=tuple(keys)).model_dump_json(indent=1, exclude_none=True) + "\n"
        replace_file(path.name, body.encode(), folder, _TEMPORARY_PREFIX)
