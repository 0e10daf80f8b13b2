"""The service's own folder: private copies of versions, what operators decided, and the record of every change.

Held by one process at a time. Without a place given it is a temporary folder that goes with the process.

    <folder>/copies/<name>@<version>-<random>/   a version's files, verified; made anew at every start
    <folder>/decisions.json                      pins and refusals
    <folder>/audit.jsonl                         who changed what, when and why
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.errors import ConfigurationError
from shared.contract.durable import closing_descriptor, folder_descriptor, replace_file
from shared.contract.identity import AdapterRef

COPIES, DECISIONS_FILE, AUDIT_FILE, LOCK_FILE = "copies", "decisions.json", "audit.jsonl", "lock"
_TEMPORARY_PREFIX = ".decisions-"

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Decisions:
    """What people, and the rule that takes versions back, decided; outlives the process."""

    pins: dict[str, int] = field(default_factory=dict)
    """Version by name."""
    refusals: dict[str, dict[str, str]] = field(default_factory=dict)
    """`reason`, `who` and `why` by `name@version`."""


class Storage:
    """The folder.

    Args:
        folder: Where; made where it does not exist. None: a temporary one.
    """

    def __init__(self, folder: Path | None) -> None:
        self._given = folder
        self._folder = folder or Path(tempfile.gettempdir())
        self._lock: int | None = None

    def open(self) -> Decisions:
        """Take the folder and read what was decided.

        Returns:
            The decisions.

        Raises:
            ConfigurationError: It cannot be used, or another process does; the message says which.
        """
        try:
            if self._given is None:
                self._folder = Path(tempfile.mkdtemp(prefix="deepsynth-adapters-"))
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self._folder / COPIES, ignore_errors=True)
            (self._folder / COPIES).mkdir(mode=0o700)
        except BlockingIOError:
            raise ConfigurationError(
                f"DEEPSYNTH_ADAPTER_STATE_DIR: {self._folder} belongs to another process; give each service its own"
            ) from None
        except OSError as error:
            raise ConfigurationError(
                f"DEEPSYNTH_ADAPTER_STATE_DIR: {self._folder} cannot be used: {error.strerror}"
            ) from error
        return self._read_decisions()

    def close(self) -> None:
        """Give the folder back; the copies go."""
        if self._lock is None:
            return
        shutil.rmtree(self._folder / COPIES if self._given else self._folder, ignore_errors=True)
        os.close(self._lock)
        self._lock = None

    def new_copy(self, reference: AdapterRef) -> Path:
        """A place for a version's copy that nothing was ever at."""
        return self._folder / COPIES / f"{reference}-{uuid.uuid4().hex[:12]}"

    def drop_copy(self, folder: Path) -> None:
        """Remove a copy."""
        shutil.rmtree(folder, ignore_errors=True)

    def save(self, decisions: Decisions) -> None:
        """Keep decisions; what cannot be kept is logged and holds until the process ends."""
        data = json.dumps({"format": 1, "pins": decisions.pins, "refusals": decisions.refusals}, indent=1)
        try:
            with closing_descriptor(folder_descriptor(self._folder)) as folder:
                replace_file(DECISIONS_FILE, data.encode() + b"\n", folder, _TEMPORARY_PREFIX)
        except OSError as error:
            _log.error("decisions about adapters could not be kept: %s", error.strerror)

    def record(self, what: str, *, who: str, why: str = "", **facts: object) -> None:
        """Note a change, in the log as well.

        Args:
            what: Kind of change.
            who: Who made it: an operator, or which part of the service.
            why: The reason given.
            **facts: Name, versions and the like.
        """
        line: Mapping[str, object] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "who": who,
            "what": what,
            **{name: value for name, value in facts.items() if value is not None},
            "why": why,
        }
        _log.info("adapters: %s", what, extra={"fields": dict(line)})
        try:
            with (self._folder / AUDIT_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            _log.error("a change of adapters could not be recorded: %s", error.strerror)

    def _read_decisions(self) -> Decisions:
        path = self._folder / DECISIONS_FILE
        try:
            values: Any = json.loads(path.read_bytes())
            pins = {str(name): int(version) for name, version in values["pins"].items()}
            refusals = {
                str(model_id): {str(key): str(value) for key, value in facts.items()}
                for model_id, facts in values["refusals"].items()
            }
        except FileNotFoundError:
            return Decisions()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            # Not passed over: a version that somebody refused would be served again.
            raise ConfigurationError(f"{path} cannot be read; mend it, or remove it and decide anew") from error
        return Decisions(pins, refusals)
