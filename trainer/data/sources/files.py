"""The files of a source's folder: which there are, what is passed over, and reading without leaving the folder.

A foreign data set may hold links and paths to anything on this machine, so every file is resolved before it is read.
"""

from __future__ import annotations

import codecs
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trainer.data.errors import DataCode, DataError, RowCode, RowError
from trainer.data.sources.encoded import shown

SET_MANIFEST: Final = "dataset.json"
"""Marks a prepared set; one below a source is an earlier result, and no part of the source."""


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """What a walk through a folder found.

    Attributes:
        root: the folder.
        files: all files in order of their names, apart from hidden ones.
        passed_over: what was not looked into, by kind.
    """

    root: Path
    files: tuple[Path, ...]
    passed_over: Counter[str] = field(default_factory=Counter)

    def names(self) -> list[str]:
        """Names relative to the folder, with slashes."""
        return [file.relative_to(self.root).as_posix() for file in self.files]

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """Files whose names end in one of these, in any case."""
        return [file for file in self.files if file.name.lower().endswith(suffixes)]

    def other_than(self, used: Iterable[Path], ignored: tuple[str, ...] = ()) -> Counter[str]:
        """What a source leaves out: files that it does not use, by suffix, and what the walk passed over.

        Args:
            used: the source's files.
            ignored: suffixes that are not counted, such as those of images that rows may name.

        Returns:
            Counts by kind.
        """
        known = set(used)
        rest = [file for file in self.files if file not in known and not file.name.lower().endswith(ignored)]
        return self.passed_over + Counter(f"{file.suffix.lower() or 'unnamed'} files" for file in rest)


def list_files(root: Path) -> FolderFiles:
    """Walk through a folder; neither links to folders, hidden files nor prepared sets below it are followed."""
    files: list[Path] = []
    passed_over: Counter[str] = Counter()
    for place, folders, names in os.walk(root):
        here = Path(place)
        if here != root and SET_MANIFEST in names:
            passed_over["prepared sets"] += 1
            folders.clear()
            continue
        for folder in list(folders):
            if folder.startswith("."):
                folders.remove(folder)
            elif (here / folder).is_symlink():
                passed_over["linked folders"] += 1
        found = [here / name for name in names if not name.startswith(".")]
        # Reading a pipe may wait forever. A link to nothing is a file that cannot be read, and is named.
        special = {file for file in found if file.exists() and not file.is_file()}
        passed_over["pipes, sockets and devices"] += len(special)
        files += [file for file in found if file not in special]
    in_order = sorted(files, key=lambda file: file.relative_to(root).as_posix())
    return FolderFiles(root, tuple(in_order), +passed_over)


def read_inside(root: Path, path: Path | str, folder: str = "") -> bytes:
    """Bytes of a file below a folder.

    Args:
        root: folder that may not be left.
        path: relative to `folder`, or absolute; Windows' separators are understood, too.
        folder: relative to `root`.

    Returns:
        The file's bytes.

    Raises:
        RowError: there is no such file, or it is outside the folder.
    """
    try:
        full = (root / folder / path).resolve()
        if "\\" in str(path) and not full.exists():
            full = (root / folder / str(path).replace("\\", "/")).resolve()
        if not full.exists():
            # A Mac's archives hold names whose accents are apart from their letters.
            forms = (Path(unicodedata.normalize(form, str(full))) for form in ("NFC", "NFD"))
            full = next((other for other in forms if other.exists()), full)
        if not full.is_relative_to(root.resolve()):
            raise RowError(
                RowCode.IMAGE_OUTSIDE, f"{shown(path)} is outside the source's folder: give --image-root DIR"
            )
        return full.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, RowError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a path"
        raise RowError(RowCode.IMAGE_MISSING, f"{shown(path)}: {reason}") from error


def decoded(data: bytes, encoding: str | None = None) -> str:
    """Text of a file's bytes.

    Args:
        data: the bytes.
        encoding: of a file without a byte order mark; UTF-8 by default.

    Returns:
        The text, without the mark.

    Raises:
        UnicodeDecodeError: the file is of another encoding.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    if data.startswith(codecs.BOM_UTF8):
        return data.decode("utf-8-sig")
    return data.decode(encoding or "utf-8")


def require_inside(root: Path, files: Iterable[Path]) -> None:
    """Raise `DataError` for a file that is a link out of the folder."""
    inside = root.resolve()
    for file in files:
        if file.is_symlink() and not file.resolve().is_relative_to(inside):
            raise DataError(
                DataCode.SOURCE_UNREADABLE,
                f"{file} is a link to a file outside {root}",
                "copy the file there, or name the file itself as the source",
            )
