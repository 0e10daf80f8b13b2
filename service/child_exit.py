"""Why a child process ended, for an operator."""

from __future__ import annotations

import signal


def describe_exit(status: int | None, stderr: str = "") -> str:
    """Say why a child ended, in one line.

    Args:
        status: Exit status, the negative number of the signal that ended it, or None while it runs.
        stderr: What it wrote to standard error, if that was kept.

    Returns:
        The signal, or the last line of standard error (of a traceback, the error), or the status.
    """
    if status is None:
        return "no exit status yet"
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        return f"killed by {name}" + (" (likely out of memory)" if -status == signal.SIGKILL else "")
    lines = stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {status}"
