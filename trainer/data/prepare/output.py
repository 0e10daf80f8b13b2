"""The folder in which a prepared set is written, in steps that survive a kill, and renamed when complete.

`.NAME.partial` next to NAME holds `set/`, the future NAME, and `work/`: a lock, the state after the last finished step
and a journal. A step counts once its state has been renamed into place; files of a step that does not are deleted when
the work continues. Does not know what the files hold.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

from shared.contract.durable import DISK_FULL
from trainer.data.errors import DataCode, DataError
from trainer.data.prepare.manifest import MANIFEST_NAME


class OutputFolder:
    """Holds the lock while open; only `publish` moves the set to its path."""

    def __init__(self, out: Path, fingerprint: str, *, overwrite: bool, restart: bool) -> None:
        """Lock the output path.

        Args:
            out: path of the finished set.
            fingerprint: of everything that decides what the set will contain.
            overwrite: replace another set at this path.
            restart: delete unfinished work.

        Raises:
            DataError: the path is taken, in use, or holds unfinished work of another request.
        """
        self.out = out
        self._fingerprint = fingerprint
        self._staging = out.parent / f".{out.name}.partial"
        self.folder = self._staging / "set"
        self._work = self._staging / "work"
        with writing_to(out):
            self._restore_replaced()
            self.is_done = self._is_published()
            # Only replace what this program made: --overwrite on a home folder must not empty it.
            if not self.is_done and _is_taken(out) and not (overwrite and (out / MANIFEST_NAME).is_file()):
                raise DataError(
                    DataCode.OUTPUT_EXISTS,
                    f"{out} exists already",
                    "name another folder with --out, or replace a prepared set with --overwrite",
                )
            self._work.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock()
            try:
                self.state = self._load_state(restart=restart)
            except BaseException:
                self._lock.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()
        # No step was finished, so there is nothing to keep.
        if not (self._work / "state.json").exists():
            shutil.rmtree(self._staging, ignore_errors=True)

    def journal(self) -> list[dict[str, Any]]:
        """The journal of finished steps."""
        file = self._work / "journal.jsonl"
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def commit(self, notes: Sequence[Mapping[str, Any]], state: Mapping[str, Any]) -> None:
        """Commit a step: a later crash does not undo it.

        Args:
            notes: lines to add to the journal.
            state: where the next step starts; `files` names the files of the set so far.
        """
        _sync_folders(self.folder)
        with (self._work / "journal.jsonl").open("ab") as file:
            file.write("".join(json.dumps(note) + "\n" for note in notes).encode())
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        self.state = {**state, "fingerprint": self._fingerprint, "journal_bytes": size}
        write_file(self._work / "state.json", json.dumps(self.state).encode())

    def refuse(self) -> None:
        """Record that the finished work was refused: another request may delete it without --restart."""
        if self.state:
            self.state = {**self.state, "is_refused": True}
            write_file(self._work / "state.json", json.dumps(self.state).encode())

    def publish(self) -> None:
        """Rename the set to its path."""
        _sync_folders(self.folder)
        replaced = self._replaced()
        if self.out.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            self.out.rename(replaced)
        self.folder.rename(self.out)
        _sync(self.out.parent)
        shutil.rmtree(replaced, ignore_errors=True)
        self.discard()

    def discard(self) -> None:
        """Delete the unfinished work."""
        shutil.rmtree(self._staging, ignore_errors=True)

    def _replaced(self) -> Path:
        return self.out.parent / f".{self.out.name}.replaced"

    def _restore_replaced(self) -> None:
        """Restore the old set if a replacement was killed between its two renames."""
        if not self.out.exists() and self._replaced().exists():
            self._replaced().rename(self.out)

    def _is_published(self) -> bool:
        with suppress(OSError, ValueError):
            manifest = json.loads((self.out / MANIFEST_NAME).read_text(encoding="utf-8"))
            return bool(manifest["request_fingerprint"] == self._fingerprint)
        return False

    def _take_lock(self) -> BinaryIO:
        file = (self._work / "lock").open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise DataError(
                DataCode.OUTPUT_BUSY, f"another process is preparing {self.out}", "wait for it, or end it"
            ) from error
        return file

    def _load_state(self, *, restart: bool) -> dict[str, Any]:
        file = self._work / "state.json"
        if restart:
            file.unlink(missing_ok=True)
        state: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            state = json.loads(file.read_text(encoding="utf-8"))
        is_other = bool(state) and state["fingerprint"] != self._fingerprint
        if is_other and state.get("is_refused"):
            file.unlink()
            state = {}
        elif is_other:
            raise DataError(
                DataCode.RESUME_MISMATCH,
                f"{self._staging} holds unfinished work on {self.out} from another source or with other options",
                "repeat the options it was started with, or add --restart to throw it away",
            )
        self._clean(state)
        return state

    def _clean(self, state: Mapping[str, Any]) -> None:
        """Delete leftovers of an unfinished step."""
        known = {self.folder / name for name in state.get("files", ())}
        for path in self.folder.rglob("*"):
            if path.is_file() and path not in known:
                path.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self._work / "journal.jsonl").open("ab") as file:
            file.truncate(state.get("journal_bytes", 0))


def write_file(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync(path.parent)


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """Turn disk errors while writing into `out` into a `DataError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise DataError(
                DataCode.DISK_FULL,
                f"the disk of {out} is full",
                "make room and repeat the command: it continues where it stopped",
            ) from error
        raise DataError(
            DataCode.OUTPUT_UNWRITABLE,
            f"{out} cannot be written: {error.strerror or error}",
            "choose a folder that you may write with --out",
        ) from error


def _is_taken(out: Path) -> bool:
    return out.exists() and not (out.is_dir() and not any(out.iterdir()))


def _sync_folders(folder: Path) -> None:
    for each in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        _sync(each)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
