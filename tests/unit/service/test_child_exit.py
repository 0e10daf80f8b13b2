from __future__ import annotations

import signal

import pytest

from service.child_exit import describe_exit


@pytest.mark.parametrize(
    ("status", "stderr", "line"),
    [
        (1, "Traceback (most recent call last):\n  ...\nImportError: no codec\n", "ImportError: no codec"),
        (3, "", "exit status 3"),
        (-signal.SIGKILL, "noise", "killed by SIGKILL (likely out of memory)"),
        (-signal.SIGSEGV, "", "killed by SIGSEGV"),
        (-250, "", "killed by signal 250"),
        (None, "", "no exit status yet"),
    ],
)
def test_cause_is_one_line(status: int | None, stderr: str, line: str) -> None:
    assert describe_exit(status, stderr) == line
