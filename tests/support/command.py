"""The program's commands, run in this process, which saves their start."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from service.__main__ import main


def run_here(
    arguments: list[str], folder: Path, environment: Mapping[str, str], given: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """What `python -m service ARGUMENTS` ends with and prints, in a folder."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as output,
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        io.TextIOWrapper(io.BytesIO(given)) as standard_input,
        mock.patch.dict(os.environ, environment, clear=True),
        mock.patch.object(sys, "stdin", standard_input),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        contextlib.chdir(folder),
    ):
        try:
            status = main(arguments)
        except SystemExit as end:  # as argparse ends
            status = int(end.code or 0)
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
        printed = []
        for stream in (output, errors):
            stream.flush()
            stream.seek(0)
            printed.append(stream.buffer.read())
    return subprocess.CompletedProcess(arguments, status, *printed)
