"""What a command writes: standard output, and a folder with one file for each input."""

from __future__ import annotations

import base64
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from urllib.parse import quote

from service.cli.inputs import InputFile
from shared.contract.durable import closing_descriptor, folder_descriptor, replace_file

EXIT_OUTPUT_FAILED = 74
"""EX_IOERR: the output could not be written."""
EXIT_PIPE_CLOSED = 141
"""As shells report a process that wrote to a pipe without a reader."""
_FIGURE = re.compile(rb"!\[(page-\d{1,9}-figure-\d{1,9}\.jpeg)\]\(data:image/jpeg;base64,([A-Za-z0-9+/]+={0,2})\)")
_TEMPORARY_PREFIX = ".deepsynth-"


class OutputError(Exception):
    """Nothing more can be written; the message is for the user."""

    def __init__(self, text: str, status: int = EXIT_OUTPUT_FAILED) -> None:
        super().__init__(text)
        self.status = status


def prepare_standard_output() -> None:
    """Let characters that the terminal's encoding does not have be printed as escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def prints_unicode() -> bool:
    """Whether standard output takes every character."""
    encoding = getattr(sys.stdout, "encoding", None) or ""
    return encoding.lower().replace("_", "-") in {"utf-8", "utf8"}


def print_output(content: str | bytes) -> None:
    """Write to standard output at once.

    Args:
        content: Text, or bytes of a file.

    Raises:
        OutputError: It is closed, or the disk is full.
    """
    if sys.stdout is None:
        raise OutputError("standard output is closed")
    try:
        if isinstance(content, str):
            sys.stdout.write(content)
        else:
            sys.stdout.flush()
            sys.stdout.buffer.write(content)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        raise OutputError("the reader of the output has closed it", EXIT_PIPE_CLOSED) from None
    except OSError as error:
        discard_output()
        raise OutputError(f"standard output: {error.strerror}") from None


def discard_output() -> None:
    """Send what is left in the buffer nowhere, so that the interpreter does not fail on it again when it ends."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, sys.stdout.fileno())
    os.close(sink)


class OutputFolder:
    """A folder that gets one file for each input, in the subfolders that the inputs have.

    A document of which some page failed is written with `.partial` before its extension, so that it is read again.
    """

    def __init__(self, root: Path, extension: str, inputs: Sequence[InputFile]) -> None:
        """Choose the names.

        Args:
            root: The folder; made when the first file is written.
            extension: Of the outputs, with its dot.
            inputs: All of them, since two may differ in their extension alone.

        Raises:
            ValueError: Two inputs would be written to one file, or an input be overwritten.
        """
        self.root = root
        self._extension = extension
        stems = Counter(each.place.with_suffix("") for each in inputs)
        self._stems: dict[InputFile, PurePath] = {}
        owners: dict[PurePath, InputFile] = {}
        sources = {each.path.resolve() for each in inputs if each.path}
        for each in inputs:
            stem = each.place if stems[each.place.with_suffix("")] > 1 else each.place.with_suffix("")
            other = owners.setdefault(stem, each)
            if other is not each:
                raise ValueError(
                    f"{other.name} and {each.name} would both be written to {self._path(stem)}; "
                    "give the folder that contains both, which keeps their subfolders"
                )
            if self._path(stem).resolve() in sources:
                raise ValueError(f"{self._path(stem)} is an input; choose another folder for --out")
            self._stems[each] = stem

    def path(self, file: InputFile) -> Path:
        """Where the output of an input goes."""
        return self._path(self._stems[file])

    def _path(self, stem: PurePath, mark: str = "") -> Path:
        return self.root / stem.with_name(f"{stem.name}{mark}{self._extension}")

    def has_current(self, file: InputFile) -> bool:
        """Whether the output of an input exists and is not older than it."""
        if file.path is None:
            return False
        path = self.path(file)
        try:
            return path.is_file() and path.stat().st_mtime_ns >= file.path.stat().st_mtime_ns
        except OSError:
            return False

    def prepare(self) -> None:
        """Make the folder, before much time is spent on what could not be written.

        Raises:
            OutputError: It cannot be made, or is no folder one may write in.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise OutputError(f"{self.root}: it, or a folder above it, is a file") from None
        except OSError as error:
            raise OutputError(f"{self.root}: {error.strerror}") from None
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise OutputError(f"{self.root}: no permission to write")

    def write(self, file: InputFile, content: bytes, *, is_partial: bool) -> Path:
        """Write an output in one step: under its name there is never half a file.

        Figures that Markdown holds as data URLs go to files in a folder next to it before.

        Args:
            file: The input.
            content: Its output.
            is_partial: Whether some page failed.

        Returns:
            Where it is now.

        Raises:
            OutputError: It cannot be written.
        """
        partial = self._path(self._stems[file], ".partial")
        path = partial if is_partial else self.path(file)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = self._with_figures_apart(self._stems[file], content)
            with closing_descriptor(folder_descriptor(path.parent)) as folder:
                replace_file(path.name, content, folder, _TEMPORARY_PREFIX)
            if not is_partial:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}") from None
        return path

    def _with_figures_apart(self, stem: PurePath, content: bytes) -> bytes:
        """Write the figures of Markdown to files, and link these instead."""
        # Needs packages that `--help` does without.
        from service.ocr.formats import markdown

        if self._extension != markdown.FORMAT.extension or b"(data:" not in content:
            return content
        place = self.root / stem.with_name(f"{stem.name}.figures")

        def write(found: re.Match[bytes]) -> bytes:
            place.mkdir(exist_ok=True)
            with closing_descriptor(folder_descriptor(place)) as folder:
                replace_file(found[1].decode(), base64.b64decode(found[2]), folder, _TEMPORARY_PREFIX)
            return b"![%b](%b/%b)" % (found[1], quote(place.name).encode(), found[1])

        return _FIGURE.sub(write, content)
