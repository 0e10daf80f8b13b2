"""The files that a command was given: files, folders, patterns and standard input. Opens none of them."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from shared.images.formats import SUFFIXES

STANDARD_INPUT = "-"
_SUFFIXES = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}
_SPECIAL = "not_a_file"
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file to read."""

    name: str
    """As people see it; `-` for standard input."""
    path: Path | None
    """None for standard input, and where nothing was found."""
    place: PurePath
    """Path of the file in a folder that mirrors the inputs."""
    problem: str | None = None
    """Why there is nothing to read, such as a pattern that no file matches."""
    data: bytes | None = None
    """The content, if it comes from a table's cell instead of a file."""
    code: str = "not_found"
    """Of the problem."""

    @property
    def shown(self) -> str:
        """The name for a terminal: line breaks and other control characters in it are escapes."""
        return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in self.name)


class Skipped(Counter[str]):
    """How many files of folders are not read, as their names are not those of images and PDFs, by their endings."""

    def __str__(self) -> str:
        """A sentence; empty where there is none."""
        kinds = ", ".join(f"{ending or 'without an ending'} {count}" for ending, count in self.most_common())
        return f"Not read, as their format is not known: {self.total()} ({kinds})." if self else ""


def find_inputs(words: Sequence[str], leave_out: Path | None = None, skipped: Skipped | None = None) -> list[InputFile]:
    """Find the files that words on a command line mean.

    Folders are searched with their subfolders for the usual file names of images and PDFs; hidden entries are skipped.

    Args:
        words: Files, folders, patterns such as `scans/**/*.png`, `-`.
        leave_out: A folder that is not searched: where the outputs go.
        skipped: Counts files of folders that have other names.

    Returns:
        Every file once, folders and patterns in order of names. A file that does not exist is in it too.

    Raises:
        ValueError: A word can mean no file; the message says why.
    """
    found: dict[str, InputFile] = {}
    skipped = Skipped() if skipped is None else skipped
    for word in words:
        if not word:
            raise ValueError("a file's name is empty")
        if _ADDRESS.match(word):
            raise ValueError(f"{word} is an address; download it first, for example: curl {word} | deepsynth ocr -")
        for file in _expand(word, leave_out and leave_out.resolve(), skipped):
            found.setdefault(os.path.abspath(file.path) if file.path else file.name, file)
    return list(found.values())


def _expand(word: str, leave_out: Path | None, skipped: Skipped) -> Iterator[InputFile]:
    path = Path(word)
    if word == STANDARD_INPUT:
        yield InputFile(word, None, PurePath("stdin"))
    elif path.is_dir():
        yield from _in_folder(path, leave_out, skipped)
    elif glob.has_magic(word) and not os.path.lexists(path):
        yield from _matching(word, leave_out, skipped)
    else:
        yield InputFile(word, path, PurePath(path.name))


def _in_folder(
    folder: Path, leave_out: Path | None, skipped: Skipped, inside: PurePath | None = None
) -> Iterator[InputFile]:
    """Files of a folder; `inside` is the folder's own place."""
    is_empty = True
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and Path(root, name).resolve() != leave_out
        )
        for name in sorted(names):
            path = Path(root, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() not in _SUFFIXES:
                skipped[path.suffix.lower()] += 1
            else:
                is_empty = False
                yield InputFile(
                    str(path), path, (inside or PurePath()) / path.relative_to(folder), _problem(path), code=_SPECIAL
                )
    if is_empty:
        yield InputFile(str(folder), None, PurePath(folder.name), "the folder has no images and no PDFs")


def _matching(pattern: str, leave_out: Path | None, skipped: Skipped) -> Iterator[InputFile]:
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    base = Path(*parts[:fixed])
    # A pattern within the output's folder means what is there.
    leave_out = None if leave_out is not None and base.resolve().is_relative_to(leave_out) else leave_out
    # `**` also matches folders, whose files it matches as well.
    whole_folders = "**" not in parts
    is_empty = True
    for match in sorted(glob.glob(pattern, recursive=True)):
        path = Path(match)
        if leave_out is not None and path.resolve().is_relative_to(leave_out):
            continue
        if not path.is_dir():
            is_empty = False
            yield InputFile(match, path, path.relative_to(base), _problem(path), code=_SPECIAL)
        elif whole_folders:
            is_empty = False
            yield from _in_folder(path, leave_out, skipped, path.relative_to(base))
    if is_empty:
        yield InputFile(pattern, None, PurePath("pattern"), "no file matches this pattern")


def _problem(path: Path) -> str | None:
    """Why a file that was found, not named, is not opened: reading a pipe may wait forever."""
    return "it is a pipe, a socket or a device, not a file" if path.exists() and not path.is_file() else None
