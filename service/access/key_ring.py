"""The keys in force: those of the settings and those of the key file, which is read again when it changes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from service.access.key import Key
from service.access.key_file import read_keys
from service.errors import ConfigurationError

CHECK_EVERY_S = 1.0
"""At most that often the file is looked at: a revoked key works that much longer."""

logger = logging.getLogger(__name__)

_Stamp = tuple[int, int, int]


class KeyRing:
    """Finds the key of a secret. Used on the event loop alone."""

    def __init__(
        self, fixed: Sequence[Key] = (), path: Path | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the key file, if there is one.

        Args:
            fixed: Keys of the settings.
            path: The key file.
            clock: Seconds of a monotonic clock.

        Raises:
            ConfigurationError: The file cannot be read, or has a name that a fixed key has.
        """
        self._fixed = tuple(fixed)
        self._path = path
        self._clock = clock
        self._stamp = _stamp(path)
        self._from_file = () if path is None else self._read(path)
        self._next_check_s = clock() + CHECK_EVERY_S

    @property
    def keys(self) -> tuple[Key, ...]:
        """Every key in force, expired ones included."""
        return (*self._fixed, *self._from_file)

    def find(self, secret: str) -> Key | None:
        """The key with that secret, expired or not; None if there is none."""
        self._refresh()
        found = None
        # All of them, so that the time does not tell which one matched.
        for key in self.keys:
            if key.matches(secret):
                found = key
        return found

    def _refresh(self) -> None:
        if self._path is None or (now_s := self._clock()) < self._next_check_s:
            return
        self._next_check_s = now_s + CHECK_EVERY_S
        if (stamp := _stamp(self._path)) == self._stamp:
            return
        self._stamp = stamp
        try:
            self._from_file = self._read(self._path)
        except ConfigurationError as error:
            # Never fail open, and never lock everybody out because of a slip of the hand.
            logger.error("the key file was not read again, the keys of before stay in force: %s", error)  # noqa: TRY400
        else:
            logger.info("the key file was read again", extra={"fields": {"keys": len(self._from_file)}})

    def _read(self, path: Path) -> tuple[Key, ...]:
        keys = read_keys(path)
        taken = {key.name for key in self._fixed}
        if twice := sorted(taken & {key.name for key in keys}):
            raise ConfigurationError(f"{path}: the name {twice[0]} is the name of a key of the settings")
        return keys


def _stamp(path: Path | None) -> _Stamp | None:
    """What changes when the file is written or replaced; None if it cannot be seen."""
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
