"""The service's state folder: private copies of versions, operators' decisions, and the audit log.

Locked by one process at a time. Without a configured folder it is a temporary one, deleted when the process ends.

    <folder>/copies/<name>@<version>-<random>/   a version's verified files; copied again at every start
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
    """Decisions of operators and of automatic rollback; they outlive the process."""

    pins: dict[str, int] = field(default_factory=dict)
    """Version by name."""
    refusals: dict[str, dict[str, str]] = field(default_factory=dict)
    """`reason`, `who` and `why` by `name@version`."""

    def copy(self) -> Decisions:
        """Decisions that can be changed apart from these."""
        return Decisions(dict(self.pins), dict(self.refusals))


class Storage:
    """The state folder.

    Args:
        folder: Created if missing; None for a temporary folder.
    """

    def __init__(self, folder: Path | None) -> None:
        self._given = folder
        self._folder = folder or Path(tempfile.gettempdir())
        self._lock: int | None = None

    def open(self) -> Decisions:
        """Lock the folder and read the decisions.

        Returns:
            The decisions.

        Raises:
            ConfigurationError: The folder cannot be used or is locked by another process; the message says which.
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
                f"DEEPSYNTH_ADAPTER_STATE_DIR: {self._folder} is in use by another process; give each service its own"
            ) from None
        except OSError as error:
            raise ConfigurationError(
                f"DEEPSYNTH_ADAPTER_STATE_DIR: {self._folder} cannot be used: {error.strerror}"
            ) from error
        return self._read_decisions()

    def close(self) -> None:
        """Unlock the folder and delete the copies."""
        if self._lock is None:
            return
        shutil.rmtree(self._folder / COPIES if self._given else self._folder, ignore_errors=True)
        os.close(self._lock)
        self._lock = None

    def new_copy(self, reference: AdapterRef) -> Path:
        """A new path for a copy of a version."""
        return self._folder / COPIES / f"{reference}-{uuid.uuid4().hex[:12]}"

    def drop_copy(self, folder: Path) -> None:
        """Delete a copy."""
        shutil.rmtree(folder, ignore_errors=True)

    def save(self, decisions: Decisions) -> bool:
        """Save decisions; whether that succeeded, and if not, the log says why."""
        data = json.dumps({"format": 1, "pins": decisions.pins, "refusals": decisions.refusals}, indent=1)
        try:
            with closing_descriptor(folder_descriptor(self._folder)) as folder:
                replace_file(DECISIONS_FILE, data.encode() + b"\n", folder, _TEMPORARY_PREFIX)
        except OSError as error:
            _log.error("decisions about adapters could not be saved: %s", error.strerror)
            return False
        return True

    def record(self, what: str, *, who: str, why: str = "", **facts: object) -> None:
        """Write a change to the audit log and to the log.

        Args:
            what: Kind of change.
            who: An operator, or a part of the service.
            why: The reason.
            **facts: Name, versions and the like; None is left out.
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
            _log.error("a change of adapters could not be written to the audit log: %s", error.strerror)

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
            # Not ignored, since a refused version would be served again.
            raise ConfigurationError(
                f"{path} cannot be read; repair it, or delete it, which forgets pins and refusals"
            ) from error
        return Decisions(pins, refusals)
